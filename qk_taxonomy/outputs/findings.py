"""Tables of tests, read back from disk for a page that shows them beside their models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from qk_taxonomy.hypotheses.contrast import CHANGE, SHIFT
from qk_taxonomy.hypotheses.table import COLUMNS, SUBJECT, as_rows, empty_table
from qk_taxonomy.outputs.files import PLOT_FOLDER, stem_of
from qk_taxonomy.outputs.hypotheses import CONTRAST_FOLDER, SIDES, TABLE_OF_ONE
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention

#: Changed heads are kept up to so many: those of thirty contrasts of models of 700 heads.
MOST_CHANGED = 20_000

#: What the heads of a contrast are told apart by.
PLACE = ("family", "model", "against", "stack", "layer", "head")

_NUMBERS = {"layer", "head", "effect", "low", "high", "p_value", "q_value", "n"}

# What pandas raises for a file that is no such table.
_DAMAGE = (OSError, ValueError, TypeError, OverflowError)


@dataclass(frozen=True, eq=False)
class Findings:
    """Tests of some models, rows of ``hypotheses.table.COLUMNS``, and the heads of contrasts.

    ``tests``: all but those of single heads of contrasts, which ``changed`` has: heads, the most
    changed of each contrast first, columns :data:`PLACE` and then those of
    ``ContrastResult.heads``. ``contrasts``: the rows of ``tests`` on shifts of matched heads.
    ``notes``: sentences on what is missing or left out.
    """

    tests: pd.DataFrame
    contrasts: pd.DataFrame
    changed: pd.DataFrame
    notes: tuple[str, ...]


def read_findings(
    data_root: str | Path, models: Collection[str], circuit: Circuit, convention: Convention
) -> Findings:
    """The tests of ``models``, each ``family/stem``, that ``generate_hypothesis_tests`` wrote.

    A test of two models counts with its treatment, since controls may be twins or earlier weights
    that are not shown; one of families with those it compares; one of all models or families that
    were tested, where none of their families is missing. A file that is missing, damaged or of an
    older version is a note.
    """
    reader = _Reader(Path(data_root), circuit, convention)
    table = Path(PLOT_FOLDER) / f"{stem_of('tests', circuit, convention)}.csv"
    files = reader.contrast_files()
    tables = [reader.tests(file) for file in files if file.name.endswith(TABLE_OF_ONE)]
    if (reader.root / table).exists():
        tables.insert(0, reader.tests(table))
    else:
        reader.notes.append(f"There are no tests here: `{reader.command}` writes them to {table}.")
    shown = [rows[_is_about(rows, models)] for rows in tables if len(rows)]
    left_out = sum(map(len, tables)) - sum(map(len, shown))
    if left_out:
        reader.notes.append(
            f"{left_out} tests are left out, being of models or families that are not on this page."
        )
    rows = pd.concat([part for part in shown if len(part)] or [empty_table()], ignore_index=True)
    rows = rows.drop_duplicates([*SUBJECT, "method"], ignore_index=True)
    untested = _families(models) - set(rows["family"]) - set(rows["against"])
    if untested and any(map(len, tables)):
        reader.notes.append(
            f"No tests of {', '.join(sorted(untested))} are here: `{reader.command}` makes them."
        )
    contrasts = rows[rows["hypothesis"] == SHIFT].reset_index(drop=True)
    changed = [reader.changed(file) for file in files if not file.name.endswith(TABLE_OF_ONE)]
    return Findings(
        rows[rows["hypothesis"] != CHANGE].reset_index(drop=True),
        contrasts,
        _of_contrasts(changed, contrasts, reader.notes),
        tuple(reader.notes),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads tables below ``root``, of one circuit and convention, and notes what it cannot."""

    root: Path
    circuit: Circuit
    convention: Convention
    notes: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        """What writes the tables."""
        parts = ["qk-taxonomy test"]
        if self.circuit != CIRCUITS[0]:
            parts.append(f"--circuit {self.circuit}")
        if self.convention != CONVENTIONS[0]:
            parts.append(f"--convention {self.convention}")
        return " ".join(parts)

    def contrast_files(self) -> list[Path]:
        """Files of contrasts, relative to the root, in order of name."""
        folder = self.root / PLOT_FOLDER / CONTRAST_FOLDER
        return [path.relative_to(self.root) for path in sorted(folder.glob("*/*.csv"))]

    def tests(self, file: Path) -> pd.DataFrame:
        """The rows of a table of tests."""
        return self._read(file, COLUMNS, _as_tests, empty_table())

    def changed(self, file: Path) -> pd.DataFrame:
        """The heads of a contrast."""
        wanted = (*SIDES, "layer", "head")
        return self._read(file, wanted, _as_numbers, pd.DataFrame(columns=list(wanted)))

    def _read(
        self,
        file: Path,
        wanted: Sequence[str],
        typed: Callable[[pd.DataFrame], pd.DataFrame],
        empty: pd.DataFrame,
    ) -> pd.DataFrame:
        try:
            table = pd.read_csv(self.root / file, dtype=str, keep_default_na=False)
            missing = [name for name in wanted if name not in table]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            rows = typed(table)
        except _DAMAGE as err:
            why = " ".join(str(err).split())[:160]
            self.notes.append(
                f"{file} is left out, being damaged or of another version ({why}): "
                f"`{self.command}` writes it anew."
            )
            return empty
        mine = (rows["circuit"] == self.circuit) & (rows["convention"] == self.convention)
        return rows[mine].reset_index(drop=True)


