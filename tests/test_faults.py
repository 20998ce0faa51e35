"""Faults of network, hub, disk and process: nothing is lost, and the numbers are the same.

Every test writes its row of tests/benchmarks/faults.md, and fails where the file has another one;
``WRITE_FAULT_TABLE=1 pytest tests/test_faults.py`` writes the file.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from huggingface_hub import HfApi, constants
from loopback_hub import CutBody, Fault, Hold, LoopbackHub, Stall, Status, WrongContentRange

from qk_taxonomy import load_spectra
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.cli import main
from qk_taxonomy.progress import Silent
from qk_taxonomy.records import ModelRef
from qk_taxonomy.survey import survey_model

pytestmark = pytest.mark.usefixtures("hub_cache", "hub_of_the_command")

TABLE = Path(__file__).parent / "benchmarks" / "faults.md"
HEAD = ["| fault | outcome | bytes fetched twice |", "|---|---|---|"]
WRITING = bool(os.environ.get("WRITE_FAULT_TABLE"))

FAULTS: list[str] = []
FOUND: dict[str, str] = {}

N_LAYERS = 6
WEIGHTS = "model.safetensors"
SPECTRA = Path("data/unlisted/tiny.safetensors")
UNFINISHED = Path("data/unlisted/.tiny.unfinished")

#: What has to be fetched again where a process ends in the middle; no layer that was kept.
UNDER_WAY = "at most the layers under way"

#: Bytes that are sent of a body before it breaks off: fewer than the smallest tensor has.
PART = 50

#: A range that begins beyond is of tensors: headers are read from here on at the latest.
HEADER = 9


Test = Callable[..., tuple[str, str]]


def faults(*names: str) -> Callable[[Test], Callable[..., None]]:
    """Run a test once a fault; it returns the outcome and the bytes fetched twice, in words."""
    FAULTS.extend(names)

    def decorate(test: Test) -> Callable[..., None]:
        @functools.wraps(test)
        def with_row(fault: str, **fixtures: object) -> None:
            outcome, twice = test(fault=fault, **fixtures)
            FOUND[fault] = f"| {fault} | {outcome} | {twice} |"
            assert WRITING or FOUND[fault] in TABLE.read_text().splitlines()

        return pytest.mark.parametrize("fault", names)(with_row)

    return decorate


@pytest.fixture
def folder(make_folder: MakeFolder) -> Path:
    return make_folder(
        tensors=llama_tensors(N_LAYERS), config=LLAMA_CONFIG | {"num_hidden_layers": N_LAYERS}
    )


def spans(folder: Path) -> dict[str, range]:
    """Where the tensors are in the file of weights."""
    data = (folder / WEIGHTS).read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    offsets = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: range(begin + start, begin + end) for name, (start, end) in offsets.items()}


def fetched_twice(hub: LoopbackHub, folder: Path) -> int:
    """Bytes of tensors; a header is read whenever a model is opened."""
    return hub.bytes_served_again(WEIGHTS, min(span.start for span in spans(folder).values()))


def download(*arguments: object) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(main, ["download", *map(str, arguments)])


def succeed(done: Result) -> None:
    assert done.exit_code == 0, done.stderr


def same_numbers(found: Path, folder: Path) -> None:
    """The file has the numbers of a survey of the folder, to the last bit."""
    local = survey_model(model_ref(str(folder), family_name="local"))
    ours, theirs = load_spectra(found), load_spectra(str(local.path))
    assert len(ours.layers) == len(theirs.layers) > 0
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        np.testing.assert_array_equal(a.singular_values, b.singular_values)
        np.testing.assert_array_equal(a.eigenvalues, b.eigenvalues)
        np.testing.assert_array_equal(a.statistics, b.statistics)


class Meanwhile(Silent):
    """Does something between opening a model and reading it."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def start(self, ref: ModelRef, layers: int, n_bytes: int) -> None:
        self.act()


