"""Import of the predecessor's pickles: its numbers under their own name, and no others."""

from __future__ import annotations

import collections
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import MakeFolder

from qk_taxonomy import head_table, import_predecessor, load_spectra
from qk_taxonomy.cache import cache_state
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.cli import main
from qk_taxonomy.errors import (
    CatalogError,
    CheckpointError,
    QKTaxonomyError,
    ShapeError,
    SpectraFileError,
)
from qk_taxonomy.outputs.files import title_of
from qk_taxonomy.statistics.moments import STATISTICS, Stats
from qk_taxonomy.survey import survey_model
from qk_taxonomy.taxonomy.saved import source_of

Tables = dict[str, dict[Any, Any]]

#: Layers in the order in which the predecessor writes them: that of their names.
LAYERS = (0, 1, 10, 2)


def predecessor_tables(n_heads: int = 4, d_head: int = 8, dtype: str = "f4") -> Tables:
    """What the predecessor keeps of a model. Its statistics are not looked at: here they are 7."""
    rng = np.random.default_rng(0)
    tables: Tables = collections.defaultdict(dict)
    for layer in LAYERS:
        sigma = np.sort(rng.gamma(2.0, 1.0, (n_heads, d_head)), axis=-1)[:, ::-1].astype(dtype)
        for name, values in (("singular_values", sigma), ("eigen_values", sigma**2)):
            tables[name][layer] = values
            tables[f"{name}_stats"][layer] = [np.full((n_heads, 1), 7, "f4") for _ in range(6)]
    return tables


def written(content: Any, name: str = "model.pkl", protocol: int = 4) -> Path:
    path = Path(name)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_file_has_the_pickles_values(protocol: int) -> None:
    tables = predecessor_tables()
    path = import_predecessor(written(tables, protocol=protocol))
    assert path == Path("data/predecessor/model.safetensors")
    spectra = load_spectra(path)
    assert [layer.layer for layer in spectra.layers] == sorted(LAYERS)
    for layer in spectra.layers:
        assert (layer.circuit, layer.convention, layer.stack) == ("qk", "raw", "")
        sigma = tables["singular_values"][layer.layer]
        np.testing.assert_array_equal(layer.singular_values, sigma)
        assert np.isnan(layer.eigenvalues.real).all()
        assert np.isnan(layer.eigenvalues.imag).all()


def test_statistics_are_computed_anew() -> None:
    tables = predecessor_tables()
    spectra = load_spectra(import_predecessor(written(tables)))
    assert spectra.metadata["statistics"] == ",".join(STATISTICS)
    names = list(STATISTICS)
    for layer in spectra.layers:
        for head, sigma in enumerate(tables["singular_values"][layer.layer].astype(float)):
            lam, found = sigma**2, layer.statistics[head]
            z = (lam - lam.mean()) / lam.std(ddof=1)
            wanted = [lam.min(), lam.max(), lam.mean(), lam.std(ddof=1), (z**3).mean()]
            np.testing.assert_allclose(found[: Stats.KURTOSIS], wanted, rtol=1e-5)
            assert found[names.index("stable_rank")] == pytest.approx(lam.sum() / lam[0], rel=1e-5)


def test_metadata() -> None:
    path = written(predecessor_tables())
    metadata = dict(load_spectra(import_predecessor(path)).metadata)
    provenance = json.loads(metadata.pop("provenance"))
    assert provenance["formula"] == "qk-spectral-analysis"
    assert "not the spectra of W_QK" in provenance["notes"][0]
    assert "μ are not known" in provenance["notes"][1]
    assert metadata.pop("tool_version")
    assert metadata == {
        "format": "qk-taxonomy-spectra",
        "format_version": "1",
        "model_id": "model",
        "family": "predecessor",
        "revision": "unknown",
        "architecture": "unknown",
        "n_layers": "4",
        "n_heads": "4",
        "n_kv_heads": "0",
        "d_head": "8",
        "d_model": "0",
        "weights_dtype": "unknown",
        "source": "qk-spectral-analysis pickle model.pkl",
        "statistics": ",".join(STATISTICS),
    }
    given = import_predecessor(path, family_name="mine", d_model=32, n_kv_heads=2)
    found = load_spectra(given).metadata
    assert (found["n_kv_heads"], found["d_model"], found["family"]) == ("2", "32", "mine")


