"""The report of the study of query norms, in Markdown: the verdict on top, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from qk_taxonomy.figures.query_norm.parts import measure_label, rounded
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.circuits.chosen import Head
from qk_taxonomy.studies.query_norm.behaviour import Bridge
from qk_taxonomy.studies.query_norm.correlations import CORRELATIONS
from qk_taxonomy.studies.query_norm.criteria import Criteria
from qk_taxonomy.studies.query_norm.study import QueryNormStudy

# Rows of a table of heads, and of associations.
_TOP = 10

_CRITERIA = {
    "correlation": "least |r|, of Pearson and of Spearman alike, for a head to pass in a text",
    "p_value": "p of both below, corrected for the number of heads (Benjamini–Hochberg)",
    "consistent": "share of the texts in which a head passes with one sign, to be consistent",
    "share_of_heads": "share of the heads that are consistent given position, for a go",
    "control": "largest |mean r|, and share of |r| that pass, of shuffled entropies",
    "n_permutations": "shuffles of the entropies of each text",
    "seed": "of the shuffles",
}

# What no run can tell, whatever its numbers are.
_LIMITS = (
    "A correlation over tokens does not say that the norm makes attention sharp: the queries of a "
    "head differ in direction as well as in norm. The intervention scales the norm alone.",
    "Position is held fixed as its logarithm, in a straight line. What norm and entropy share with "
    "position in another form remains in the partial correlation.",
    "Behaviour is that on these texts; spectra are of the weights alone.",
)


def report(study: QueryNormStudy, figures: Mapping[str, Sequence[str]]) -> str:
    """The report of a study. figures: files beside it by kind, one a stack."""
    parts = [
        f"# Query norm and attention entropy: {study.ref_name}",
        f"**Verdict: {study.verdict.kind}.** {study.verdict.line}",
        *_shown(figures, "correlation_map"),
        "## What the verdict rests on",
        *_numbers(study),
        "## Criteria, fixed before the run",
        _criteria(study.criteria),
        "## What was run",
        _table(("", ""), study.description.items()),
        "## Correlations by head",
        *_shown(figures, "histograms", "layers", "scatter"),
        *_heads(study.correlations.heads),
        "## Behaviour and spectra",
        *_bridge(study.bridge, figures),
        "## Limits",
        "\n".join(f"- {note}" for note in _notes(study)),
        "## Files",
        _FILES,
    ]
    return "\n\n".join(parts) + "\n"


_FILES = (
    "`heads.csv`: a row a head, over texts. `samples.csv`: a row a text and head. "
    "`behaviour.csv`: what each head does, on average. Numbers without a value are empty."
)


def _numbers(study: QueryNormStudy) -> Iterator[str]:
    found = study.verdict.numbers
    n = int(found["heads"])

    def row(name: str, form: str, *keys: str) -> tuple[str, ...]:
        return (name, *(_number(found[key], form) for key in keys))

    yield _table(
        (f"of {n} heads, {int(found['samples'])} texts", "as measured", "given position"),
        [
            row("consistent heads", "d", "raw", "partial"),
            row("their share", ".1%", "raw_share", "partial_share"),
            row("of negative r: the larger the norm, the sharper", "d", "raw_negative",
                "partial_negative"),
            row("of positive r: the larger the norm, the broader", "d", "raw_positive",
                "partial_positive"),
            row("median of Pearson's r", ".2f", "median_pearson", "median_partial_pearson"),
        ],
    )  # fmt: skip
    yield (
        f"With log position, the median r of entropy is {rounded(found['median_position_entropy'])} "
        f"and that of query norm {rounded(found['median_position_norm'])}. With entropies shuffled "
        f"in each text {study.criteria.n_permutations} times, the mean r is "
        f"{_number(found['control_mean'], '.4f')}, the mean |r| "
        f"{_number(found['control_mean_abs'], '.3f')}, and {_number(found['control_share'], '.2%')} "
        f"reach |r| ≥ {study.criteria.correlation:g}."
    )
    if found["heads_undefined"]:
        yield f"{int(found['heads_undefined'])} heads have no correlation in any text."


def _criteria(criteria: Criteria) -> str:
    values = asdict(criteria)
    rows = ((f"`{key}`", f"{values[key]:g}", what) for key, what in _CRITERIA.items())
    return _table(("criterion", "value", "what it is"), rows)


def _heads(heads: pd.DataFrame) -> Iterator[str]:
    """The heads of most negative and positive r, and those of the largest given position."""
    over = "over texts" if (heads["n_samples"] > 1).any() else "over the tokens of one text"
    yield f"In brackets: 95 % intervals, {over}. All heads are in `heads.csv`."
    raw, partial = heads["pearson"], heads["partial_pearson"]
    for name, order in (
        ("Lowest r as measured", raw),
        ("Highest r as measured", -raw),
        ("Largest |r| given position", -partial.abs()),
    ):
        top = heads.loc[order.dropna().sort_values(kind="stable").index[:_TOP]]
        if len(top):
            yield f"### {name}"
            yield _table(
                ("head", "Pearson", "Spearman", "Pearson given position",
                 "Spearman given position", "r of entropy with position",
                 "consistent as measured", "consistent given position"),
                map(_head_row, top.to_dict("records")),
            )  # fmt: skip


def _head_row(head: Mapping[str, float]) -> tuple[str, ...]:
    return (
        str(Head(str(head["stack"]), int(head["layer"]), int(head["head"]))),
        *(
            f"{rounded(head[name])} [{rounded(head[f'{name}_low'])}, {rounded(head[f'{name}_high'])}]"
            for name in CORRELATIONS
        ),
        rounded(head["position_entropy"]),
        *(f"{head[f'consistent_{kind}']:.0%}" for kind in ("raw", "partial")),
    )  # fmt: skip


def _bridge(bridge: Bridge | None, figures: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if bridge is None:
        yield "The spectra of this model were not surveyed, so that none is held against behaviour."
        return
    yield bridge.line
    yield from _shown(figures, "prediction", "associations", "classes")


def _notes(study: QueryNormStudy) -> list[str]:
    """What limits this run, and any; each once."""
    return list(dict.fromkeys((*study.notes, *study.correlations.notes, *_LIMITS)))


def _shown(figures: Mapping[str, Sequence[str]], *kinds: str) -> Iterator[str]:
    for kind in kinds:
        for name in figures.get(kind, ()):
            yield f"![{kind.replace('_', ' ')}]({name.replace(' ', '%20')})"


def _table(header: Sequence[str], rows: object) -> str:
    """A table in Markdown, whose cells may hold bars, such as those of |r|."""
    lines = [header, ["---"] * len(header), *rows]  # type: ignore[misc]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float, form: str) -> str:
    if not np.isfinite(value):
        return "–"
    return format(int(value) if form == "d" else value, form).replace("-", "−")