def _numeric(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column.mask(column == "")).astype("float64")


def _as_tests(table: pd.DataFrame) -> pd.DataFrame:
    return as_rows({name: _numeric(x) if name in _NUMBERS else x for name, x in table.items()})


def _as_numbers(table: pd.DataFrame) -> pd.DataFrame:
    columns = {name: x if name in SIDES else _numeric(x) for name, x in table.items()}
    return pd.DataFrame(columns).astype({"layer": "int64", "head": "int64"})


def _families(models: Collection[str]) -> set[str]:
    return {model.partition("/")[0] for model in models}


def _is_about(rows: pd.DataFrame, models: Collection[str]) -> pd.Series:
    """Whether each test of one table is about some of the models."""
    shown = set(models)
    families = _families(models)
    family, model, against = (rows[name] for name in ("family", "model", "against"))
    no_family, no_model = family == "", model == ""
    in_one = (family + "/" + model).isin(shown)
    in_pair = no_model & family.isin(families) & against.isin(families)
    # Of two groups of models, each by its file: "a/b + a/c".
    is_group = no_family & model.str.contains("/", regex=False)
    in_group = is_group & model.map(lambda names: shown.issuperset(names.split(" + "))).astype(bool)
    tested = set(family[~no_family])
    in_all = no_family & ~is_group & (tested <= families)
    return in_one | in_pair | in_group | in_all


def _of_contrasts(
    tables: Sequence[pd.DataFrame], contrasts: pd.DataFrame, notes: list[str]
) -> pd.DataFrame:
    """The heads of those contrasts that are shown, of each the most changed where they are many."""
    sides = list(PLACE[:4])
    shown = pd.MultiIndex.from_frame(contrasts[sides])
    kept = [
        table.loc[pd.MultiIndex.from_frame(table[sides]).isin(shown)]
        for table in tables
        if len(table)
    ]
    kept = [table for table in kept if len(table)]
    if not kept:
        return pd.DataFrame(columns=list(PLACE))
    heads = pd.concat(kept, ignore_index=True).drop(columns=["circuit", "convention"])
    heads = heads.drop_duplicates(list(PLACE), ignore_index=True)
    if len(heads) <= MOST_CHANGED:
        return heads
    groups = heads.groupby(sides, sort=False)
    most = max(MOST_CHANGED // groups.ngroups, 1)
    notes.append(
        f"Of each contrast the {most} most changed heads are shown; "
        f"{Path(PLOT_FOLDER) / CONTRAST_FOLDER} has all."
    )
    return groups.head(most).reset_index(drop=True)
