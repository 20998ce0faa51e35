"""The floor plan: a module imports from lower floors only, and packages load when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qk_taxonomy

PACKAGE = Path(qk_taxonomy.__file__).parent

FLOORS = {
    "errors": 0,
    "labels": 1,
    "records": 1,
    "resources": 1,
    "training_steps": 1,
    "wording": 1,
    "progress": 2,
    "catalog": 2,
    "architectures": 2,
    "circuits": 2,
    "statistics": 2,
    "checkpoints": 2,
    "cache": 3,
    "costs": 3,
    "untrained": 3,
    "speeds": 3,
    "controls": 3,
    "survey": 4,
    "predecessor": 4,
    "taxonomy": 4,
    "tables": 4,
    "hypotheses": 5,
    "studies": 6,
    "figures": 7,
    "report": 7,
    "outputs": 8,
    "cli": 9,
    "__main__": 10,
}

HEAVY = [
    *("torch", "umap", "matplotlib", "pandas", "seaborn", "sklearn", "scipy"),
    *("huggingface_hub", "tokenizers", "plotly", "jinja2", "nbformat"),
]

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "qk_taxonomy":
                names = [f"qk_taxonomy.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("qk_taxonomy.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = room(path.relative_to(PACKAGE).parts)
    for other in imported_rooms(path) - {own}:
        assert FLOORS[other] < FLOORS[own], f"{own} imports {other}"


def test_statistics_and_circuits_know_no_files_or_drawing() -> None:
    forbidden = {"matplotlib", "seaborn", "pathlib", "huggingface_hub", "safetensors", "pandas"}
    for folder in ("circuits", "statistics"):
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                assert not {name.split(".")[0] for name in names} & forbidden, path


@pytest.mark.parametrize(
    "statement",
    [
        "import qk_taxonomy",
        "from qk_taxonomy.cli import main; main(['--help'], standalone_mode=False)",
        "from qk_taxonomy.cli import main; main(['download', '--help'], standalone_mode=False)",
        "import qk_taxonomy; qk_taxonomy.list_families()",
        "from qk_taxonomy.cli import main; main(['plan'], standalone_mode=False)",
    ],
)
def test_heavy_packages_load_only_when_used(statement: str) -> None:
    code = f"{statement}\nimport sys; print('loaded', [m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_only_the_outputs_that_are_asked_for_load() -> None:
    heavy = ["seaborn", "statsmodels", "umap", "matplotlib"]
    code = (
        "import sys\nfrom qk_taxonomy.cli import main\n"
        "try: main(['assign', 'nowhere'], standalone_mode=False)\n"
        "except Exception as err: print(err)\n"
        f"print('loaded', [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    said, loaded = done.stdout.splitlines()
    assert said.startswith("There is no taxonomy file nowhere")
    assert loaded == "loaded []"


def test_every_public_name_exists_and_is_documented() -> None:
    for name in qk_taxonomy.__all__:
        value = getattr(qk_taxonomy, name)
        assert name == "__version__" or value.__doc__, name
    assert set(qk_taxonomy.__all__) <= set(dir(qk_taxonomy))
    with pytest.raises(AttributeError, match="no attribute 'spectrum'"):
        qk_taxonomy.spectrum  # noqa: B018
