"""Training checkpoints from the hub: chosen, named where missing, never fetched twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from train_neox import Plan, train

from qk_taxonomy import generate_family_spectra, head_table, load_spectra
from qk_taxonomy.catalog import load_families, model_ref
from qk_taxonomy.cli import main
from qk_taxonomy.errors import CatalogError, PartialFailureError
from qk_taxonomy.records import ModelResult, ModelSpectra
from qk_taxonomy.survey import survey_model

pytestmark = pytest.mark.usefixtures("hub_cache")

FAMILY = """
name = "tiny"
title = "Tiny"
description = "Tiny models."
license = "mit"
models = [
    { id = "org/tiny", parameters = 1, checkpoints = { revisions = ["step0", "step1", "step8"] } },
    { id = "org/other", parameters = 2, checkpoints = { revisions = ["step-5", "step-9"], repository = "org/other-checkpoints" } },
    { id = "org/tuned", parameters = 3 },
]
"""  # noqa: E501


@pytest.fixture
def _catalogued(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "qk-taxonomy" / "families"
    folder.mkdir(parents=True)
    (folder / "tiny.toml").write_text(FAMILY)


@pytest.fixture
def published(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    """The revisions of two models, of which step1 is missing on the hub."""
    for number, (repository, revision) in enumerate(
        [
            *(("org/tiny", "step0"), ("org/tiny", "step8"), ("org/tiny", "main")),
            *(("org/other-checkpoints", "step-5"), ("org/other-checkpoints", "step-9")),
        ]
    ):
        folder = make_folder(str(number), tensors=llama_tensors(seed=number))
        hub.add(repository, folder, revision=revision)


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files() -> set[str]:
    return {path.stem for path in Path("data/tiny").glob("*.safetensors")}


@pytest.mark.usefixtures("_catalogued", "published", "hub_of_the_command")
class TestDownload:
    def test_what_the_hub_lacks_is_named_and_the_rest_goes_on(self) -> None:
        result = qk("download", "--model", "org/tiny", "--checkpoints", "all")
        assert result.exit_code == 1
        assert "Error: org/tiny@step1: org/tiny has no revision 'step1'." in result.stderr
        assert files() == {"tiny@step0", "tiny@step8"}
        table = head_table()
        assert table.groupby("model")["step"].unique().map(list).to_dict() == {
            "tiny@step0": [0],
            "tiny@step8": [8],
        }
        again = qk("download", "--model", "org/tiny", "--checkpoints", "all", "--json")
        rows = [(row["revision"], row["status"]) for row in json.loads(again.stdout)]
        assert rows == [("step0", "present"), ("step1", "failed"), ("step8", "present")]

    def test_each_model_of_a_family_has_its_own(self) -> None:
        result = qk("download", "--family", "tiny", "--checkpoints", "2")
        assert result.exit_code == 0
        assert "Note: left out, for want of training checkpoints: org/tuned." in result.stderr
        assert files() == {"tiny@step0", "tiny@step8", "other@step-5", "other@step-9"}
        other = load_spectra("data/tiny/other@step-9.safetensors")
        assert other.model_id == "org/other-checkpoints"
        assert qk("download", "--model", "org/tiny").exit_code == 0
        assert head_table().query("model == 'tiny'")["step"].isna().all()

    def test_a_dry_run(self) -> None:
        result = qk("download", "--model", "org/tiny", "--checkpoints", "log", "--dry-run")
        assert result.exit_code == 1
        assert "org/tiny@step0" in result.stdout
        assert "org/tiny@step8" in result.stdout
        assert not Path("data").exists()

    def test_controls_of_checkpoints(self) -> None:
        chosen = ["--checkpoints", "2", "--control", "one-layer"]
        assert qk("download", "--model", "org/tiny", *chosen).exit_code == 0
        assert files() == {"tiny@step0~one-layer", "tiny@step8~one-layer"}
        assert sorted(head_table()["step"].unique()) == [0, 8]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "org/tuned", "--checkpoints", "all"], "no training checkpoints of org/t"),
            (["--model", "org/new", "--checkpoints", "all"], "No family of the catalogue has"),
            (["--model", ".", "--checkpoints", "log"], "No family of the catalogue has"),
            (["--family", "gpt2", "--checkpoints", "log"], "no training checkpoints of dist"),
            (["--family", "tiny", "--checkpoints", "1"], "'1': wanted log, all, or a number"),
            (["--family", "tiny", "--checkpoints", "some"], "'some': wanted log, all, or a numb"),
            (
                ["--family", "tiny", "--checkpoints", "log", "--revision", "step0"],
                "--revision names them. Give one.",
            ),
        ],
    )
    def test_wrong_calls(self, arguments: list[str], message: str) -> None:
        result = qk("download", *arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
        assert not Path("data").exists()

    def test_from_python(self, hub: LoopbackHub) -> None:
        api = HfApi(endpoint=hub.endpoint)
        paths = generate_family_spectra("tiny", checkpoints=2, api=api)
        steps = ["tiny@step0", "tiny@step8", "other@step-5", "other@step-9"]
        assert [path.stem for path in paths] == steps
        with pytest.raises(PartialFailureError) as failed:
            generate_family_spectra("tiny", models=["org/tiny"], checkpoints="all", api=api)
        assert list(failed.value.failures) == ["org/tiny@step1"]
        with pytest.raises(CatalogError, match="no training checkpoints of tiny"):
            generate_family_spectra("tiny", models=["org/tuned"], checkpoints="all", api=api)


SHARDS = {
    "model-00001-of-00002.safetensors": lambda name: "layers.1" not in name,
    "model-00002-of-00002.safetensors": lambda name: "layers.1" in name,
}


@pytest.fixture
def base(make_folder: MakeFolder) -> Path:
    """A checkpoint whose second layer has a shard of its own."""
    return make_folder("base", shards=SHARDS)


@pytest.fixture
def later(make_folder: MakeFolder) -> Path:
    """The same with another second layer."""
    tensors = llama_tensors()
    other = llama_tensors(seed=1)
    tensors |= {name: other[name] for name in tensors if "layers.1" in name}
    return make_folder("later", tensors=tensors, shards=SHARDS)


def survey_at(hub: LoopbackHub, revision: str | None, **options: Any) -> ModelResult:
    ref = model_ref("org/tiny", family_name="tiny", revision=revision)
    return survey_model(ref, api=HfApi(endpoint=hub.endpoint), **options)


def spectra_at(hub: LoopbackHub, revision: str | None, **options: Any) -> ModelSpectra:
    return load_spectra(str(survey_at(hub, revision, **options).path))


def same(a: ModelSpectra, b: ModelSpectra) -> bool:
    return len(a.layers) == len(b.layers) and all(
        (x.place, x.circuit, x.convention) == (y.place, y.circuit, y.convention)
        and np.array_equal(x.singular_values, y.singular_values)
        and np.array_equal(x.eigenvalues, y.eigenvalues)
        and np.array_equal(x.statistics, y.statistics)
        for x, y in zip(a.layers, b.layers, strict=True)
    )


def weights_served(hub: LoopbackHub, folder: Path) -> dict[str, int]:
    """Bytes of tensors that were sent of each file of weights so far, headers left out."""
    served: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        served[path.name] = sum(
            max(0, request.served.stop - max(request.served.start, header))
            for request in hub.requests
            if path.name in request.path and request.method == "GET"
        )
    return served


class TestUnchanged:
    def test_layers_in_the_same_files_are_not_fetched_again(
        self, hub: LoopbackHub, base: Path, later: Path
    ) -> None:
        first, second = SHARDS
        hub.add("org/tiny", base, revision="step0")
        hub.add("org/tiny", later, revision="step1")
        survey_at(hub, "step0")
        before = weights_served(hub, base)
        assert min(before.values()) > 0
        planned = survey_at(hub, "step1", dry_run=True)
        result = survey_at(hub, "step1")
        after = weights_served(hub, later)
        assert after[first] == before[first]
        assert after[second] - before[second] == result.bytes_read == planned.bytes_read > 0
        assert result.notes == planned.notes == ("1 layer as at step0: the same files",)
        found = load_spectra(str(result.path))
        assert json.loads(found.metadata["provenance"])["unchanged_layers"] == {"step0": 1}
        forced = survey_at(hub, "step1", force=True)
        assert not forced.notes
        assert forced.bytes_read == 2 * result.bytes_read
        assert same(found, load_spectra(str(forced.path)))

    def test_a_branch_at_the_last_step_is_fetched_once(
        self, hub: LoopbackHub, make_folder: MakeFolder
    ) -> None:
        folder = make_folder()
        hub.add("org/tiny", folder, revision="step8")
        hub.add("org/tiny", folder)
        once = spectra_at(hub, "step8")
        before = weights_served(hub, folder)
        result = survey_at(hub, None)
        assert weights_served(hub, folder) == before
        assert (result.status, result.bytes_read, result.layers) == ("computed", 0, 2)
        assert result.notes == ("2 layers as at step8: the same files",)
        assert same(once, load_spectra(str(result.path)))

    def test_a_shard_of_another_name(self, hub: LoopbackHub, make_folder: MakeFolder) -> None:
        names = ("a.safetensors", "b.safetensors")
        for name in names:
            hub.add("org/tiny", make_folder(name, shards={name: bool}), revision=f"step-{name[0]}")
        survey_at(hub, "step-a")
        assert survey_at(hub, "step-b").bytes_read == 0

    @pytest.mark.parametrize("what", ["config", "circuit", "convention", "version", "damage"])
    def test_what_is_not_the_same_is_fetched(
        self, hub: LoopbackHub, make_folder: MakeFolder, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add("org/tiny", make_folder("first"), revision="step0")
        # Gemma's gains are stored less 1: the same weights make other heads.
        kind = "gemma" if what == "config" else "llama"
        config = LLAMA_CONFIG | {"model_type": kind, "note": "another commit"}
        hub.add("org/tiny", make_folder("second", config=config), revision="step1")
        first = survey_at(
            hub, "step0", conventions=("raw",) if what == "convention" else ("folded",)
        )
        options: Mapping[str, Any] = {"conventions": ("folded",)}
        if what == "circuit":
            options = {**options, "circuits": ("qk", "ov")}
        if what == "version":
            monkeypatch.setattr("qk_taxonomy.survey.unchanged.__version__", "another")
        if what == "damage":
            path = Path(str(first.path))
            path.write_bytes(path.read_bytes()[:-1])
        result = survey_at(hub, "step1", **options)
        assert result.bytes_read > 0
        assert not result.notes
        assert same(load_spectra(str(result.path)), spectra_at(hub, "step1", **options, force=True))

    def test_resuming_takes_them_too(
        self, hub: LoopbackHub, base: Path, make_folder: MakeFolder
    ) -> None:
        broken = llama_tensors()
        broken["model.layers.1.self_attn.q_proj.weight"][0, 0] = np.inf
        hub.add("org/tiny", base, revision="step0")
        hub.add("org/tiny", make_folder("broken", tensors=broken, shards=SHARDS), revision="step1")
        survey_at(hub, "step0")
        for _ in range(2):
            with pytest.raises(Exception, match=r"layer 1: .*not finite"):
                survey_at(hub, "step1")
        kept = [path.stem for path in Path("data/tiny/.tiny@step1.unfinished").glob("*/*")]
        assert kept == ["00000"]


def test_a_trained_models_checkpoints(
    hub: LoopbackHub, tmp_path: Path, hub_of_the_command: None
) -> None:
    shape = {"n_layers": 2, "n_heads": 2, "d_head": 16, "n_tokens": 300, "context": 16, "batch": 4}
    plan = Plan(**shape, steps=8, n_checkpoints=4, longest_text=400)
    trained = train(tmp_path / "neox", plan)
    assert list(trained.losses) == plan.checkpoints == [0, 1, 3, 8]
    assert trained.losses[8] < trained.losses[0]
    for step in plan.checkpoints:
        hub.add("org/neox", tmp_path / "neox" / f"step{step}", revision=f"step{step}")
    hub.add("org/neox", tmp_path / "neox" / "step8")
    folder = tmp_path / "catalog"
    folder.mkdir()
    revisions = ", ".join(f'"step{step}"' for step in plan.checkpoints)
    model = f'{{ id = "org/neox", parameters = 1, checkpoints = {{ revisions = [{revisions}] }} }}'
    heading = 'name = "neox"\ntitle = "NeoX"\ndescription = "One."\nlicense = "mit"\n'
    (folder / "neox.toml").write_text(f"{heading}models = [{model}]\n")
    assert "neox" in {family.name for family in load_families(folder)}
    result = qk("download", "--family", "neox", "--checkpoints", "all", "--catalog", folder)
    assert result.exit_code == 0, result.stderr
    table = head_table()
    assert table["step"].unique().tolist() == plan.checkpoints
    assert len(table) == 4 * 2 * 2 * 2  # steps, layers, heads, conventions
    last = qk("download", "--model", "org/neox", "--family-name", "neox")
    assert "2 layers as at step8: the same files." in last.stderr
