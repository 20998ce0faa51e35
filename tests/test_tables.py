"""The table of heads: one row each, as in the files, and the same in every format."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from conftest import MakeFolder

from qk_taxonomy import head_table, load_spectra
from qk_taxonomy.cache import find_spectra, write_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.cli import main
from qk_taxonomy.errors import CatalogError, SpectraFileError
from qk_taxonomy.records import PREDECESSOR_FORMULA, LayerSpectra, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.survey import survey_model
from qk_taxonomy.tables import IDENTITY, readable_heads

KEYS = ["family", "model", "revision", "stack", "layer", "head", "circuit", "convention"]


@pytest.fixture
def surveyed(make_folder: MakeFolder) -> ModelSpectra:
    """A model of two layers and four heads on two, surveyed into data/tiny/tiny.safetensors."""
    result = survey_model(model_ref(str(make_folder()), family_name="tiny"), circuits=("qk", "ov"))
    assert result.path is not None
    return load_spectra(result.path)


@pytest.fixture
def many(surveyed: ModelSpectra) -> None:
    """Beside it: a control, revisions, an import, and a model of two stacks, one of a single
    layer."""
    tiny = surveyed.metadata
    write("tiny/tiny~random-0", surveyed, {**tiny, "control": "random-0"})
    provenance = json.dumps({"formula": PREDECESSOR_FORMULA})
    imported = {**tiny, "provenance": provenance, "n_kv_heads": "0"}
    del imported["stacks"]
    write("old/tiny", surveyed, {**imported, "family": "old", "revision": "unknown"})
    write("tiny/tiny@stage1-step500%2Fb~random-0", surveyed, {**tiny, "control": "random-0"})
    write("tiny/tiny@main", surveyed, {**tiny})
    shape = {"d_head": 8, "d_model": 24}
    stacks = {
        "encoder": {"n_layers": 3, "n_heads": 4, "n_kv_heads": 4, **shape},
        "decoder": {"n_layers": 1, "n_heads": 4, "n_kv_heads": 1, **shape},
    }
    first = surveyed.select("qk", "raw")[0]
    layers = [dataclasses.replace(first, stack="encoder", layer=i) for i in (2, 3, 7)]
    layers.append(dataclasses.replace(first, stack="decoder", layer=5))
    both = {**tiny, "family": "two", "stacks": json.dumps(stacks)}
    write("two/both", dataclasses.replace(surveyed, layers=tuple(layers)), both)


def write(place: str, spectra: ModelSpectra, metadata: dict[str, str]) -> None:
    path = Path(f"data/{place}.safetensors")
    write_spectra(path, dataclasses.replace(spectra, metadata=metadata))


def row(path: Path, spectra: ModelSpectra, layer: LayerSpectra, head: int) -> dict[str, Any]:
    """One row of the table, as its documentation has it."""
    numbers = sorted({s.layer for s in spectra.layers if s.stack == layer.stack})
    stacks = json.loads(spectra.metadata.get("stacks", "{}"))
    n_kv_heads = stacks[layer.stack]["n_kv_heads"] if stacks else 0
    shared = 4 // n_kv_heads if n_kv_heads else None
    return {
        "family": spectra.metadata["family"],
        "model": path.stem,
        "model_id": spectra.metadata["model_id"],
        "revision": spectra.metadata["revision"],
        "step": 500 if "step500" in path.stem else pd.NA,
        "control": "random-0" if "random-0" in path.stem else "",
        "formula": "predecessor" if path.parent.name == "old" else "exact",
        "stack": layer.stack,
        "layer": layer.layer,
        "depth": numbers.index(layer.layer) / (len(numbers) - 1) if len(numbers) > 1 else 0.0,
        "head": head,
        "kv_head": pd.NA if shared is None else head // shared,
        "circuit": layer.circuit,
        "convention": layer.convention,
        **dict(zip(STATISTICS, layer.statistics[head], strict=True)),
    }


@pytest.mark.usefixtures("many")
def test_every_head_of_every_file_has_its_row() -> None:
    table = head_table(".")
    rows = []
    for path in find_spectra(".", controls=True):
        spectra = load_spectra(path)
        rows += [row(path, spectra, s, head) for s in spectra.layers for head in range(4)]
    wanted = pd.DataFrame(rows)
    assert table.columns.tolist() == [*IDENTITY, *STATISTICS] == wanted.columns.tolist()
    assert len(table) == 5 * 2 * 2 * 2 * 4 + 4 * 4
    assert not table.duplicated(KEYS).any()
    types = dict.fromkeys(["depth", *STATISTICS], np.float32)
    types |= dict.fromkeys(["step", "kv_head"], "Int64")
    pd.testing.assert_frame_equal(table, wanted.astype(types))
    depths = table[table["model"] == "both"].groupby(["stack", "layer"])["depth"].first()
    assert depths.to_dict() == {
        ("encoder", 2): 0,
        ("encoder", 3): 0.5,
        ("encoder", 7): 1,
        ("decoder", 5): 0,
    }


@pytest.mark.usefixtures("many")
def test_some_of_the_table() -> None:
    table = head_table(".")
    for families in ("TINY", ["tiny"]):
        some = head_table(".", families)
        wanted = table[table["family"] == "tiny"].reset_index(drop=True)
        pd.testing.assert_frame_equal(some, wanted)
    some = head_table(".", circuits=["ov"], conventions=["folded"])
    wanted = table.query("circuit == 'ov' and convention == 'folded'").reset_index(drop=True)
    assert some["depth"].tolist() == wanted["depth"].tolist()
    pd.testing.assert_frame_equal(some, wanted)
    with pytest.raises(CatalogError, match=r"no family 'other'.*spectra of other under data"):
        head_table(".", ["other"])
    with pytest.raises(SpectraFileError, match="no spectra of pythia under data"):
        head_table(".", ["tiny", "pythia"])
    assert set(head_table(".", circuits=["ov"])["circuit"]) == {"ov"}  # of the files that have it
    with pytest.raises(SpectraFileError, match="none has ov folded or ov raw"):
        head_table(".", "two", circuits=["ov"])


def test_depth_counts_all_surveyed_layers_of_a_stack(surveyed: ModelSpectra) -> None:
    qk_alone = [s for s in surveyed.layers if s.layer == 1 or s.circuit == "qk"]
    write("tiny/tiny", dataclasses.replace(surveyed, layers=tuple(qk_alone)), {**surveyed.metadata})
    assert head_table(".", circuits=["ov"])["depth"].unique().tolist() == [1]


def test_a_statistic_that_a_file_lacks(surveyed: ModelSpectra) -> None:
    fewer = tuple(dataclasses.replace(s, statistics=s.statistics[:, 1:]) for s in surveyed.layers)
    names = ",".join(list(STATISTICS)[1:])
    older = {**surveyed.metadata, "family": "older", "statistics": names}
    write("older/tiny", dataclasses.replace(surveyed, layers=fewer), older)
    table = head_table(".")
    assert set(table.columns) == {*IDENTITY, *STATISTICS}
    assert table["MIN"].isna().tolist() == (table["family"] == "older").tolist()


@pytest.mark.usefixtures("many")
def test_files_that_cannot_be_read_are_named() -> None:
    whole = head_table(".")
    Path("data/old/damaged.safetensors").write_text("no spectra")
    with pytest.raises(SpectraFileError, match=r"data/old/damaged\.safetensors is damaged"):
        head_table(".")
    seen: list[tuple[int, int, str]] = []
    table, failures = readable_heads(progress=lambda i, n, path: seen.append((i, n, path.stem)))
    pd.testing.assert_frame_equal(table, whole)
    assert list(failures) == ["old/damaged"]
    names = ["damaged", "tiny", "tiny", "tiny@main", "tiny@stage1-step500%2Fb~random-0"]
    names += ["tiny~random-0", "both"]
    assert seen == list(zip(range(1, 8), [7] * 7, names, strict=True))


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def read_csv(source: Any, table: pd.DataFrame) -> pd.DataFrame:
    """A table from CSV, with the dtypes of another; "" is a name where that holds names."""
    empty = {name: [""] for name in table.columns if pd.api.types.is_numeric_dtype(table[name])}
    return pd.read_csv(source, dtype=table.dtypes.to_dict(), keep_default_na=False, na_values=empty)


@pytest.mark.usefixtures("many")
class TestExport:
    def test_both_formats_hold_the_table(self) -> None:
        table = head_table(".")
        assert qk("export", "heads.csv").stdout == f"heads.csv: {len(table)} rows\n"
        assert qk("export", "sub/heads.parquet").exit_code == 0
        parquet = pd.read_parquet("sub/heads.parquet")
        pd.testing.assert_frame_equal(parquet, table)
        pd.testing.assert_frame_equal(read_csv("heads.csv", table), table)

    def test_duckdb_reads_it(self) -> None:
        qk("export", "heads.parquet")
        median = "SELECT model, median(MAX) FROM 'heads.parquet' WHERE control = '' GROUP BY ALL"
        table = head_table(".")
        own = table[table["control"] == ""].groupby("model")["MAX"].median()
        assert dict(duckdb.sql(median).fetchall()) == pytest.approx(own.to_dict())
        steps = duckdb.sql("SELECT count(*) FROM 'heads.parquet' WHERE step IS NOT NULL")
        assert steps.fetchall() == [(int(table["step"].notna().sum()),)]

    def test_where_it_goes(self) -> None:
        result = qk("export")
        assert result.stdout.startswith("plots/heads.csv: ")
        whole = Path("plots/heads.csv").read_text()
        assert qk("export", "-").stdout == whole
        assert qk("export", "--format", "parquet").stdout.startswith("plots/heads.parquet: ")
        assert qk("export", "heads.txt", "--format", "csv").exit_code == 0
        assert Path("heads.txt").read_text() == whole
        content = qk("export", "-", "--format", "parquet").stdout_bytes
        pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(content)), head_table("."))
        assert {path.name for path in Path("plots").iterdir()} == {"heads.csv", "heads.parquet"}

    def test_options_choose_rows(self) -> None:
        arguments = ["--family", "tiny", "--family", "OLD", "--circuit", "ov"]
        assert qk("export", "x.csv", *arguments, "--convention", "folded").exit_code == 0
        table = head_table(".", ["tiny", "old"], circuits=["ov"], conventions=["folded"])
        pd.testing.assert_frame_equal(read_csv("x.csv", table), table)

    def test_the_rest_is_written_where_a_file_is_damaged(self) -> None:
        table = head_table(".")
        Path("data/old/damaged.safetensors").write_text("no spectra")
        result = qk("export", "x.csv")
        assert result.exit_code == 1
        assert result.stdout == f"x.csv: {len(table)} rows\n"
        assert "old/damaged: data/old/damaged.safetensors is damaged" in result.stderr
        pd.testing.assert_frame_equal(read_csv("x.csv", table), table)
        assert qk("export", "-").stdout == Path("x.csv").read_text()

    def test_nothing_is_written_where_no_file_can_be_read(self) -> None:
        Path("data/bad").mkdir()
        Path("data/bad/damaged.safetensors").write_text("no spectra")
        result = qk("export", "x.csv", "--family", "bad")
        assert result.exit_code == 1
        assert not result.stdout
        assert "bad/damaged: " in result.stderr
        assert not Path("x.csv").exists()

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["heads.xlsx"], 2, "ends in neither .csv nor .parquet"),
            (["heads"], 2, "ends in neither"),
            (["x.csv", "--format", "xlsx"], 2, "'xlsx' is not one of"),
            (["data"], 2, "is a directory"),
            (["x.csv", "--family", "other"], 2, "no family 'other'"),
            (["x.csv", "--data-root", "nowhere"], 1, "no spectra under nowhere"),
            (["x.csv", "--family", "two", "--circuit", "ov"], 1, "none has ov"),
            (["file/x.csv"], 1, "cannot be written to file"),
        ],
    )
    def test_wrong_calls(self, arguments: list[str], code: int, message: str) -> None:
        Path("file").write_text("in the way")
        result = qk("export", *arguments)
        assert result.exit_code == code
        assert message in result.stderr
        assert not result.stdout
        assert not Path("x.csv").exists()