PASSING: dict[str, tuple[list[Fault], int]] = {
    "429 with Retry-After": ([Status(429, {"Retry-After": "0"})] * 3, 0),
    "429 with RateLimit headers": ([Status(429, {"RateLimit": '"resolvers";r=0;t=0'})], 0),
    "429 with neither": ([Status(429)] * 3, 0),
    "500": ([Status(500)] * 3, 0),
    "502": ([Status(502)] * 3, 0),
    "503": ([Status(503)] * 3, 0),
    "body cut short": ([CutBody(PART)] * 3, 0),
    "connection reset in mid-body": ([CutBody(PART, reset=True)] * 3, 3 * PART),
    "connection stalled in mid-body": ([Stall(30, PART)] * 3, 0),
    "connection stalled before its body": ([Stall(30)] * 3, 0),
}


@faults(*PASSING)
def test_what_passes_is_asked_again(
    hub: LoopbackHub,
    folder: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, str]:
    injected, bound = PASSING[fault]
    if "stalled" in fault:
        monkeypatch.setattr("qk_taxonomy.checkpoints.transport.TIMEOUT", 0.3)
    hub.add("org/tiny", folder)
    hub.inject(WEIGHTS, *injected, beyond=HEADER)
    succeed(download("--model", "org/tiny"))
    assert not hub.faults
    same_numbers(SPECTRA, folder)
    again = fetched_twice(hub, folder)
    assert again <= bound
    return "the same numbers", f"at most the {PART} that a reset discards" if bound else "0"


