"""The harness itself: what it takes for a command, and that what fails there fails here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from document_shell import Change, DocumentError, Shell, check_pip, document_shell
from documents import Block, Document, without_comment

CHANGE = Change("echo one", "for the test", added="two", before=("echo zero > before",))


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("qk-taxonomy families     # all", "qk-taxonomy families"),
        ("# nothing", ""),
        ("echo '# kept' \"#\" # not", "echo '# kept' \"#\""),
        ("echo a#b   c", "echo a#b c"),
        (r"echo \# here", r"echo \# here"),
    ],
)
def test_comments(line: str, command: str) -> None:
    assert without_comment(line) == command


def test_a_line_goes_on_after_a_backslash() -> None:
    block = Block("sh", "echo a \\\n  b\n\n# none\necho c\n", 7)
    assert block.commands() == [(7, "echo a b"), (11, "echo c")]


def test_parts_of_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("documents.ROOT", tmp_path)
    (tmp_path / "D.md").write_text(
        "# `a` of b: C_d\n\n## Twice\n\n## Twice\n\n- in a list\n  ```sh\n  ls\n  ```\n\n"
        "Also: `x\ny`, [l](a.md#b) ![i](c.png)\n\n    indented\n"
    )
    document = Document("D.md")
    assert document.anchors == {"a-of-b-c_d", "twice", "twice-1"}
    assert document.blocks == [Block("sh", "ls\n", 9), Block("", "indented\n", 15)]
    assert document.spans == ["a", "x y"]
    assert document.links == ["a.md#b", "c.png"]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with document_shell(tmp_path_factory.mktemp("home"), {"HF_TOKEN": "a"}, (CHANGE,)) as made:
        yield made


def test_what_a_line_leaves_the_next_one_finds(shell: Shell) -> None:
    shell.run_line("mkdir -p below && cd below && export GREETING='a b'")
    shell.run_line("test \"$(basename $PWD) $GREETING\" = 'below a b' && cd ..")
    shell.run_python(Block("python", "import os\nname = os.listdir()\n", 1), "one")
    shell.run_python(Block("python", "assert 'below' in name, name\n", 1), "two")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("false | true", "exit code 1"),
        ("nothing-of-this-name", "exit code 127"),
        ("qk-taxonomy classify && true", "No such command 'classify'(.|\n)*exit code 2"),
        ("qk-taxonomy show none", "There is no spectra file none(.|\n)*exit code 1"),
        ("HF_TOKEN=b qk-taxonomy show none", "There is no spectra file none(.|\n)*exit code 1"),
    ],
)
def test_a_line_that_fails(shell: Shell, line: str, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        shell.run_line(line)


def test_a_python_block_that_fails_names_its_line(shell: Shell) -> None:
    with pytest.raises(DocumentError, match=r'"D.md", line 41(.|\n)*ZeroDivisionError'):
        shell.run_python(Block("python", "1\n1 / 0\n", 40), "D.md")


def test_output(shell: Shell) -> None:
    shell.run_line("printf 'took 1.5 s\\nfiles   2\\n'")
    shell.compare_output(Block("text", "took 3 s\n…\nfiles 20\n", 1))
    with pytest.raises(DocumentError, match="not printed: file #"):
        shell.compare_output(Block("text", "file 2\n", 1))


def test_a_change(shell: Shell) -> None:
    shell.run_line("echo one")
    assert shell.output == "one two\n"
    assert shell.used_changes == {CHANGE}
    shell.run_line("test -f before")


@pytest.mark.parametrize("wanted", [".[demos]", "qk-taxonomy[demo,none]", "no-such-package"])
def test_packages_that_there_are_not(wanted: str) -> None:
    check_pip(["install", ".[demo]", "--no-deps", "numpy"])
    with pytest.raises(AssertionError, match=r"no extra|not what the tests run with"):
        check_pip(["install", wanted])


def test_toml_that_nothing_reads(shell: Shell) -> None:
    with pytest.raises(DocumentError, match="what is this for"):
        shell.use_toml(Block("toml", "colour = 1\n", 1))
