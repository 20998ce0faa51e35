"""The reference that pdoc makes of the public names: whole, without warnings, and readable."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from html import unescape

import pytest

import qk_taxonomy

#: What of a docstring's source must not be seen on a page.
SOURCE = re.compile(r":(?:func|class|meth|data|mod|attr):|``|~qk_taxonomy")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pages")
    command = [sys.executable, "-W", "error", "-m", "pdoc", "qk_taxonomy", "-o", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert (made.stdout, made.stderr) == ("", "")
    return (folder / "qk_taxonomy.html").read_text(encoding="utf-8")


def docstring_of(page: str, name: str) -> str:
    """The text of a name's docstring on the page; "" where it has none."""
    _, section = page.split(f'<section id="{name}">')
    own = section.split("<section", 1)[0].split("</section>", 1)[0]
    found = re.search(r'<div class="docstring">(.*?)</div>', own, re.DOTALL)
    return unescape(re.sub(r"<[^>]*>", "", found[1])).strip() if found else ""


@pytest.mark.parametrize("name", qk_taxonomy.__all__)
def test_each_public_name_is_on_the_page_with_its_docstring(page: str, name: str) -> None:
    assert docstring_of(page, name)


def test_no_source_of_docstrings_is_seen(page: str) -> None:
    shown = " ".join(re.findall(r'<div class="docstring">(.*?)</div>', page, re.DOTALL))
    assert not SOURCE.findall(shown)
    assert '<a href="#run_hypotheses">' in shown


def documented() -> Iterator[tuple[str, object]]:
    for name in qk_taxonomy.__all__:
        value = getattr(qk_taxonomy, name)
        if callable(value):
            yield name, value
        if inspect.isclass(value):
            for member, of_class in vars(value).items():
                if not member.startswith("_") and isinstance(of_class, property):
                    yield f"{name}.{member}", of_class


def test_docstrings_name_only_errors_that_can_be_imported() -> None:
    for name, value in documented():
        said = inspect.getdoc(value)
        assert said, name
        for error in re.findall(r"\b[A-Z]\w*Error\b", said):
            assert error in qk_taxonomy.__all__, name


def test_what_a_function_raises_itself_is_in_its_docstring() -> None:
    raised = 0
    for name, value in documented():
        if not inspect.isfunction(value):
            continue
        said = (inspect.getdoc(value) or "").rpartition("Raises ")[2]
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value)))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                found = re.match(r"[A-Z]\w*Error\b", ast.unparse(node.exc))
                if found:
                    assert found[0] in said, name
                    raised += 1
    assert raised


def test_every_function_says_more_than_its_name() -> None:
    for name, value in documented():
        first = (inspect.getdoc(value) or "").split("\n", 1)[0]
        assert len(first.split()) >= 3, name