@pytest.mark.parametrize(
    ("file", "model_id", "place"),
    [
        ("Qwen3-0.6B.pkl", "Qwen/Qwen3-0.6B", "qwen3-predecessor/Qwen3-0.6B"),
        ("qwen3-0.6b.pickle", "Qwen/Qwen3-0.6B", "qwen3-predecessor/Qwen3-0.6B"),
        ("Qwen3-0.6B", "Qwen/Qwen3-0.6B", "qwen3-predecessor/Qwen3-0.6B"),
        ("my-0.6B.pkl", "my-0.6B", "predecessor/my-0.6B"),
    ],
)
def test_the_model_is_the_files_name(file: str, model_id: str, place: str) -> None:
    path = import_predecessor(written(predecessor_tables(), file), output_root="out")
    assert path == Path(f"out/data/{place}.safetensors")
    assert load_spectra(path).model_id == model_id


def test_only_one_of_both() -> None:
    tables = predecessor_tables()
    wanted = load_spectra(import_predecessor(written(tables)))
    for name in ("singular_values", "eigen_values"):
        path = written({name: tables[name]}, f"{name}.pkl")
        for ours, theirs in zip(
            load_spectra(import_predecessor(path)).layers, wanted.layers, strict=True
        ):
            np.testing.assert_allclose(ours.singular_values, theirs.singular_values, rtol=1e-6)
            np.testing.assert_allclose(ours.statistics, theirs.statistics, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4"])
def test_other_dtypes(dtype: str) -> None:
    tables = predecessor_tables(dtype=dtype)
    for layer in load_spectra(import_predecessor(written(tables))).layers:
        wanted = tables["singular_values"][layer.layer].astype("f4")
        np.testing.assert_array_equal(layer.singular_values, wanted)


def test_values_in_another_order_are_sorted() -> None:
    tables = predecessor_tables()
    wanted = load_spectra(import_predecessor(written(tables)))
    tables["singular_values"] = {i: x[:, ::-1] for i, x in tables["singular_values"].items()}
    for ours, theirs in zip(
        load_spectra(import_predecessor(written(tables), force=True)).layers,
        wanted.layers,
        strict=True,
    ):
        np.testing.assert_array_equal(ours.singular_values, theirs.singular_values)


def changed(name: str, layer: Any, change: Callable[[Any], Any]) -> Callable[[Tables], None]:
    def apply(tables: Tables) -> None:
        tables[name][layer] = change(tables[name].get(layer))

    return apply


def with_value(value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array = array.copy()
        array[1, 2] = value
        return array

    return change


SIGMA, LAMBDA = "singular_values", "eigen_values"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.clear(), "holds no singular_values or eigen_values.*Found: nothing"),
        (lambda t: t.update(other={}), "holds other beside what qk-spectral-analysis writes"),
        (lambda t: t.update({SIGMA: 3}), "singular_values: wanted a dict .*found a int"),
        (lambda t: t.update({SIGMA: {}}), "1 to 1024 layers, found 0 entries"),
        (lambda t: t.update({SIGMA: dict.fromkeys(range(1025), 0)}), "found 1025 entries"),
        (lambda t: t[SIGMA].pop(10), "has layers 10 in singular_values or eigen_values alone"),
        (changed(SIGMA, "x", lambda _: np.ones((4, 8))), "layer 'x': wanted the number"),
        (changed(SIGMA, -1, lambda _: np.ones((4, 8))), "layer -1: wanted the number"),
        (changed(SIGMA, 1, lambda _: 3.5), "layer 1: wanted an array .*found a float"),
        (changed(SIGMA, 1, lambda x: [x]), "layer 1: wanted an array .*found a list"),
        (changed(SIGMA, 1, lambda x: x[0]), r"layer 1: wanted an array .*found \(8,\)"),
        (changed(SIGMA, 0, lambda x: x[:, :1]), r"layer 0: .*found \(4, 1\)"),
        (changed(SIGMA, 0, lambda x: x[:0]), r"layer 0: .*found \(0, 8\)"),
        (changed(SIGMA, 0, lambda _: np.ones((1, 1025))), "d_head from 2 to 1024"),
        (changed(SIGMA, 1, lambda x: x[:3]), r"layer 1: wanted \(4, 8\) .*found \(3, 8\)"),
        (changed(LAMBDA, 2, lambda x: x[:, :7]), r"eigen_values, layer 2: wanted \(4, 8\)"),
        (changed(SIGMA, 2, with_value(np.nan)), "layer 2: .*found nan"),
        (changed(SIGMA, 2, with_value(np.inf)), "layer 2: .*found inf"),
        (changed(SIGMA, 2, with_value(-0.5)), "layer 2: .*found -0.5"),
        (changed(SIGMA, 2, with_value(1e20)), r"layer 2: .*found 1e\+20"),
        (changed(LAMBDA, 2, with_value(-0.5)), "eigen_values, layer 2: .*found -0.5"),
        (changed(LAMBDA, 2, lambda x: x * 1.001), "layer 2: .*Wanted λ = σ²"),
        (lambda t: t.update({LAMBDA: t[SIGMA]}), "Wanted λ = σ²"),
        (
            lambda t: t.update({LAMBDA: {i: x[:2] for i, x in t[LAMBDA].items()}}),
            r"are \(4, 8\) and eigen_values \(2, 8\)",
        ),
    ],
)
def test_what_is_refused(change: Callable[[Tables], Any], message: str) -> None:
    tables = predecessor_tables()
    change(tables)
    with pytest.raises(SpectraFileError, match=message) as caught:
        import_predecessor(written(tables))
    assert "model.pkl" in str(caught.value)
    assert not Path("data").exists()


