"""What files of the repository say of it agrees."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from test_floors import FLOORS

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_one() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (cited,) = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[0]
    assert PROJECT["version"] == cited == newest


def test_the_licence_is_one() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"license: {PROJECT['license']}\n" in citation
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_guides_floor_plan_is_the_one_that_is_enforced() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| [^|]+\|[^|]*\|$", GUIDE, re.MULTILINE)
    assert {room: int(floor) for floor, room in rows} == FLOORS
    assert [int(floor) for floor, _ in rows] == sorted(FLOORS.values())


def test_what_the_guide_names_is_there() -> None:
    named = set(re.findall(r"`((?:\.ci|\.github|catalog|qk_taxonomy|tests)/[\w./*]+)`", GUIDE))
    assert len(named) > 15
    for path in named - {"catalog/families/NAME.toml"}:
        assert [*ROOT.glob(path.rstrip("/"))], path


def test_the_workflow_runs_scripts_that_can_be_run_by_hand() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    scripts = re.findall(r"- run: (\S+)", workflow)
    assert set(scripts) == {".ci/run", ".ci/oldest", ".ci/newest", ".ci/wheel"}
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script
        assert f"| `{script}` |" in GUIDE


def test_all_pythons_that_are_promised_are_tested() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    tested = re.search(r"python: \[(.*)\]", workflow)
    assert tested
    assert re.findall(r"3\.\d+", tested[1]) == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_committed_figures_have_captions() -> None:
    figures = [path for folder in ("ESDs", "plots") for path in (ROOT / folder).rglob("*.png")]
    assert len(figures) > 100
    assert [path.name for path in figures if not path.with_suffix(".md").is_file()] == []
