"""The page: an :class:`Atlas` as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from qk_taxonomy.hypotheses.contrast import SHIFT
from qk_taxonomy.labels import MODEL_COLOURS, statistic_label
from qk_taxonomy.report.atlas import Atlas
from qk_taxonomy.report.gallery import (
    FLOOR,
    HEIGHT,
    LEFT,
    RIGHT,
    SYMBOLS,
    WIDTH,
    ClassPanel,
    class_panels,
)
from qk_taxonomy.report.packing import (
    base64_gzip,
    byte_shares,
    coded,
    packed,
    rounded,
    rounded_wide,
    smallest,
)
from qk_taxonomy.report.rows import (
    TEST_COLUMNS,
    TEXTS,
    listed_changes,
    listed_contrasts,
    listed_tests,
)
from qk_taxonomy.statistics.findings import LEVEL

_TEMPLATES = "templates"

#: In the order in which each uses what the ones before it define.
SCRIPTS = (
    *("data", "state", "theme", "plots", "taps", "card", "scale", "points", "zoom", "marks", "map"),
    *("picture", "tables", "pins", "grid", "boxes", "layers", "contrasts", "main"),
)

#: A later one overrides what those before it say.
STYLES = (
    *("colours", "elements", "frame", "notes", "controls", "map", "filters", "card", "pins"),
    *("charts", "classes", "tables", "provenance", "fingers", "print"),
)

# Runs before anything is shown, so that what needs scripts is hidden only where there are none.
_FIRST_SCRIPT = 'document.documentElement.classList.add("scripted");'

# A statistic spans decades where its middle 98 % do: axes and colours are then logarithmic.
_DECADES = 2.0
_POSITIVE = 0.95


def atlas_page(atlas: Atlas) -> str:
    """The whole page, as HTML that shows itself without a network.

    Its numbers are rounded to four digits and its histograms to 1/255 of their highest bin, so
    that 100,000 heads take less than 15 MB. Every text of the atlas is escaped.
    """
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("qk_taxonomy.report", _TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "at": "{:.1f}".format,
        "counted": "{:,}".format,
        "digits": _digits,
        "percent": lambda share, n=0: f"{100 * share:.{n}f} %",
    }
    plotly = get_plotlyjs()
    script = _script()
    tests = listed_tests(atlas.tests)
    models = _models(atlas)
    panels = class_panels(atlas.classes, atlas.edges)
    return environment.get_template("page.html").render(
        atlas=atlas,
        models=models,
        families=list(dict.fromkeys(family for family, _ in models)),
        stacks=list(dict.fromkeys(map(str, atlas.heads["stack"]))),
        statistics={name: statistic_label(name) for name in atlas.statistics},
        panels=panels,
        picture={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "floor": FLOOR},
        symbols=SYMBOLS,
        tests=tests,
        contrasts=listed_contrasts(atlas.contrasts),
        heads=_packed_heads(atlas, models, panels),
        test_table=_packed_table(tests.table),
        level=LEVEL,
        contrast_table=_packed_table(atlas.contrasts.reindex(columns=list(TEST_COLUMNS))),
        changed_table=_packed_table(listed_changes(atlas.changed)),
        style=Markup(_joined("styles", STYLES, "css")),
        first_script=Markup(_FIRST_SCRIPT),
        script=Markup(script),
        plotly=base64_gzip(plotly.encode()),
        policy=_policy(_FIRST_SCRIPT, script, plotly),
    )


def _models(atlas: Atlas) -> list[tuple[str, str]]:
    """Family and name of every model that has heads, in their order."""
    pairs = atlas.heads[["family", "model"]].drop_duplicates()
    return list(pairs.astype(str).itertuples(index=False, name=None))


def _packed_heads(atlas: Atlas, models: list[tuple[str, str]], panels: Sequence[ClassPanel]) -> str:
    heads = atlas.heads
    shares, peaks = byte_shares(atlas.histograms)
    place = {pair: code for code, pair in enumerate(models)}
    codes = [place[pair] for pair in zip(heads["family"], heads["model"], strict=True)]
    columns: dict[str, Any] = {
        "model": smallest(codes),
        "stack": coded(heads["stack"]),
        "layer": smallest(heads["layer"]),
        "head": smallest(heads["head"]),
        "class": smallest(heads["class"]),
        "depth": rounded(_depths(heads)),
        "x": rounded(heads["umap_x"]),
        "y": rounded(heads["umap_y"]),
        "histograms": shares,
        "peaks": peaks,
        "beyond": rounded(atlas.beyond),
    }
    columns |= {f"statistic:{name}": rounded(heads[name]) for name in atlas.statistics}
    meta = {
        "title": atlas.title,
        "models": [{"family": family, "name": name} for family, name in models],
        "statistics": [
            {"name": name, "label": statistic_label(name), "log": _spans_decades(heads[name])}
            for name in atlas.statistics
        ],
        "classes": [
            {
                "number": panel.number,
                "colour": panel.colour,
                "symbol": SYMBOLS[panel.symbol][0],
                "apart": panel.apart,
            }
            for panel in panels
        ],
        "symbols": [name for name, _ in SYMBOLS],
        "colours": list(MODEL_COLOURS),
        "edges": [float(edge) for edge in atlas.edges],
        "circuit": atlas.circuit,
        "convention": atlas.convention,
        "level": LEVEL,
        "shift": SHIFT,
    }
    return packed(meta, columns)


def _depths(heads: pd.DataFrame) -> pd.Series:
    """Each layer's place among those of its stack that have heads here, from 0 to 1."""
    layers = heads.groupby(["family", "model", "stack"], sort=False)["layer"]
    last = layers.transform("nunique") - 1
    return (layers.rank(method="dense") - 1) / np.maximum(last, 1)


def _spans_decades(values: pd.Series) -> bool:
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    # A dead head's zeros have no logarithm, and must not decide for all others.
    if positive.empty or len(positive) < _POSITIVE * len(finite):
        return False
    low, high = np.quantile(positive, [0.01, 0.99])
    return bool(np.log10(high / low) >= _DECADES)


def _packed_table(table: pd.DataFrame) -> str:
    """Columns of numbers and of texts; what is missing is nan or ""."""
    columns: dict[str, Any] = {}
    for name in table.columns:
        if name in TEXTS:
            texts = table[name].astype(object)
            columns[name] = coded(texts.where(texts.notna(), ""))
        else:
            columns[str(name)] = rounded_wide(table[name].to_numpy(np.float64, na_value=np.nan))
    return packed({"n": len(table)}, columns)


def _digits(value: float, n: int = 3) -> str:
    """A number to ``n`` significant digits, zeros at its end included."""
    return f"{value:#.{n}g}".rstrip(".").replace("-", "−")


def _joined(folder: str, names: Sequence[str], ending: str) -> str:
    """Files of one folder of the templates, one after the other."""
    place = files("qk_taxonomy.report").joinpath(_TEMPLATES, folder)
    return "\n".join(place.joinpath(f"{name}.{ending}").read_text("utf-8") for name in names)


def _script() -> str:
    """All scripts as one function, so that they share names with each other and nothing else."""
    parts = _joined("scripts", SCRIPTS, "js")
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


def _policy(*scripts: str) -> str:
    """A content security policy: no network at all, and no script but these.

    ``unsafe-eval``: plotly compiles what draws points in WebGL. ``blob:`` and ``data:`` images are
    what it exports.
    """
    hashes = [hashlib.sha256(text.encode()).digest() for text in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    rules: Mapping[str, str] = {
        "default-src": "'none'",
        "script-src": f"{allowed} 'unsafe-eval'",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())
