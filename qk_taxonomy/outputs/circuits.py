"""Figures of the study of full circuits on disk, of one model or of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from qk_taxonomy.cache import remove_file, write_file
from qk_taxonomy.figures.circuits.densities import density_caption, density_figure
from qk_taxonomy.figures.circuits.eigenvalues import eigenvalue_caption, eigenvalue_figure
from qk_taxonomy.figures.circuits.maps import map_caption, map_figure
from qk_taxonomy.figures.circuits.parts import circuits_of
from qk_taxonomy.figures.circuits.scaling import scaling_caption, scaling_figure
from qk_taxonomy.figures.circuits.symmetry import SymmetryCourse, symmetry_caption, symmetry_figure
from qk_taxonomy.figures.circuits.tokens import token_caption, token_figure
from qk_taxonomy.figures.circuits.unusual import unusual_caption, unusual_figure
from qk_taxonomy.outputs.drawing import Caption, Draw, remove_others, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, SCREEN_PNG, Convention, FigureFiles
from qk_taxonomy.studies.circuits.chosen import ChosenHeads, Head, chosen_heads
from qk_taxonomy.studies.circuits.records import ModelCircuits, TokenEnds
from qk_taxonomy.studies.circuits.scaling import WordStudy
from qk_taxonomy.studies.circuits.study import CircuitStudy
from qk_taxonomy.tables import csv_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Where the study's tables and figures are, below the folder of plots.
CIRCUIT_FOLDER = "circuits"

# What a model's figures are called after its name, as a regular expression.
_KINDS = (
    r"eigenvalues|densities|maps|unusual|symmetry|scaling|"
    rf"tokens_\d+\.\d+_(?:{'|'.join(CIRCUITS)})"
)


def write_circuit_study(
    study: CircuitStudy, data_root: str | Path = ".", *, figures: FigureFiles = SCREEN_PNG
) -> Iterator[Path]:
    """Write the tables and figures of a study, and yield the path of each when it is there.

    In ``<data_root>/plots/circuits/<family>/``: ``<model>.csv``, one row a head and convention;
    ``<model>_tokens.csv``, one row a token at an end of a vector; ``<model>_words.csv``, one row a
    head and circuit; and the figures of :func:`write_circuit_figures`. Raises SpectraFileError.
    """
    name, family = (str(study.table[column].iloc[0]) for column in ("model", "family"))
    folder = Path(data_root) / PLOT_FOLDER / CIRCUIT_FOLDER / family
    tables = {"": study.table, "_tokens": token_table(study.ends)}
    if study.words is not None:
        tables["_words"] = study.words.table
    else:  # that of an earlier run stays with no figure of it
        remove_file(folder / f"{name}_words.csv")
    for suffix, table in tables.items():
        yield write_file(folder / f"{name}{suffix}.csv", csv_bytes(table, digits=6))
    yield from write_circuit_figures(
        study.model,
        study.table,
        data_root,
        control=study.control,
        heads=study.heads,
        tokens=study.ends,
        words=study.words,
        figures=figures,
    )


def token_table(ends: Sequence[TokenEnds]) -> pd.DataFrame:
    """One row a token at an end of a vector, by head, vector, side and end."""
    rows = [
        {
            "stack": one.stack,
            "layer": one.layer,
            "head": one.head,
            "circuit": one.circuit,
            "convention": one.convention,
            "vector": one.kind,
            "number": one.number,
            "value_real": one.value.real,
            "value_imag": one.value.imag,
            "side": one.side,
            "end": end,
            "place": place,
            "token": token,
            "score": score,
        }
        for one in ends
        for end, tokens in (("highest", one.top), ("lowest", one.bottom))
        for place, (token, score) in enumerate(tokens, start=1)
    ]
    return pd.DataFrame(rows)


def compare_circuits(
    studies: Sequence[CircuitStudy],
    data_root: str | Path = ".",
    *,
    figures: FigureFiles = SCREEN_PNG,
) -> Iterator[Path]:
    """Write the figures that compare several models, encoders beside decoders, and yield each.

    Raises SpectraFileError.
    """
    yield from write_circuit_comparison(
        [study.table for study in studies],
        data_root,
        kinds=[study.model.metadata["kind"] for study in studies],
        figures=figures,
    )


def write_circuit_figures(
    model: ModelCircuits,
    table: pd.DataFrame,
    data_root: str | Path = ".",
    *,
    control: ModelCircuits | None = None,
    heads: Sequence[Head] = (),
    tokens: Sequence[TokenEnds] = (),
    words: WordStudy | None = None,
    figures: FigureFiles = SCREEN_PNG,
) -> Iterator[Path]:
    """Write the figures of one model's full circuits, and yield the path of each when it is there.

    table: of the model alone, a row a head and convention. heads: those shown in the complex plane;
    none: the most unusual and the most copying. Writes, in
    ``<data_root>/plots/circuits/<family>/``, ``<model>_eigenvalues.png``, ``_maps.png``,
    ``_densities.png``, ``_symmetry.png`` and ``_unusual.png``; ``_tokens_<layer>.<head>_<circuit>``
    of every head in ``tokens``; and ``_scaling.png`` of ``words``. ``<model>`` is extended by the
    stack where a model has several, and by the convention where it is not ``raw``. Figures of
    circuits that were not computed are left out, and those that an earlier run made of this model,
    and this one does not, are removed. Raises SpectraFileError.
    """
    name, family = str(table["model"].iloc[0]), str(table["family"].iloc[0])
    folder = Path(data_root) / PLOT_FOLDER / CIRCUIT_FOLDER / family
    about = _About(f"{name} ({family})", model.metadata)
    made: set[str] = set()

    def write(figure: str, draw: Draw, caption: Caption) -> list[Path]:
        made.add(figure)
        return write_figure(folder / figure, draw, caption, figures)

    for convention, stack, rows in _parts(table):
        stem = _stem(name, stack, convention)
        title = about.title(stack, convention)
        spectra = _of_stack(model, stack)
        beside = _of_stack(control, stack) if control is not None else None
        if beside is not None and not beside.layers:
            beside = None
        chosen = _shown(rows, stack, heads)
        for kind, draw, text in _drawings(spectra, rows, beside, chosen, convention):
            caption = Caption(title, f"{text} {about.source}")
            yield from write(f"{stem}_{kind}", partial(draw, title), caption)
    for ends in _by_circuit(tokens):
        one = ends[0]
        head = Head(one.stack, one.layer, one.head)
        stem = _stem(name, one.stack, one.convention)
        title = f"{about.name}, head {head}, {one.circuit.upper()}, {one.convention} weights"
        caption = Caption(title, f"{token_caption(ends)} {about.source}")
        figure = f"{stem}_tokens_{one.layer}.{one.head}_{one.circuit}"
        yield from write(figure, partial(token_figure, ends, title), caption)
    if words is not None and len(words.table):
        title = f"{about.name}: word series by full circuits"
        caption = Caption(title, f"{scaling_caption(words.table)} {about.source}")
        draw = partial(scaling_figure, words.table, title, words.summary)
        yield from write(f"{name}_scaling", draw, caption)
    stacks = {stack for _, stack, _ in _parts(table)}
    stems = {_stem(name, stack, one) for stack in {"", *stacks} for one in CONVENTIONS}
    remove_others(folder, stems, _KINDS, made)


def write_circuit_comparison(
    tables: Sequence[pd.DataFrame],
    data_root: str | Path = ".",
    *,
    kinds: Sequence[str] | None = None,
    name: str = "comparison",
    figures: FigureFiles = SCREEN_PNG,
) -> Iterator[Path]:
    """Write the figures that compare several models, and yield the path of each when it is there.

    tables: one a model. kinds: of the models, such as "encoder" and "decoder": those of one kind
    share a panel; None: all do, but for stacks, each of which has its own. Writes
    ``<data_root>/plots/circuits/<name>_symmetry.png``; the name is extended by the convention where
    it is not ``raw``. Raises SpectraFileError.
    """
    courses: dict[Convention, list[SymmetryCourse]] = {}
    for table, kind in zip(tables, kinds or [""] * len(tables), strict=True):
        for convention, stack, rows in _parts(table):
            if "qk" in circuits_of(rows):
                label = f"{rows['model'].iloc[0]} {stack}".strip()
                course = SymmetryCourse(label, kind or stack, rows)
                courses.setdefault(convention, []).append(course)
    folder = Path(data_root) / PLOT_FOLDER / CIRCUIT_FOLDER
    for convention, found in courses.items():
        title = f"Symmetry of full QK circuits by depth, {convention} weights"
        base = folder / f"{_stem(name, '', convention)}_symmetry"
        caption = Caption(title, symmetry_caption(found))
        yield from write_figure(base, partial(symmetry_figure, found, title), caption, figures)


@dataclass(frozen=True)
class _About:
    """What the titles of a model's figures say."""

    name: str
    metadata: Mapping[str, str]

    @property
    def source(self) -> str:
        """What the figures are computed from, for captions."""
        told = self.metadata
        revision = f" at revision {told['revision']}" if told.get("revision") else ""
        return f"Circuits of {told['model_id']}{revision}." if "model_id" in told else ""

    def title(self, stack: str, convention: Convention) -> str:
        n_tokens = self.metadata.get("n_tokens")
        parts = (
            self.name,
            f"{stack} stack" if stack else "",
            f"full circuits over {n_tokens} tokens" if n_tokens else "full circuits",
            f"{convention} weights",
        )
        return ", ".join(part for part in parts if part)


