"""The catalogue: complete, validated with line and key, extended by the user's own files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from qk_taxonomy import (
    Contrast,
    get_model_names,
    list_families,
    load_contrasts,
    training_checkpoints,
)
from qk_taxonomy.architectures import architecture_table
from qk_taxonomy.catalog import (
    EMBEDDED_FAMILY,
    check_file_name,
    family_refs,
    find_family,
    load_families,
    model_ref,
    read_family,
    user_catalog,
)
from qk_taxonomy.errors import CatalogError
from qk_taxonomy.outputs.joint import JOINT_FOLDER
from qk_taxonomy.records import CONTRAST_KINDS, Family

FAMILY = """\
name = "mine"
title = "Mine"
description = "Models of my own."
license = "mit"
aliases = ["my models"]

[[models]]
id = "me/first"
parameters = 1_000

[[models]]
id = "me/second"
parameters = 2_000
"""

CONTRAST = """\
[[contrasts]]
name = "mine"
kind = "instruct"
treatment = "me/second"
control = "me/first"
"""

PROMISED = {
    *("bert", "gemma2", "gemma3", "gpt-neo", "gpt2", "llama-3", "minilm", "mistral", "olmo2"),
    *("opt", "pythia", "pythia-deduped", "qwen2.5", "qwen3", "smollm2", "tinystories"),
}

PREDECESSORS = {
    "Qwen3": [f"Qwen/Qwen3-{size}B" for size in ("0.6", "1.7", "4", "8", "14", "32")],
    "Gemma2": [f"google/gemma-2-{size}-it" for size in ("2b", "9b", "27b")],
    "Llama": [
        *(f"meta-llama/Llama-3.1-{size}-Instruct" for size in ("8B", "70B", "405B")),
        *(f"meta-llama/Llama-3.2-{size}-Instruct" for size in ("1B", "3B")),
        "meta-llama/Llama-3.3-70B-Instruct",
    ],
    "Mistral": [f"mistralai/Mistral-7B-Instruct-v0.{minor}" for minor in (1, 2, 3)],
}


def test_promised_families_are_there() -> None:
    assert set(list_families()) >= PROMISED
    assert EMBEDDED_FAMILY in list_families()


@pytest.mark.parametrize("family", PREDECESSORS)
def test_the_predecessors_families_are_complete_under_their_old_names(family: str) -> None:
    assert set(PREDECESSORS[family]) <= set(get_model_names(family))
    assert get_model_names(family.upper()) == get_model_names(family.lower())


@pytest.mark.parametrize("family", load_families(), ids=lambda family: family.name)
def test_models_are_in_order_of_size_with_unique_file_names(family: Family) -> None:
    sizes = [model.parameters for model in family.models]
    assert sizes == sorted(sizes)
    assert min(sizes) > 0
    refs = family_refs(family)
    assert len({ref.name.casefold() for ref in refs}) == len(refs)


def test_the_catalogue_is_as_large_as_promised() -> None:
    on_hub = [[model for model in family.models if model.hub] for family in load_families()]
    assert sum(1 for models in on_hub if models) >= 60
    assert sum(len(models) for models in on_hub) >= 400


def test_a_model_is_in_one_family_only() -> None:
    ids = [model.id for family in load_families() for model in family.models]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    # The hub knows no difference of case either.
    assert len({name.casefold() for name in ids}) == len(ids)


@pytest.mark.parametrize("family", load_families(), ids=lambda family: family.name)
def test_a_family_says_enough_to_choose_by(family: Family) -> None:
    assert family.description.endswith(".")
    assert len(family.description) > 40
    assert family.url is not None
    assert family.url.startswith("https://")
    for model in family.models:
        assert "/" in model.id
        assert re.fullmatch(r"[a-z0-9.-]+", model.license)
        if not model.hub:
            assert model.package is not None


class TestTrainingCheckpoints:
    @pytest.mark.parametrize("size", ["14m", "70m", "6.9b-deduped", "410m-seed9"])
    def test_pythia_has_154(self, size: str) -> None:
        revisions = training_checkpoints(f"EleutherAI/pythia-{size}")
        assert len(revisions) == len(set(revisions)) == 154
        assert revisions[:4] == ["step0", "step1", "step2", "step4"]
        assert revisions[10:13] == ["step512", "step1000", "step2000"]
        assert revisions[-1] == "step143000"

    def test_numbers_with_leading_zeros(self) -> None:
        revisions = training_checkpoints("LLM360/Amber")
        assert (revisions[0], revisions[-1], len(revisions)) == ("ckpt_000", "ckpt_358", 359)

    @pytest.mark.parametrize("family", ["olmo", "olmo2", "pythia", "smollm3", "stanford-gpt2"])
    def test_they_are_in_order_of_training(self, family: str) -> None:
        kept = [model.checkpoints for model in find_family(family).models if model.checkpoints]
        assert kept
        for checkpoints in kept:
            steps = [tuple(map(int, re.findall(r"\d+", name))) for name in checkpoints.revisions]
            assert steps == sorted(steps)

    def test_revisions_of_another_repository(self) -> None:
        entry = next(m for m in find_family("smollm2").models if m.name == "SmolLM2-135M")
        assert entry.checkpoints is not None
        assert entry.checkpoints.repository == "HuggingFaceTB/SmolLM2-135M-intermediate-checkpoints"
        assert training_checkpoints(entry.id)[0] == "step-240000"

    def test_none_known_and_unknown_model(self) -> None:
        assert training_checkpoints("openai-community/gpt2") == []
        with pytest.raises(CatalogError, match=r"No family .* has the model 'me/mine'"):
            training_checkpoints("me/mine")

    @pytest.mark.parametrize(
        ("revisions", "message"),
        [
            ("[]", "each once"),
            ('["a", "a"]', "each once"),
            ("[1]", "wanted a revision's name"),
            ('[{ pattern = "s{step}", first = 0, last = 5, every = 2 }]', "no number of steps"),
            ('[{ pattern = "s{step}", first = 4, last = 0, every = 2 }]', "no number of steps"),
            ('[{ pattern = "s{step}", first = 0, last = 4, every = 0 }]', "no number of steps"),
            ('[{ pattern = "s", first = 0, last = 4, every = 2 }]', "needs one {step}"),
            ('[{ pattern = "{step}{step}", first = 0, last = 4, every = 2 }]', "needs one {step}"),
            ('[{ pattern = "s{step}", first = 0, last = 4 }]', "every: this key is required"),
        ],
    )
    @pytest.mark.parametrize(("place", "line"), [("license", 4), ("parameters = 2_000", 13)])
    def test_a_broken_list_is_named(
        self, tmp_path: Path, revisions: str, message: str, place: str, line: int
    ) -> None:
        table = f"checkpoints = {{ revisions = {revisions} }}\n"
        path = write(tmp_path, FAMILY.replace(place, table + place, 1))
        with pytest.raises(CatalogError, match=message) as caught:
            read_family(path)
        assert f"line {line}" in str(caught.value)


class TestContrasts:
    def test_there_are_enough_of_every_kind(self) -> None:
        kinds = Counter(contrast.kind for contrast in load_contrasts())
        assert set(kinds) == set(CONTRAST_KINDS)
        assert min(kinds.values()) >= 12

    def test_those_of_the_literature(self) -> None:
        sides = {(contrast.treatment, contrast.control) for contrast in load_contrasts()}
        r1 = "deepseek-ai/DeepSeek-R1-Distill"
        assert sides >= {
            (f"{r1}-Qwen-1.5B", "Qwen/Qwen2.5-Math-1.5B"),
            (f"{r1}-Qwen-7B", "Qwen/Qwen2.5-Math-7B"),
            (f"{r1}-Llama-8B", "meta-llama/Llama-3.1-8B"),
            ("Qwen/QwQ-32B", "Qwen/Qwen2.5-32B"),
            ("Qwen/Qwen3-4B-Thinking-2507", "Qwen/Qwen3-4B-Instruct-2507"),
            ("microsoft/Phi-4-reasoning", "microsoft/phi-4"),
        }

    def test_both_sides_are_of_one_size(self) -> None:
        sizes = {model.id: model.parameters for f in load_families() for model in f.models}
        # 16 %: R1-Distill-Qwen-1.5B stores its output embeddings, Qwen2.5-Math-1.5B ties them.
        unlike = [
            contrast.name
            for contrast in load_contrasts()
            if sizes[contrast.treatment] != pytest.approx(sizes[contrast.control], rel=0.16)
        ]
        assert unlike == []

    def test_ones_own(self, tmp_path: Path) -> None:
        write(tmp_path, FAMILY)
        write(tmp_path, CONTRAST, "contrasts.toml")
        contrasts = {contrast.name: contrast for contrast in load_contrasts(tmp_path)}
        assert contrasts["mine"] == Contrast("mine", "instruct", "me/second", "me/first")
        assert "qwq-32b" in contrasts
        assert find_family("mine", load_families(tmp_path)).title == "Mine"

    def test_ones_own_takes_the_place_of_a_built_in_one(self, tmp_path: Path) -> None:
        write(tmp_path / "families", FAMILY)
        write(tmp_path, CONTRAST.replace('"mine"', '"QwQ-32B"'), "contrasts.toml")
        assert len(load_contrasts(tmp_path)) == len(load_contrasts())
        assert "me/second" in {contrast.treatment for contrast in load_contrasts(tmp_path)}

    def test_built_in_ones_outlive_the_replacement_of_a_family(self, tmp_path: Path) -> None:
        write(tmp_path, FAMILY.replace('"mine"', '"qwq"'))
        assert "Qwen/QwQ-32B" in {contrast.treatment for contrast in load_contrasts(tmp_path)}

    @pytest.mark.parametrize(
        ("change", "line", "message"),
        [
            (('"instruct"', '"chat"'), 3, "kind: wanted one of reasoning, instruct, base-tuned"),
            (('"me/first"', '"me/third"'), 5, "control: no family .* has the model 'me/third'"),
            (('"me/second"', '"me/first"'), 5, "are the same model"),
            (('kind = "instruct"\n', ""), 1, "kind: this key is required"),
            (('"mine"', "3"), 2, "wanted a string, found 3"),
            (('"mine"', '"mine"\nnotes = ""'), 3, "notes: unknown key"),
            (("[[contrasts]]", "[[contrast]]"), 1, "contrasts: this key is required"),
            (("[[contrasts]]", "[[contrasts"), 1, "not a TOML file"),
            (('"me/first"\n', '"me/first"\n' + "{0}"), 8, "another contrast has the name MINE"),
        ],
    )
    def test_a_broken_file_is_named_with_line_and_key(
        self, tmp_path: Path, change: tuple[str, str], line: int, message: str
    ) -> None:
        write(tmp_path, FAMILY)
        text = CONTRAST.replace(*change).replace("{0}", "\n" + CONTRAST.replace("mine", "MINE"))
        path = write(tmp_path, text, "contrasts.toml")
        with pytest.raises(CatalogError, match=message) as caught:
            load_contrasts(tmp_path)
        assert str(path) in str(caught.value)
        assert f"line {line}" in str(caught.value)


def test_a_package_carries_what_is_not_on_the_hub() -> None:
    refs = family_refs(find_family("rxnfp"))
    assert [ref.name for ref in refs] == ["bert_ft", "bert_ft_10k_25s", "bert_pretrained"]
    for ref in refs:
        assert ref.architecture == "bert"
        assert ref.architecture in architecture_table().rows
        assert ref.package is not None
        assert ref.package.folder == f"models/transformers/{ref.name}"
    assert model_ref("rxnfp/bert_ft").architecture == "bert"
    assert model_ref("rxnfp/bert_ft", architecture="llama").architecture == "llama"
    packed = family_refs(find_family("smollm2-gguf"))[0]
    assert packed.name == "SmolLM2-135M-Instruct.Q4_1"
    assert packed.package is not None
    assert packed.package.folder == f"{packed.name}.gguf"


def test_unknown_family_offers_the_nearest_names() -> None:
    with pytest.raises(CatalogError, match=r"no family 'pithia'.*Did you mean pythia"):
        find_family("pithia")
    with pytest.raises(CatalogError, match="qk-taxonomy families"):
        find_family("zzzzzz")


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("nested", ["families", "."])
def test_a_catalogue_of_ones_own(tmp_path: Path, nested: str) -> None:
    write(tmp_path / "catalog" / nested, FAMILY)
    families = load_families(tmp_path / "catalog")
    assert find_family("My Models", families).models[1].id == "me/second"
    assert find_family("pythia", families).name == "pythia"


def test_the_users_config_folder(tmp_path: Path) -> None:
    assert user_catalog().is_relative_to(tmp_path)
    write(user_catalog() / "families", FAMILY)
    assert get_model_names("mine") == ["me/first", "me/second"]


def test_a_users_family_takes_the_place_of_a_built_in_one(tmp_path: Path) -> None:
    write(tmp_path / "c", FAMILY.replace('"mine"', '"Pythia"'))
    assert find_family("pythia", load_families(tmp_path / "c")).title == "Mine"


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("parameters = 2_000", 'parameters = "2k"'), 13, r"models\.1\.parameters: wanted a whole"),
        (("parameters = 1_000", "parameters = true"), 9, "wanted a whole number"),
        (('title = "Mine"', 'titel = "Mine"'), 1, r"title: this key is required"),
        (('license = "mit"', 'license = "mit"\nsize = 3'), 5, "size: unknown key"),
        (('"me/first"', '"me/../first"'), 8, "not a hub id"),
        (('"me/second"', '"you/FIRST"'), 12, "would write the same files as me/first"),
        (('name = "mine"', 'name = "../mine"'), 1, "cannot name a file"),
        (('["my models"]', "[3]"), 5, "array of strings"),
        (("[[models]]", "[[models"), 7, "is not a TOML file"),
        (('id = "me/second"\n', ""), 11, r"models\.1\.id: this key is required"),
        (('"me/second"', '"me/second"\nhub = false'), 13, r"models\.1\.hub: .* needs a package"),
        (('"me/second"', '"me/second"\npackage = {}'), 13, "distribution: this key is required"),
    ],
)
def test_a_broken_file_is_named_with_line_and_key(
    tmp_path: Path, change: tuple[str, str], line: int, message: str
) -> None:
    path = write(tmp_path, FAMILY.replace(*change))
    with pytest.raises(CatalogError, match=message) as caught:
        read_family(path)
    assert str(path) in str(caught.value)
    assert f"line {line}" in str(caught.value)


def test_two_families_may_not_share_an_alias(tmp_path: Path) -> None:
    write(tmp_path, FAMILY.replace("my models", "LLAMA"))
    with pytest.raises(CatalogError, match=r"'LLAMA' belongs to two families|'Llama' belongs"):
        load_families(tmp_path)


def test_a_catalogue_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="not a folder"):
        load_families(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a\0b", "C:\\x", "..", "x\n"])
def test_names_that_could_leave_the_output_folder(name: str) -> None:
    with pytest.raises(CatalogError, match="cannot name a file"):
        check_file_name(name, "family name")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my model (2)", "my-model-2"), ("mödel 日本", "mödel-日本"), ("a@b~c", "a-b-c")],
)
def test_a_local_model_of_any_name(folder: str, name: str) -> None:
    Path(folder).mkdir()
    assert model_ref(folder).name == name
    Path(f"{folder}.gguf").touch()
    assert model_ref(f"{folder}.gguf").name == name


@pytest.mark.parametrize("name", [JOINT_FOLDER, "tests", "contrasts", "Joint"])
def test_folders_of_the_outputs_own_are_no_family_s(name: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=f"family name '{name}' is taken"):
        model_ref("someone/model", family_name=name)
    path = write(tmp_path, FAMILY.replace('"mine"', f'"{name}"'))
    with pytest.raises(CatalogError, match=rf"line 1, name: The family name '{name}' is taken"):
        read_family(path)


def test_references_to_single_models(tmp_path: Path) -> None:
    assert model_ref("EleutherAI/pythia-70m").family == "pythia"
    assert model_ref("someone/model").family == "unlisted"
    assert model_ref("someone/model", family_name="theirs").family == "theirs"
    (tmp_path / "my-model").mkdir()
    assert model_ref(str(tmp_path / "my-model") + "/").name == "my-model"
    assert model_ref(str(tmp_path / "my-model")).architecture is None
    with pytest.raises(CatalogError):
        model_ref("someone/model", family_name="../theirs")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my-model/pytorch_model.bin", "my-model"),
        ("my-model/model.safetensors", "my-model"),
        ("my-model/tuned.bin", "tuned"),
        ("my-model/My-Model.Q4_1.gguf", "My-Model.Q4_1"),
    ],
)
def test_results_of_a_file_are_called_by_what_tells_it_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, name: str
) -> None:
    path = write(tmp_path / "my-model", "", Path(file).name)
    assert model_ref(str(path)).name == name
    monkeypatch.chdir(path.parent)
    assert model_ref(path.name).name == name
    # The hub's cache keeps files under their hash and links to them.
    path.rename(tmp_path / "0123abcd")
    path.symlink_to(tmp_path / "0123abcd")
    assert model_ref(str(path)).name == name
