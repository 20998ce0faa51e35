"""Documents, --help texts, the public names, the catalogue and the files say the same."""

from __future__ import annotations

import ast
import json
import math
import re
import shlex
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner
from documents import DOCUMENTS, README, ROOT, Document

import qk_taxonomy
from qk_taxonomy.architectures import architecture_table
from qk_taxonomy.catalog import load_families
from qk_taxonomy.cli import main

OPTION = re.compile(r"--[a-z][a-z-]*")


def options(command: click.Command) -> dict[str, click.Parameter]:
    """By each of their names, as --help lists them."""
    context = click.Context(command)
    return {name: param for param in command.get_params(context) for name in param.opts}


ALL_OPTIONS = {name for command in main.commands.values() for name in options(command)}


def lines_of(document: Document) -> list[str]:
    """Commands of shell blocks and of code spans, `qk-taxonomy` in front of them left out."""
    block_lines = [
        line
        for block in document.blocks
        if block.language == "sh"
        for _, commands in block.commands()
        for line in re.split(r" (?:&&|\|) ", commands)
        if line.startswith("qk-taxonomy ")
    ]
    spans = [
        span
        for span in document.spans
        if span.split()[:1] in (["qk-taxonomy"], *([name] for name in main.commands))
    ]
    return [line.removeprefix("qk-taxonomy ") for line in (*block_lines, *spans)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_and_their_options_exist(document: Document) -> None:
    for line in lines_of(document):
        name, *words = shlex.split(line)
        named = {word for word in words if word.startswith("-")}
        if name.startswith("-") or name == "qk-taxonomy":
            assert name in (*options(main), "qk-taxonomy"), line
            continue
        assert name in main.commands, f"there is no command {line!r}"
        assert named <= options(main.commands[name]).keys(), line


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_options_that_stand_alone_are_some_commands(document: Document) -> None:
    for span in document.spans:
        if span.startswith("--"):
            assert set(OPTION.findall(span)) <= ALL_OPTIONS, span


def test_every_command_is_in_the_readme() -> None:
    assert {line.split()[0] for line in lines_of(README)} >= main.commands.keys()


def test_every_command_has_an_example_of_its_own() -> None:
    for name, command in main.commands.items():
        assert command.epilog is not None
        assert re.match(rf"Example: qk-taxonomy {name}\b", command.epilog)


def test_defaults_are_those_of_help() -> None:
    """Wherever a document says that `--option value` is the default."""
    found = [
        (document, *match.groups())
        for document in DOCUMENTS
        for match in re.finditer(r"`(--[\w-]+) (\S+)` is the default", document.prose)
    ]
    assert found
    for document, option, value in found:
        taken = [options(c)[option] for c in main.commands.values() if option in options(c)]
        assert taken, f"{document}: {option}"
        for parameter in taken:
            # An empty choice is of all there are.
            default = parameter.default or getattr(parameter.type, "choices", ())
            assert value in (default if isinstance(default, (list, tuple)) else (str(default),))


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Document) -> None:
    for link in document.links:
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document.path).parent / path if path else ROOT / document.path
        assert target.resolve().is_relative_to(ROOT), link
        assert target.exists(), f"{document} links to {link}"
        if anchor:
            there = Document(str(target.resolve().relative_to(ROOT)))
            assert anchor in there.anchors, f"{document} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_files_of_the_repository_that_are_named_exist(document: Document) -> None:
    """What a code span places under a folder of the sources; results are made by commands."""
    places = ("catalog", "qk_taxonomy", "tests")
    for span in document.spans:
        for word in span.split():
            if word.partition("/")[0] in places and "/" in word:
                assert (ROOT / word).exists(), f"{document}: {span}"


def public_names() -> set[str]:
    """What the README's table of public names has."""
    section = README.text.partition("\n### Public names\n")[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return set(re.findall(r"`(\w+)`", "\n".join(rows)))


def imported_names() -> set[str]:
    """What blocks of documents import of the package."""
    return {
        alias.name
        for document in DOCUMENTS
        for block in document.blocks
        if block.language == "python"
        for node in ast.walk(ast.parse(block.text))
        if isinstance(node, ast.ImportFrom) and node.module == "qk_taxonomy"
        for alias in node.names
    }


def test_public_names() -> None:
    exceptions = {"__version__"}
    assert public_names() | exceptions == set(qk_taxonomy.__all__)
    assert imported_names() <= public_names()


# Numbers of the catalogue ------------------------------------------------------------------------


def number_of_models() -> int:
    return sum(len(family.models) for family in load_families())


def model_types(of_gguf: bool) -> int:
    names = architecture_table().model_types
    return sum(name.startswith("gguf-") is of_gguf for name in names)


def planned(key: str) -> float:
    """Of all the catalogue, in terabytes, as `plan` has it."""
    result = CliRunner().invoke(main, ["plan", "--json"])
    assert result.exit_code == 0, result.output
    return float(json.loads(result.stdout)["total"][key]) / 1e12


#: What a sentence counts, and how near it has to be: "some" and the like are a tenth.
COUNTS: dict[str, tuple[Callable[[], float], float]] = {
    r"Today's ([\d,]+) `model_type`s": (lambda: model_types(of_gguf=False), 0),
    r"And ([\d,]+) of GGUF files": (lambda: model_types(of_gguf=True), 0),
    r"over a (thousand) models of": (number_of_models, 0.1),
    r"models of some ([\d,]+) families": (lambda: len(load_families()), 0.1),
    r"All ([\d,]+) models of the catalogue": (number_of_models, 0),
    r"models of the catalogue hold ([\d.]+) TB": (lambda: planned("weights"), 0.02),
    r"of which a survey moves ([\d.]+) TB": (lambda: planned("moved"), 0.02),
}


@pytest.mark.parametrize("sentence", COUNTS)
def test_numbers_of_the_catalogue(sentence: str) -> None:
    counted, tolerance = COUNTS[sentence]
    said = [found for document in DOCUMENTS for found in re.findall(sentence, document.prose)]
    assert said, f"no document says {sentence}"
    for number in said:
        value = 1000.0 if number == "thousand" else float(number.replace(",", ""))
        assert math.isclose(value, counted(), rel_tol=tolerance), (sentence, counted())


def test_every_model_type_is_listed() -> None:
    types = {name.removeprefix("gguf-") for name in architecture_table().model_types}
    (listed,) = (
        document.text.partition("`model_type`s:")[2].partition("\n## ")[0]
        for document in DOCUMENTS
        if "`model_type`s:" in document.text
    )
    assert types <= set(re.findall(r"[\w-]+", listed))
