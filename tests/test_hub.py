"""The hub, driven through the real client: byte ranges, pinned commits, caches, clear errors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors
from huggingface_hub import HfApi, constants, snapshot_download
from loopback_hub import CutBody, Hold, LoopbackHub, Stall, Status, WrongContentRange

from qk_taxonomy import load_spectra, open_checkpoint
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.stopping import StoppedError, stoppable_threads
from qk_taxonomy.checkpoints.transport import RepositoryFiles
from qk_taxonomy.errors import CheckpointError, HubUnreachableError, SpectrumError
from qk_taxonomy.records import ModelResult
from qk_taxonomy.survey import survey_model

pytestmark = pytest.mark.usefixtures("hub_cache")

Q0 = "model.layers.0.self_attn.q_proj.weight"


def open_on(hub: LoopbackHub, ref: str = "org/tiny", revision: str | None = None) -> Checkpoint:
    return open_checkpoint(ref, revision, api=HfApi(endpoint=hub.endpoint))


def survey_on(hub: LoopbackHub, ref: str = "org/tiny", **options: object) -> ModelResult:
    return survey_model(model_ref(ref), api=HfApi(endpoint=hub.endpoint), **options)  # type: ignore[arg-type]


def same_spectra(found: str | None, folder: Path) -> None:
    """The file at ``found`` has the numbers of a survey of the folder."""
    assert found is not None
    local = survey_model(model_ref(str(folder), family_name="local"))
    assert local.path is not None
    ours, theirs = load_spectra(found), load_spectra(local.path)
    assert len(ours.layers) == len(theirs.layers) > 0
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        np.testing.assert_array_equal(a.singular_values, b.singular_values)
        np.testing.assert_array_equal(a.eigenvalues, b.eigenvalues)


def test_only_the_named_tensors_cross_the_network(hub: LoopbackHub, minilm: Path) -> None:
    sha = hub.add("sentence-transformers/mini", minilm)
    result = survey_on(hub, "sentence-transformers/mini")
    named = 6 * 2 * 384 * 384 * 4
    assert named <= result.bytes_read <= 1.01 * named
    weights = hub.bytes_served("model.safetensors")
    header = int.from_bytes((minilm / "model.safetensors").read_bytes()[:8], "little") + 8
    assert weights == result.bytes_read + header
    everything = hub.bytes_served()
    json_bytes = everything - weights
    print(f"served {everything} bytes for {named} of Q and K: {everything / named:.4f}")
    assert everything <= 1.02 * (named + header + json_bytes)
    assert json_bytes < 0.01 * named
    assert load_spectra(str(result.path)).metadata["revision"] == sha


def test_no_weights_are_written_to_disk(hub: LoopbackHub, minilm: Path, tmp_path: Path) -> None:
    hub.add("sentence-transformers/mini", minilm)
    survey_on(hub, "sentence-transformers/mini")
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert written < 200_000


@pytest.mark.parametrize("cdn", [False, True])
@pytest.mark.parametrize("ignore_range", [False, True])
def test_numbers_are_those_of_the_folder(
    hub: LoopbackHub, make_folder: MakeFolder, cdn: bool, ignore_range: bool
) -> None:
    hub.cdn, hub.ignore_range = cdn, ignore_range
    folder = make_folder()
    hub.add("org/tiny", folder)
    same_spectra(survey_on(hub).path, folder)


def test_q_and_k_in_different_shards(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    folder = make_folder(
        shards={
            "model-00001-of-00003.safetensors": lambda name: "q_proj" in name,
            "model-00002-of-00003.safetensors": lambda name: "k_proj" in name,
            "model-00003-of-00003.safetensors": lambda name: not ("q_" in name or "k_" in name),
        }
    )
    hub.add("org/tiny", folder)
    same_spectra(survey_on(hub).path, folder)


def test_the_commit_is_pinned_for_the_whole_run(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    first, second = make_folder("first"), make_folder("second", tensors=None)
    (second / "config.json").write_text(json.dumps(LLAMA_CONFIG | {"note": "another commit"}))
    sha = hub.add("org/tiny", first)
    checkpoint = open_on(hub)
    hub.add("org/tiny", second)
    checkpoint.read(checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"])
    paths = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert all(f"/resolve/{sha}/" in path for path in paths)
    assert open_on(hub).revision != sha


def test_revisions(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    folder = make_folder()
    hub.add("org/tiny", folder)
    (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG | {"note": "a pull request"}))
    sha = hub.add("org/tiny", folder, revision="refs/pr/2")
    ref = model_ref("org/tiny", revision="refs/pr/2")
    result = survey_model(ref, api=HfApi(endpoint=hub.endpoint))
    assert str(result.path) == "data/unlisted/tiny@refs%2Fpr%2F2.safetensors"
    assert load_spectra(str(result.path)).metadata["revision"] == sha


def test_a_file_in_the_users_cache_is_read_from_there(
    hub: LoopbackHub, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    hub.add("org/tiny", folder)
    snapshot_download("org/tiny", endpoint=hub.endpoint)
    served = hub.bytes_served("model.safetensors")
    same_spectra(survey_on(hub).path, folder)
    assert hub.bytes_served("model.safetensors") == served
    # Without the network the cached snapshot stands for the hub.
    for why in ("offline", "unreachable"):
        if why == "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            checkpoint = open_on(hub)
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        else:
            checkpoint = open_checkpoint("org/tiny", api=HfApi(endpoint="http://127.0.0.1:9"))
        assert checkpoint.source == "hub cache"
        assert (checkpoint.model_id, checkpoint.revision) == ("org/tiny", open_on(hub).revision)


def test_what_breaks_off_is_asked_for_again(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    folder = make_folder()
    hub.add("org/tiny", folder)
    checkpoint = open_on(hub)
    info = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]
    before = hub.bytes_served("model.safetensors")
    hub.inject("model.safetensors", CutBody(after=1000), CutBody(after=500, reset=True))
    whole = open_checkpoint(str(folder)).read(info)
    torch.testing.assert_close(checkpoint.read(info), whole, rtol=0, atol=0)
    assert hub.bytes_served("model.safetensors") - before <= info.n_bytes + 1000
    assert not hub.faults


def test_a_connection_may_break_as_often_as_it_brings_something(
    hub: LoopbackHub, make_folder: MakeFolder
) -> None:
    folder = make_folder()
    hub.add("org/tiny", folder)
    checkpoint = open_on(hub)
    info = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]
    hub.inject("model.safetensors", *[CutBody(after=100)] * 25)
    whole = open_checkpoint(str(folder)).read(info)
    torch.testing.assert_close(checkpoint.read(info), whole, rtol=0, atol=0)
    assert not hub.faults


def test_what_breaks_off_where_ranges_are_ignored(
    hub: LoopbackHub, make_folder: MakeFolder
) -> None:
    hub.ignore_range = True
    folder = make_folder()
    hub.add("org/tiny", folder)
    checkpoint = open_on(hub)
    info = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]
    cuts = [CutBody(info.start - 100), CutBody(info.start + 100), CutBody(info.start + 300)]
    hub.inject("model.safetensors", *cuts)
    whole = open_checkpoint(str(folder)).read(info)
    torch.testing.assert_close(checkpoint.read(info), whole, rtol=0, atol=0)
    assert not hub.faults


def test_ignored_ranges_are_told_of_once_a_file_and_refused_far_from_its_beginning(
    hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.ignore_range = True
    names = ("a.safetensors", "b.safetensors")
    for name in names:
        with (tmp_path / name).open("wb") as sparse:
            sparse.truncate(70 * 1000**2)
    sha = hub.add("org/large", {name: tmp_path / name for name in names})
    files = RepositoryFiles("org/large", sha, hub.endpoint)
    for name in names:
        files.read(name, 3_000_000, 3_000_100)
    assert not caplog.messages
    for name in names * 2:
        assert files.read(name, 5_000_000, 5_000_100) == bytes(100)
    assert [message.split(" of ")[0] for message in caplog.messages] == [
        f"127.0.0.1 sends {name}" for name in names
    ]
    asked = len(hub.requests)
    with pytest.raises(CheckpointError, match=r"65000000 bytes before .* for every part.*Use "):
        files.read(names[0], 65_000_000, 65_000_100)
    assert len(hub.requests) - asked == 1


def test_a_repository_that_was_renamed(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    """The hub redirects to itself: there the token is sent again."""
    hub.cdn = True
    folder = make_folder()
    sha = hub.add("org/new", folder, private=True)
    place = f"/org/new/resolve/{sha}/model.safetensors"
    hub.stand("/org/old/", Status(307, {"Location": place}))
    files = RepositoryFiles("org/old", sha, hub.endpoint, hub.token)
    stored = (folder / "model.safetensors").read_bytes()
    for start in (0, 1000):
        assert files.read("model.safetensors", start, start + 500) == stored[start : start + 500]
    assert [request.status for request in hub.requests] == [307, 302, 206, 206]


def test_redirects_in_a_circle(hub: LoopbackHub) -> None:
    hub.stand("/resolve/", Status(307, {"Location": "/org/tiny/resolve/main/other"}))
    with pytest.raises(
        CheckpointError, match=r"redirects model\.safetensors of org/tiny in a circle"
    ):
        RepositoryFiles("org/tiny", "main", hub.endpoint).read("model.safetensors", 0, 8)


def test_busy_servers_are_asked_again(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    hub.add("org/tiny", make_folder())
    hub.inject("model.safetensors", Status(503), Status(429, {"Retry-After": "0"}))
    assert open_on(hub).tensors
    assert not hub.faults


def test_a_wrong_range_is_refused_where_it_stays_wrong(
    hub: LoopbackHub, make_folder: MakeFolder
) -> None:
    hub.add("org/tiny", make_folder())
    checkpoint = open_on(hub)
    hub.stand("model.safetensors", WrongContentRange())
    with pytest.raises(CheckpointError, match=r"answered 'bytes .*' where bytes from .* proxy"):
        checkpoint.read(checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"])


@pytest.mark.parametrize("cdn", [False, True])
def test_connections_are_used_again_and_the_hub_is_asked_once_a_file(
    hub: LoopbackHub, make_folder: MakeFolder, cdn: bool
) -> None:
    """Many ranges, by some threads: no more connections than threads at either host."""
    hub.cdn = cdn
    folder = make_folder()
    hub.add("org/tiny", folder)
    checkpoint = open_on(hub)
    infos = list(checkpoint.tensors.values()) * 4
    opened, asked = hub.connections, len(hub.requests)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(checkpoint.read, infos))
    requests = hub.requests[asked:]
    assert len(requests) == len(infos)
    assert sum("/resolve/" in request.path for request in requests) == (0 if cdn else len(infos))
    now = hub.connections
    assert max(now[0] - opened[0], now[1] - opened[1]) <= 3
    local = open_checkpoint(str(folder))
    for info, tensor in zip(infos, found, strict=True):
        torch.testing.assert_close(tensor, local.read(info), rtol=0, atol=0)


def test_an_expired_address_is_asked_for_anew(hub: LoopbackHub, make_folder: MakeFolder) -> None:
    hub.cdn = True
    hub.add("org/tiny", make_folder())
    checkpoint = open_on(hub)
    hub.expire_signed_urls()
    asked = len(hub.requests)
    for name in ("q", "k"):
        checkpoint.read(checkpoint.tensors[f"model.layers.0.self_attn.{name}_proj.weight"])
    found = [("/cdn/" in request.path, request.status) for request in hub.requests[asked:]]
    assert found == [(True, 403), (False, 302), (True, 206), (True, 206)]


def test_an_address_that_is_refused_when_fresh_is_an_error(
    hub: LoopbackHub, make_folder: MakeFolder
) -> None:
    hub.cdn = True
    hub.add("org/tiny", make_folder())
    checkpoint = open_on(hub)
    hub.stand("/cdn/", Status(403))
    asked = len(hub.requests)
    with pytest.raises(CheckpointError, match="answered 403 for org/tiny"):
        checkpoint.read(checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"])
    assert len(hub.requests) - asked == 3


def test_a_model_that_fails_stops_its_other_reads(
    hub: LoopbackHub, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard is damaged, while the other is to be asked for again in a minute."""
    tensors = llama_tensors()
    tensors[Q0][0, 0] = np.nan
    shards = {"a.safetensors": lambda n: ".1." not in n, "b.safetensors": lambda n: ".1." in n}
    hub.add("org/tiny", make_folder(tensors=tensors, shards=shards))
    monkeypatch.setattr("qk_taxonomy.checkpoints.pacing.FIRST_PAUSE", 60)
    damaged = Hold()
    hub.inject("a.safetensors", damaged, beyond=9)
    hub.inject("b.safetensors", Status(500), beyond=9)
    with ThreadPoolExecutor(1) as beside:
        failing = beside.submit(survey_on, hub, jobs=2)
        wait_until(lambda: not hub.faults)
        damaged.release()
        assert isinstance(failing.exception(timeout=8), SpectrumError)
    for thread in threading.enumerate():
        if thread.name.startswith("qk-layer"):
            thread.join(8)
            assert not thread.is_alive()


