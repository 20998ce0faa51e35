"""The catalogue: complete, validated with line and key, extended by the user's own files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qk_taxonomy import get_model_names, list_families
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
from qk_taxonomy.records import Family

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


def test_references_to_single_models(tmp_path: Path) -> None:
    assert model_ref("EleutherAI/pythia-70m").family == "pythia"
    assert model_ref("someone/model").family == "unlisted"
    assert model_ref("someone/model", family_name="theirs").family == "theirs"
    (tmp_path / "my-model").mkdir()
    assert model_ref(str(tmp_path / "my-model") + "/").name == "my-model"
    with pytest.raises(CatalogError):
        model_ref("someone/model", family_name="../theirs")


def test_the_readme_lists_every_model_type() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    listed = readme.partition("`model_type`s:")[2].partition("##")[0]
    assert architecture_table().model_types.keys() <= set(re.findall(r"[\w-]+", listed))
