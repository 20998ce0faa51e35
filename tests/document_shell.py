"""Running a document as a newcomer would paste it: in one folder, in order, as it is written.

`qk-taxonomy` and Python blocks run in one process (``document_process``); all else is what bash
finds on the PATH, but for the programs of ``STAND_INS``. Where a line is not run as written,
``CHANGES`` says so, and why.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

from document_process import CLIENT, ask
from documents import ROOT, Block

from qk_taxonomy.catalog import load_contrasts, read_family

#: Seconds that a line may take, on a machine that others share.
LINE_SECONDS = 300
START_SECONDS = 60
HOST = "HOST:8786"


@dataclass(frozen=True)
class Change:
    """What happens instead of a line, or before it. ``added`` goes to its end."""

    line: str
    reason: str
    added: str = ""
    before: tuple[str, ...] = ()


class DocumentError(AssertionError):
    """A line or block that does not do what the document has it do."""


def check_pip(arguments: list[str]) -> None:
    """Each extra is this package's, and each other package is one that the tests run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {dist.name.lower().replace("_", "-") for dist in distributions()}
    assert arguments[:1] == ["install"], f"pip {arguments[0]} is not known here"
    for wanted in (a for a in arguments[1:] if not a.startswith("-")):
        name, *extras = re.split(r"[\[\],]+", wanted.rstrip("]"))
        if name in (".", project["name"]):
            unknown = set(extras) - project["optional-dependencies"].keys()
            assert not unknown, f"pyproject.toml has no extra {unknown}"
        else:
            assert name.lower() in installed, f"pip install {name}: not what the tests run with"


def check_in_ci(name: str) -> Callable[[list[str]], None]:
    """The program is one that .ci/run runs."""

    def check(arguments: list[str]) -> None:
        lines = (ROOT / ".ci" / "run").read_text().splitlines()
        wanted = " ".join([name, *arguments])
        assert any(line.startswith(wanted) for line in lines), f".ci/run has no line {wanted}"

    return check


#: Programs that are not run: what is checked of their arguments instead, and why.
STAND_INS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "pip": (check_pip, "CI installs the package and all that its tests need"),
    "pytest": (check_in_ci("pytest"), "CI is what runs it"),
}

_STAND_IN = """\
#!{python} -IS
import json, sys
with open({record!r}, "a") as stream:
    print(json.dumps(sys.argv), file=stream)
"""