@faults("hub busy while a model is opened")
def test_a_busy_hub_at_the_beginning(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.add("org/tiny", folder)
    hub.inject("/api/models/", Status(429, {"Retry-After": "0"}), Status(503))
    hub.inject("config.json", Status(502), CutBody(PART))
    hub.inject(WEIGHTS, Status(503), CutBody(4))
    succeed(download("--model", "org/tiny"))
    assert not hub.faults
    same_numbers(SPECTRA, folder)
    assert fetched_twice(hub, folder) == 0
    return "the same numbers", "0"


@faults("`Range` ignored")
def test_range_ignored(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.ignore_range = True
    hub.add("org/tiny", folder)
    succeed(download("--model", "org/tiny"))
    same_numbers(SPECTRA, folder)
    answers = [request for request in hub.requests if request.body_bytes]
    assert {request.status for request in answers} == {200}
    ranges = [request.range for request in hub.requests if WEIGHTS in request.path]
    assert len(ranges) == len(set(ranges)) > N_LAYERS  # none is asked for again
    return "the same numbers", "at most the file, for every request"


@faults("`Content-Range` wrong once")
def test_a_wrong_range_once(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.add("org/tiny", folder)
    hub.inject(WEIGHTS, WrongContentRange(), beyond=HEADER)
    succeed(download("--model", "org/tiny"))
    assert not hub.faults
    same_numbers(SPECTRA, folder)
    largest = max(request.body_bytes for request in hub.requests if WEIGHTS in request.path)
    assert fetched_twice(hub, folder) <= largest
    return "asked again, the same numbers", "at most the wrong answer"


@faults("`Content-Range` wrong always")
def test_a_wrong_range_always(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.add("org/tiny", folder)
    hub.stand(WEIGHTS, WrongContentRange(), beyond=HEADER)
    done = download("--model", "org/tiny", "--jobs", 1)
    assert done.exit_code == 1
    assert "Error: org/tiny: 127.0.0.1 answered 'bytes" in done.stderr
    assert "a proxy on the way may not understand ranges" in done.stderr
    assert not SPECTRA.exists()
    return "the model fails by name, exit 1", "-"


@faults("redirect to another host")
def test_the_token_does_not_follow_a_redirect(
    hub: LoopbackHub, folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    hub.cdn = True
    hub.add("org/tiny", folder, private=True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    succeed(download("--model", "org/tiny"))
    same_numbers(SPECTRA, folder)
    sent = {("/cdn/" in request.path, request.authorization) for request in hub.requests}
    assert sent == {(False, f"Bearer {hub.token}"), (True, None)}
    redirects = [request for request in hub.requests if request.status == 302]
    assert len(redirects) == 1
    assert fetched_twice(hub, folder) == 0
    return "the same numbers; the token stays; one redirect a file", "0"


@faults("signed URL expired")
def test_an_expired_address(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.cdn = True
    hub.add("org/tiny", folder)
    expire = Meanwhile(hub.expire_signed_urls)
    result = survey_model(
        model_ref("org/tiny"), api=HfApi(endpoint=hub.endpoint), jobs=1, progress=expire
    )
    assert [request.status for request in hub.requests].count(403) == 1
    assert [request.status for request in hub.requests].count(302) == 2
    same_numbers(Path(str(result.path)), folder)
    assert fetched_twice(hub, folder) == 0
    return "the hub is asked for a new one, the same numbers", "0"


@faults("commit changed during the run")
def test_the_commit_is_pinned(
    hub: LoopbackHub, folder: Path, make_folder: MakeFolder, fault: str
) -> tuple[str, str]:
    sha = hub.add("org/tiny", folder)
    other = make_folder("other", tensors=llama_tensors(N_LAYERS, seed=1))
    push = Meanwhile(lambda: hub.add("org/tiny", other))
    result = survey_model(model_ref("org/tiny"), api=HfApi(endpoint=hub.endpoint), progress=push)
    assert hub.repositories["org/tiny"].revisions["main"] != sha
    assert load_spectra(str(result.path)).metadata["revision"] == sha
    same_numbers(Path(str(result.path)), folder)
    assert fetched_twice(hub, folder) == 0
    return "the numbers of the commit that was opened", "0"


@faults("one shard gone for good")
def test_a_shard_gone_for_good(
    hub: LoopbackHub, folder: Path, make_folder: MakeFolder, fault: str
) -> tuple[str, str]:
    sharded = make_folder(
        "sharded",
        shards={
            "model-00001-of-00002.safetensors": lambda name: "layers.1." not in name,
            "model-00002-of-00002.safetensors": lambda name: "layers.1." in name,
        },
    )
    for name, source in (("first", folder), ("broken", sharded), ("last", folder)):
        hub.add(f"org/{name}", source)
    gone = Status(404, {"X-Error-Code": "EntryNotFound"})
    hub.stand("model-00002-of-00002", gone, beyond=HEADER)
    models = ("--model", "org/first", "--model", "org/broken", "--model", "org/last")
    done = download(*models)
    assert done.exit_code == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: org/broken: A file of org/broken is missing on the hub")
    assert "model-00002-of-00002.safetensors" in errors[0]
    for name in ("first", "last"):
        same_numbers(SPECTRA.with_name(f"{name}.safetensors"), folder)
    assert not SPECTRA.with_name("broken.safetensors").exists()
    assert fetched_twice(hub, folder) == 0
    return "the model fails by name, the others finish, exit 1", "0"


@faults("no network")
def test_no_network(
    hub: LoopbackHub, fault: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    models = [f"org/{name}" for name in ("first", "second", "third")]
    done = download(*(f"--model={model}" for model in models))
    assert done.exit_code == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert errors[0].startswith(f"Error: {', '.join(models)}: http://127.0.0.1:9 cannot be reached")
    assert "run the same command again" in errors[0]
    return "all models are named in one message, exit 1", "0"


class Command:
    """`qk-taxonomy download --model org/tiny` in a process of its own."""

    def __init__(self, hub: LoopbackHub, *, largest_file: int | None = None) -> None:
        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        self._errors = Path(f"errors-{time.monotonic_ns()}.txt")
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qk_taxonomy", "download", "--model=org/tiny", "--jobs=1"],
                env={
                    **os.environ,
                    "HF_ENDPOINT": hub.endpoint,
                    "HF_HOME": str(Path("hf").absolute()),
                    "HF_HUB_DOWNLOAD_TIMEOUT": "120",
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                stderr=errors,
                stdout=subprocess.DEVNULL,
                preexec_fn=limit,
            )

    @property
    def errors(self) -> str:
        """Standard error, so far."""
        return self._errors.read_text()

    def end(self) -> tuple[int, str]:
        """Exit status and standard error."""
        status = self.process.wait(timeout=120)
        return status, self.errors


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kept() -> set[int]:
    """The numbers of the finished layers of a run that stopped."""
    return {int(path.stem) for path in UNFINISHED.glob("*/*.safetensors")}


def run_again(hub: LoopbackHub, folder: Path) -> None:
    """The same command finishes, and fetches nothing of a layer that was kept."""
    finished = kept()
    asked = len(hub.requests)
    succeed(download("--model", "org/tiny", "--jobs", 1))
    same_numbers(SPECTRA, folder)
    assert [path.name for path in SPECTRA.parent.iterdir()] == [SPECTRA.name]
    layers: dict[int, list[range]] = {n: [] for n in range(N_LAYERS)}
    for name, span in spans(folder).items():
        if re.search(r"input_layernorm|q_proj|k_proj", name):
            layers[int(name.split(".")[2])].append(span)
    for request in hub.requests[asked:]:
        if WEIGHTS in request.path:
            sent = request.served
            for span in (span for n in finished for span in layers[n]):
                assert max(span.start, sent.start) >= min(span.stop, sent.stop)
    under_way = [span for n in layers.keys() - finished for span in layers[n]]
    assert fetched_twice(hub, folder) <= sum(map(len, under_way))


def stall_at(hub: LoopbackHub, folder: Path, layer: int, stall: Stall | Hold) -> None:
    """Have the first answer with tensors of that layer, or of a later one, stall."""
    begin = min(s.start for name, s in spans(folder).items() if f"layers.{layer}." in name)
    hub.inject(WEIGHTS, stall, beyond=begin)


@faults("disk full at the final write")
def test_a_full_disk(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    """The kernel refuses to write a file as large as that of the whole model."""
    hub.add("org/tiny", folder)
    local = survey_model(model_ref(str(folder), family_name="local"))
    whole = Path(str(local.path)).stat().st_size
    status, errors = Command(hub, largest_file=whole // 2).end()
    assert status == 1, errors
    assert "tiny.safetensors cannot be written: [Errno 27] File too large" in errors
    assert not SPECTRA.exists()
    assert kept() == set(range(N_LAYERS))
    run_again(hub, folder)
    assert fetched_twice(hub, folder) == 0
    return "exit 1, every layer is kept; a run with space finishes", "0"


@faults("SIGINT")
def test_ctrl_c(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.add("org/tiny", folder)
    held = Hold()
    stall_at(hub, folder, 3, held)
    command = Command(hub)
    wait_until(lambda: not hub.faults and kept())
    command.process.send_signal(signal.SIGINT)
    wait_until(lambda: "Interrupted" in command.errors)
    held.release()
    status, errors = command.end()
    assert status == 130, errors
    assert "the same command goes on where it can" in errors
    assert "Traceback" not in errors
    assert kept()
    run_again(hub, folder)
    assert fetched_twice(hub, folder) == 0
    return "layers are kept, a line says how to go on; a second run finishes", "0"


@faults("SIGINT twice")
def test_ctrl_c_twice(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.add("org/tiny", folder)
    stall_at(hub, folder, 3, Stall(60))
    command = Command(hub)
    wait_until(lambda: not hub.faults and kept())
    for _ in range(2):
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    begin = time.monotonic()
    status, errors = command.end()
    assert time.monotonic() - begin < 5
    assert status == 130, errors
    assert "Traceback" not in errors
    run_again(hub, folder)
    return "ends at once; the rest as with one", UNDER_WAY


@faults("SIGKILL")
def test_a_killed_process(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.add("org/tiny", folder)
    stall_at(hub, folder, 3, Stall(60, PART))
    command = Command(hub)
    wait_until(lambda: not hub.faults and kept())
    command.process.kill()
    command.end()
    run_again(hub, folder)
    return "a second run fetches the layers that are missing", UNDER_WAY


@faults("two processes on one output folder")
def test_two_processes(hub: LoopbackHub, folder: Path, fault: str) -> tuple[str, str]:
    hub.add("org/tiny", folder)
    held = Hold()
    stall_at(hub, folder, 3, held)
    first = Command(hub)
    wait_until(lambda: not hub.faults and kept())
    status, errors = Command(hub).end()
    assert status == 1, errors
    assert f"Another process is making {SPECTRA}. Give the same command again" in errors
    held.release()
    status, errors = first.end()
    assert status == 0, errors
    same_numbers(SPECTRA, folder)
    assert fetched_twice(hub, folder) == 0
    assert [file.name for file in SPECTRA.parent.iterdir()] == [SPECTRA.name]
    return "the second goes on with other models and names this one, exit 1", "0"


def test_the_table_has_these_faults_and_no_others() -> None:
    if WRITING:
        TABLE.write_text("\n".join([*HEAD, *(FOUND[name] for name in FAULTS)]) + "\n")
    lines = TABLE.read_text().splitlines()
    assert lines[:2] == HEAD
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == FAULTS
