"""The notebook of a family: valid, the same every time, and it runs from an empty folder."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner, Result
from nbclient import NotebookClient
from nbformat import NotebookNode

from qk_taxonomy import generate_notebook, list_families
from qk_taxonomy.catalog import find_family
from qk_taxonomy.cli import main
from qk_taxonomy.errors import CatalogError, SpectraFileError
from qk_taxonomy.outputs.notebook import family_notebook

ROOT = Path(__file__).resolve().parents[1]


def qk(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["notebook", *arguments])


def shown(cell: NotebookNode, kind: str) -> list[str]:
    """What a cell displayed of one kind."""
    return [output["data"][kind] for output in cell["outputs"] if kind in output.get("data", {})]


def printed(cell: NotebookNode, stream: str = "stdout") -> str:
    return "".join(o["text"] for o in cell["outputs"] if o.get("name") == stream)


def test_it_runs_in_an_empty_folder(minilm: Path) -> None:
    result = qk("--family", "MiniLM")
    assert (result.exit_code, result.stdout) == (0, "minilm.ipynb\n")
    notebook = nbformat.read("minilm.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": "."}}).execute()
    cells = {cell["id"]: cell for cell in notebook["cells"]}
    assert printed(cells["survey"]) == "data/minilm/all-MiniLM-L6-v2.safetensors\n"
    for name, n in (("classes", 1), ("boxes", 2), ("tests", 1)):
        images = shown(cells[name], "image/png")
        assert len(images) == n, name
        assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert "all-MiniLM-L6-v2: 6 classes, stability" in printed(cells["classes"])
    for name in ("heads", "layers", "narrow", "tests"):
        (table,) = shown(cells[name], "text/html")
        assert "<table" in table
    assert "72 heads of 1 model" in printed(cells["report"])
    assert "plots/report.html" in shown(cells["report"], "text/html")[0]
    assert Path("plots/report.html").is_file()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not [output for output in cell["outputs"] if "ename" in output]
            # Jupyter without widgets: huggingface_hub's bars say so.
            assert "Warning" not in printed(cell, "stderr").replace("TqdmWarning", "")


@pytest.mark.parametrize("family", list_families())
def test_every_family_has_one(family: str) -> None:
    notebook = family_notebook(find_family(family))
    nbformat.validate(notebook)
    text, parameters, *_ = notebook["cells"]
    assert parameters["metadata"]["tags"] == ["parameters"]
    assert f'FAMILY = "{family}"' in parameters["source"]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            compile(cell["source"], cell["id"], "exec")
            assert not cell["outputs"]
    gated = [model for model in find_family(family).models if model.gated]
    assert ("hf auth login" in text["source"]) == bool(gated)
    if gated:
        assert f"https://huggingface.co/{gated[0].id}" in text["source"]


def test_the_same_family_gives_the_same_file(tmp_path: Path) -> None:
    first = generate_notebook("pythia", tmp_path / "one.ipynb").read_bytes()
    assert generate_notebook("PYTHIA", str(tmp_path / "two.ipynb")).read_bytes() == first


def test_a_file_that_is_there_is_kept() -> None:
    Path("minilm.ipynb").write_text("mine")
    result = qk("--family", "minilm")
    assert result.exit_code == 1
    assert "minilm.ipynb is there already" in result.stderr
    assert "--force writes over it" in result.stderr
    assert Path("minilm.ipynb").read_text() == "mine"
    with pytest.raises(SpectraFileError, match="--output"):
        generate_notebook("minilm")
    assert qk("--family", "minilm", "--output", "folder/other.ipynb").exit_code == 0
    nbformat.validate(nbformat.read("folder/other.ipynb", as_version=4))
    assert qk("--family", "minilm", "--force").exit_code == 0
    assert (
        nbformat.read("minilm.ipynb", as_version=4)["metadata"]["kernelspec"]["name"] == "python3"
    )


def test_an_unknown_family() -> None:
    result = qk("--family", "miniml")
    assert result.exit_code == 2
    assert "Did you mean minilm" in result.stderr
    assert qk().exit_code == 2
    with pytest.raises(CatalogError):
        generate_notebook("miniml")
    assert not list(Path().iterdir())


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "mine"'
    folder.mkdir()
    shutil.copy(ROOT / "tests/neox/neox.toml", folder / "own.toml")
    text = (folder / "own.toml").read_text()
    (folder / "own.toml").write_text(text.replace('name = "neox"', 'name = "own"'))
    result = qk("--family", "own", "--catalog", str(folder))
    assert result.exit_code == 0, result.output
    cells = {c["id"]: c["source"] for c in nbformat.read("own.ipynb", as_version=4)["cells"]}
    names: dict[str, object] = {}
    exec(cells["parameters"], names)
    assert (names["FAMILY"], names["CATALOG"]) == ("own", str(folder))
    assert "catalog=CATALOG" in cells["survey"]
    assert qk("--family", "own").exit_code == 2