@dataclass
class Shell:
    """Where a document's lines run, with what earlier ones left: folder, variables, names."""

    home: Path
    changes: tuple[Change, ...]
    environment: dict[str, str]
    used_changes: set[Change] = field(default_factory=set)
    used_stand_ins: set[str] = field(default_factory=set)
    cluster: list[subprocess.Popen[bytes]] = field(default_factory=list)
    scheduler: str | None = None
    output: str = ""

    @property
    def record(self) -> Path:
        return self.home / "stand-ins"

    @property
    def address(self) -> str:
        return str(self.home / "process")

    @property
    def log(self) -> Path:
        return self.home / "output"

    # Shell lines ---------------------------------------------------------------------------------

    def run_line(self, line: str) -> None:
        """Run one line. Raises DocumentError where it does not exit with 0."""
        change = next((change for change in self.changes if change.line == line), None)
        if change is not None:
            self.used_changes.add(change)
            for command in change.before:
                self.run_line(command)
            line = f"{line} {change.added}".strip()
        if line.startswith("dask "):
            self._start_dask(line)
            return
        if self.scheduler is not None:
            line = line.replace(HOST, self.scheduler)
        self._bash(line)

    def _bash(self, line: str) -> None:
        state = self.home / "state"
        script = (
            f"set -o pipefail; . {state}; {line}\n"
            f"code=$?; {{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {state}; exit $code"
        )
        self.record.write_text("")
        began = time.monotonic()
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
            try:
                code = process.wait(LINE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                code = -1
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)
        self.output = self.log.read_text(errors="replace")
        if code != 0:
            raise DocumentError(f"$ {line}\n{self.output}\nexit code {code}")
        for name, *arguments in map(json.loads, self.record.read_text().splitlines()):
            self.used_stand_ins.add(Path(name).name)
            STAND_INS[Path(name).name][0](arguments)

    # Dask ----------------------------------------------------------------------------------------

    def _start_dask(self, line: str) -> None:
        """Start a scheduler or a worker in the background, on loopback, and wait for it."""
        _, kind, *arguments = shlex.split(line.replace(HOST, self.scheduler or HOST))
        contact, log = self.home / "scheduler.json", self.home / f"{kind}.log"
        more = {
            "scheduler": ["--port", "0", "--scheduler-file", str(contact)],
            "worker": ["--nworkers", "1", "--local-directory", str(self.home)],
        }
        dask = Path(sys.executable).with_name("dask")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [dask, kind, *arguments, "--host", "127.0.0.1", "--no-dashboard", *more[kind]],
                stdout=output, stderr=subprocess.STDOUT, cwd=self.home, env=self.environment,
                start_new_session=True,
            )  # fmt: skip
        self.cluster.append(process)
        sign = {"scheduler": "Scheduler at:", "worker": "Registered to:"}[kind]
        deadline = time.monotonic() + START_SECONDS
        while sign not in log.read_text() or (kind == "scheduler" and not contact.exists()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DocumentError(f"$ {line}\n{log.read_text()}")
            time.sleep(0.05)
        if kind == "scheduler":
            self.scheduler = json.loads(contact.read_text())["address"].removeprefix("tcp://")

    def end(self) -> None:
        for process in reversed(self.cluster):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    # Other blocks --------------------------------------------------------------------------------

    def run_python(self, block: Block, name: str) -> None:
        """Run a block after those before it, with the lines that the document has."""
        folder = re.findall(r"^cd (.*)$", (self.home / "state").read_text(), re.MULTILINE)[-1]
        request = {
            "python": "\n" * (block.first_line - 1) + block.text,
            "name": name,
            "folder": shlex.split(folder)[0],
            "environment": self.environment,
        }
        began = time.monotonic()
        with self.log.open("wb") as log:
            code = ask(self.address, request, log.fileno())
        print(f"{time.monotonic() - began:6.1f} s  python, line {block.first_line}", flush=True)
        if code != 0:
            raise DocumentError(f"{block.text}\n{self.log.read_text()}\nexit code {code}")

    def compare_output(self, block: Block) -> None:
        """Each line of a block of output is one that the last command printed, but for numbers.

        Dots alone stand for what is left out.
        """
        printed = set(map(_without_numbers, self.output.splitlines()))
        for line in map(_without_numbers, block.text.splitlines()):
            if line not in printed | {"", "…", "..."}:
                raise DocumentError(f"not printed: {line}\n{self.output}")

    def use_toml(self, block: Block) -> None:
        """Put a catalogue's file where a user's is, and read it.

        A family file goes to ``families/``; contrasts beside that folder; a model's keys to the
        family file before them, whose last table is a model.
        """
        catalog = Path(self.environment["XDG_CONFIG_HOME"]) / "qk-taxonomy"
        table = tomllib.loads(block.text)
        if "contrasts" in table:
            (catalog / "contrasts.toml").write_text(block.text)
            names = {pair["name"] for pair in table["contrasts"]}
            assert names <= {pair.name for pair in load_contrasts(catalog)}
            return
        path = catalog / "families" / "mine.toml"
        if "models" in table:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif "checkpoints" in table:
            path.write_text(path.read_text() + block.text)
            checkpoints = read_family(path).models[-1].checkpoints
            assert checkpoints is not None
            named = [r for r in table["checkpoints"]["revisions"] if isinstance(r, str)]
            assert set(named) < set(checkpoints.revisions)
        else:
            raise DocumentError(f"what is this for?\n{block.text}")
        family = read_family(path)
        self.run_line(f"qk-taxonomy families {family.name}")
        self.run_line(f"qk-taxonomy families {family.name} --catalog {path.parent}")


def _without_numbers(line: str) -> str:
    return " ".join(re.sub(r"\d[\d.,]*", "#", line).split())


@contextmanager
def document_shell(
    home: Path, variables: Mapping[str, str], changes: tuple[Change, ...]
) -> Iterator[Shell]:
    """A shell in an empty folder, with ``home`` as HOME."""
    work, programs = home / "work", home / "bin"
    work.mkdir(parents=True)
    programs.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    kept.pop("VIRTUAL_ENV", None)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), kept["PATH"]])
    environment = kept | {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MPLBACKEND": "Agg",
        **variables,
    }
    shell = Shell(home, changes, environment)
    (home / "state").write_text(f"cd {shlex.quote(str(work))}\n")
    real = Path(sys.executable).with_name("qk-taxonomy")
    scripts = {
        name: _STAND_IN.format(python=sys.executable, record=str(shell.record))
        for name in STAND_INS
    }
    start = {name: value for name, value in environment.items() if name.startswith("HF_")}
    scripts["qk-taxonomy"] = CLIENT.format(
        python=sys.executable, environment=start, executable=str(real), socket=shell.address
    )
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "document_process.py"), shell.address],
        env=environment, cwd=work,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while not Path(shell.address).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("The process of the document's commands did not start.")
            time.sleep(0.02)
        yield shell
    finally:
        shell.end()
        process.kill()
        process.wait()