def test_a_read_that_is_told_to_stop_takes_no_more(
    hub: LoopbackHub, make_folder: MakeFolder
) -> None:
    hub.add("org/tiny", make_folder())
    checkpoint = open_on(hub)
    info = checkpoint.tensors[Q0]
    half, stop = Hold(after=100), threading.Event()
    hub.inject("model.safetensors", half)
    with stoppable_threads(1, "told", stop) as told, ThreadPoolExecutor(1) as others:
        reading = told.submit(checkpoint.read, info)
        wait_until(lambda: hub.requests[-1].body_bytes == 100)
        stop.set()
        half.release()
        assert isinstance(reading.exception(timeout=8), StoppedError)
        assert others.submit(checkpoint.read, info).result(timeout=8).shape == info.shape


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestErrors:
    def test_a_model_that_does_not_exist(self, hub: LoopbackHub) -> None:
        with pytest.raises(CheckpointError, match=r"no model org/none at .*HF_TOKEN"):
            open_on(hub, "org/none")

    def test_a_name_that_is_no_hub_id(self, hub: LoopbackHub) -> None:
        with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
            open_on(hub, "org/a/b")

    def test_a_revision_that_does_not_exist(
        self, hub: LoopbackHub, make_folder: MakeFolder
    ) -> None:
        hub.add("org/tiny", make_folder())
        with pytest.raises(CheckpointError, match=r"no revision 'step3'.*/tree/main"):
            open_on(hub, revision="step3")

    @pytest.mark.parametrize("token", [None, "hf_stranger"])
    def test_a_gated_model(
        self, hub: LoopbackHub, make_folder: MakeFolder, token: str | None
    ) -> None:
        hub.add("org/tiny", make_folder(), gated=True)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint("org/tiny", api=HfApi(endpoint=hub.endpoint, token=token))
        message = str(caught.value)
        assert f"Accept its terms at {hub.endpoint}/org/tiny" in message
        assert "HF_TOKEN" in message
        assert open_checkpoint(
            "org/tiny", api=HfApi(endpoint=hub.endpoint, token=hub.token)
        ).tensors

    def test_the_token_goes_to_the_hub_and_not_to_its_storage(
        self, hub: LoopbackHub, make_folder: MakeFolder
    ) -> None:
        hub.cdn = True
        hub.add("org/tiny", make_folder(), private=True)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        checkpoint = open_checkpoint("org/tiny", api=api)
        checkpoint.read(checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"])
        sent = {"/cdn/" in request.path: request.authorization for request in hub.requests}
        assert sent == {False: f"Bearer {hub.token}", True: None}

    def test_a_login_page_instead_of_the_hub(self, hub: LoopbackHub) -> None:
        api = HfApi(endpoint=hub.endpoint)
        api.model_info = lambda *_, **__: json.loads("<html>")  # type: ignore[method-assign]
        with pytest.raises(HubUnreachableError, match=r"127\.0\.0\.1.* cannot be reached"):
            open_checkpoint("org/tiny", api=api)

    def test_a_file_cut_short_on_the_hub(self, hub: LoopbackHub, make_folder: MakeFolder) -> None:
        folder = make_folder()
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        hub.add("org/tiny", folder)
        with pytest.raises(CheckpointError, match=r"model\.safetensors of org/tiny is cut short"):
            open_on(hub)

    def test_a_silent_server_is_given_up(
        self, hub: LoopbackHub, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add("org/tiny", make_folder())
        checkpoint = open_on(hub)
        monkeypatch.setattr("qk_taxonomy.checkpoints.transport.TIMEOUT", 0.05)
        hub.stand("model.safetensors", Stall(30))
        said = r"cannot be reached \([^)]*\)\. Check.* again; finished layers are kept\.$"
        with pytest.raises(CheckpointError, match=said):
            checkpoint.read(checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"])

    @pytest.mark.usefixtures("short_pauses")
    def test_no_network(self) -> None:
        with pytest.raises(
            HubUnreachableError, match=r"127\.0\.0\.1:9 cannot be reached.*network"
        ) as told:
            open_checkpoint("org/tiny", api=HfApi(endpoint="http://127.0.0.1:9"))
        # Nothing was read that could have been kept.
        assert str(told.value).endswith("then run the same command again.")

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"README.md": b"#"}, "org/tiny has no config.json.*README.md"),
            ({"tiny.Q4_K_M.gguf": b"GGUF"}, "has no config.json.*download one and give its path"),
            ({"config.json": b"{}"}, "no weights that are read: .*Found: config.json"),
            (
                {"config.json": b"{", "model.safetensors": b""},
                "config.json of org/tiny is not JSON",
            ),
            ({"config.json": b"[]", "model.safetensors": b""}, "an object is wanted"),
            (
                {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {}}'},
                "has no weight_map",
            ),
            (
                {
                    "config.json": b"{}",
                    "model.safetensors.index.json": b'{"weight_map": {"a": "../b.safetensors"}}',
                },
                "outside it",
            ),
            (
                {
                    "config.json": b"{}",
                    "model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}',
                },
                "lacks b.safetensors",
            ),
        ],
    )
    def test_repositories_without_what_a_survey_needs(
        self, hub: LoopbackHub, files: dict[str, bytes], message: str
    ) -> None:
        hub.add("org/tiny", files)
        with pytest.raises(CheckpointError, match=message):
            open_on(hub)


def test_weights_that_two_files_hold_are_refused_unless_an_index_tells(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder()
    whole = (folder / "model.safetensors").read_bytes()
    for name in ("step1.safetensors", "step2.safetensors"):
        (folder / name).write_bytes(whole)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"in step1\.safetensors and in step2\.safetensors"):
        open_checkpoint(str(folder))
    names = open_checkpoint(str(folder / "step1.safetensors")).tensors
    index = {"weight_map": {n: f"step{1 + ('q_proj' in n)}.safetensors" for n in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, info in open_checkpoint(str(folder)).tensors.items():
        assert info.file == index["weight_map"][name]


def test_a_config_without_end_is_not_read_to_it(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add("org/tiny", {"config.json": b"{" + b" " * 9_900_000})
    files = RepositoryFiles("org/tiny", sha, hub.endpoint)
    with pytest.raises(CheckpointError, match="org/tiny has more than 100000 bytes"):
        files.read_whole("config.json", 100_000)
    assert hub.bytes_served("config.json") < 9_500_000