def test_what_is_no_pickle_of_tables() -> None:
    with pytest.raises(SpectraFileError, match="Found: a list"):
        import_predecessor(written([1, 2]))
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_predecessor("nowhere.pkl")
    for folder in (".", "folder"):
        Path(folder).mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=r"is a folder; wanted a pickle \(\.pkl\)"):
            import_predecessor(folder)
    with pytest.raises(CatalogError, match="cannot name a file"):
        import_predecessor(written(predecessor_tables()), family_name="../x")
    with pytest.raises(CatalogError, match="family name 'joint' is taken"):
        import_predecessor(written(predecessor_tables()), family_name="joint")


def test_numbers_of_heads_that_do_not_fit() -> None:
    path = written(predecessor_tables())
    with pytest.raises(ShapeError, match=r"4 heads a layer, which 3 .*--kv-heads"):
        import_predecessor(path, n_kv_heads=3)
    for numbers in ({"d_model": 0}, {"n_kv_heads": -1}):
        with pytest.raises(ShapeError, match="Wanted a positive"):
            import_predecessor(path, **numbers)


def test_damage_ends_in_an_error_or_in_spectra() -> None:
    content = pickle.dumps(predecessor_tables(n_heads=1, d_head=2))
    rng = np.random.default_rng(0)
    outcomes = set()
    for position in rng.choice(len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        Path("model.pkl").write_bytes(damaged)
        try:
            load_spectra(import_predecessor("model.pkl", force=True))
            outcomes.add(True)
        except QKTaxonomyError:
            outcomes.add(False)
    assert outcomes == {True, False}


class TestBesideASurvey:
    def imported(self) -> Path:
        return import_predecessor(written(predecessor_tables(), "tiny.pkl"), family_name="mine")

    def test_an_import_is_no_survey(self, make_folder: MakeFolder) -> None:
        path = self.imported()
        before = path.read_bytes()
        with pytest.raises(SpectraFileError, match=r"imported spectra .*--family-name.*--force"):
            cache_state(path, "tiny", ["qk"], ["raw"])
        ref = model_ref(str(make_folder()), family_name="mine")
        with pytest.raises(SpectraFileError, match="imported spectra"):
            survey_model(ref)
        assert path.read_bytes() == before
        assert survey_model(ref, force=True).status == "computed"
        assert not load_spectra(path).is_imported

    def test_a_survey_is_kept(self, make_folder: MakeFolder) -> None:
        survey_model(model_ref(str(make_folder()), family_name="mine"))
        with pytest.raises(SpectraFileError, match=r"exists, and tiny\.pkl would take its place"):
            self.imported()
        path = Path("data/mine/tiny.safetensors")
        assert not load_spectra(path).is_imported

    def test_titles_and_tables_say_whose_formula_it_is(self, make_folder: MakeFolder) -> None:
        spectra = load_spectra(self.imported())
        survey_model(model_ref(str(make_folder("exact")), family_name="mine"))
        exact = load_spectra("data/mine/exact.safetensors")
        assert title_of(spectra, Path("tiny"), "qk", "raw").endswith(", predecessor's formula")
        assert "formula" not in title_of(exact, Path("exact"), "qk", "raw")
        formulas = head_table(".").groupby("model")["formula"].unique()
        assert formulas["tiny"].tolist() == ["predecessor"]
        assert formulas["exact"].tolist() == ["exact"]
        assert source_of(spectra).formula == spectra.formula == "predecessor"
        assert source_of(exact).formula == exact.formula == "exact"


class TestCommand:
    def test_some_fail_and_the_rest_is_saved_and_named(self) -> None:
        written(predecessor_tables(), "a.pkl")
        written({}, "b.pkl")
        result = qk("import", "a.pkl", "b.pkl", "c.pkl")
        assert result.exit_code == 1
        assert result.stdout.split() == ["data/predecessor/a.safetensors"]
        assert "2 failed" in result.stderr
        assert "b.pkl holds no singular_values" in result.stderr
        assert "c.pkl cannot be read" in result.stderr
        again = qk("import", "a.pkl")
        assert again.exit_code == 1
        assert "--force" in again.stderr
        assert qk("import", "a.pkl", "--force", "--kv-heads", 2).exit_code == 0
        assert "(2 key-value)" in qk("show", "data/predecessor/a.safetensors").output

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [([], 2), (["a.pkl", "--kv-heads", "0"], 2), (["a.pkl", "--kv-heads", "3"], 1)],
    )
    def test_wrong_calls(self, arguments: list[str], code: int) -> None:
        written(predecessor_tables(), "a.pkl")
        result = qk("import", *arguments)
        assert result.exit_code == code
        assert "Traceback" not in result.output

    def test_figures_and_show(self) -> None:
        written(predecessor_tables(), "a.pkl")
        assert qk("import", "a.pkl", "--output-root", "out").exit_code == 0
        shown = qk("show", "out/data/predecessor/a.safetensors").output
        assert "4 layers × 4 heads (unknown key-value), d_head 8, d_model unknown" in shown
        assert len([line for line in shown.splitlines() if "predecessor's formula (" in line]) == 1
        arguments = ["--family", "predecessor", "--data-root", "out"]
        assert qk("cluster", "--clusters", 2, *arguments).exit_code == 0
        assert qk("boxplots", *arguments).exit_code == 0
        assert Path("out/ESDs/predecessor/a.png").is_file()
        assert Path("out/plots/predecessor/MAX/a_MAX_box.png").is_file()