def _parts(table: pd.DataFrame) -> Iterator[tuple[Convention, str, pd.DataFrame]]:
    """The rows of each convention and stack."""
    for convention in CONVENTIONS:
        rows = table[table["convention"] == convention]
        # What was read from a file has nan where a model has one stack.
        stacks = rows["stack"].map(lambda stack: stack if isinstance(stack, str) else "")
        for stack in stacks.unique():
            yield convention, stack, rows[stacks == stack].assign(stack=stack)


def _stem(name: str, stack: str, convention: Convention) -> str:
    parts = (name, stack, "" if convention == CONVENTIONS[0] else convention)
    return ".".join(part for part in parts if part)


def _of_stack(model: ModelCircuits, stack: str) -> ModelCircuits:
    return replace(model, layers=tuple(one for one in model.layers if one.stack == stack))


def _shown(rows: pd.DataFrame, stack: str, heads: Sequence[Head]) -> list[ChosenHeads]:
    """The heads that are asked for; none: those that the table tells of."""
    if not heads:
        return chosen_heads(rows)
    asked = tuple(head for head in heads if head.stack == stack)
    return [ChosenHeads("chosen heads", asked)] if asked else []


def _drawings(
    model: ModelCircuits,
    rows: pd.DataFrame,
    control: ModelCircuits | None,
    chosen: Sequence[ChosenHeads],
    convention: Convention,
) -> Iterator[tuple[str, Callable[..., Figure], str]]:
    """The figures of one stack and convention: what each is called, how to draw it, its caption."""
    circuits = circuits_of(rows)
    if any(layer.convention == convention for layer in model.layers):
        if chosen:
            eigenvalues = partial(eigenvalue_figure, model, chosen)
            text = eigenvalue_caption(model, chosen, convention=convention, control=control)
            yield "eigenvalues", partial(eigenvalues, convention=convention, control=control), text
        densities = partial(density_figure, model)
        text = density_caption(model, convention=convention, control=control)
        yield "densities", partial(densities, convention=convention, control=control), text
    if circuits:
        yield "maps", partial(map_figure, rows), map_caption(rows)
        yield "unusual", partial(unusual_figure, rows), unusual_caption(rows)
    if "qk" in circuits:
        course = SymmetryCourse(str(rows["model"].iloc[0]), "", rows)
        yield "symmetry", partial(symmetry_figure, [course]), symmetry_caption([course])


def _by_circuit(tokens: Sequence[TokenEnds]) -> list[list[TokenEnds]]:
    """Tokens of one head, circuit and convention each, in the order they came."""
    groups: dict[tuple[object, ...], list[TokenEnds]] = {}
    for one in tokens:
        key = (one.convention, one.stack, one.layer, one.head, one.circuit)
        groups.setdefault(key, []).append(one)
    return list(groups.values())
