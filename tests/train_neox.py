"""Train a small GPT-NeoX from scratch, and keep checkpoints of it from step 0 on.

    python tests/train_neox.py FOLDER [--size neox-200k] [--checkpoints 2] [--survey ROOT]

The text is that of Python's own documentation, which every Python ships as ``pydoc`` topics; every
tenth topic is held out. A BPE of it is trained first. The checkpoints are folders ``step0`` ...
of ``model.safetensors``, ``config.json`` and ``tokenizer.json``, at steps that are even in
log(step + 1), as Pythia's are. What is printed: the loss of held-out text at each checkpoint,
beside the entropy of its own tokens, which no model that knows frequencies alone gets below.
With ``--survey`` they are then served as revisions of a hub on this machine, and surveyed into
ROOT/data/neox.

The sizes differ in width alone: heads of d_head 24, as many as their d_model has room for, in four
layers. Text, vocabulary, steps and seed are the same. ``tests/neox/neox.toml`` is the family.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import click
import torch
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from tokenizers import ByteLevelBPETokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils.logging import disable_progress_bar

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.records import CIRCUITS, ModelResult
from qk_taxonomy.survey import survey
from qk_taxonomy.training_steps import choose_checkpoints

#: Heads a layer of each size; its name tells the parameters.
SIZES = {"neox-80k": 1, "neox-200k": 2, "neox-400k": 3, "neox-640k": 4, "neox-1m": 6}

ORGANISATION = "python-docs"

_HELD_OUT_EVERY = 10
_WARM_UP = 0.05


@dataclass(frozen=True)
class Plan:
    """What to train: the model's shape, and how long on how much at a time."""

    n_layers: int = 4
    n_heads: int = SIZES["neox-1m"]
    d_head: int = 24
    n_tokens: int = 1024
    context: int = 128
    batch: int = 16
    steps: int = 1000
    n_checkpoints: int = 20
    learning_rate: float = 2e-3
    seed: int = 0
    longest_text: int | None = None

    @property
    def config(self) -> GPTNeoXConfig:
        d_model = self.n_heads * self.d_head
        return GPTNeoXConfig(
            vocab_size=self.n_tokens,
            hidden_size=d_model,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            intermediate_size=4 * d_model,
            max_position_embeddings=self.context,
            hidden_dropout=0.1,
            bos_token_id=None,
            eos_token_id=None,
        )

    @property
    def checkpoints(self) -> list[int]:
        names = [f"step{step}" for step in range(self.steps + 1)]
        return [int(name[4:]) for name in choose_checkpoints(names, self.n_checkpoints)]


@dataclass(frozen=True)
class Trained:
    """Held-out loss by step, and the entropy of the held-out tokens; both in nats a token."""

    losses: dict[int, float]
    unigram_entropy: float


def train(folder: Path, plan: Plan) -> Trained:
    """Train ``plan``, and write its checkpoints into ``folder``."""
    texts = [topics[name][: plan.longest_text] for name in sorted(topics)]
    held_out = texts[::_HELD_OUT_EVERY]
    seen = [text for i, text in enumerate(texts) if i % _HELD_OUT_EVERY]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(seen, vocab_size=plan.n_tokens, show_progress=False)
    learnt, unseen = (
        torch.tensor([token for text in part for token in bpe.encode(text).ids])
        for part in (seen, held_out)
    )
    torch.manual_seed(plan.seed)
    model = GPTNeoXForCausalLM(plan.config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan.steps))
    losses: dict[int, float] = {}
    batches = _batches(learnt, plan)
    for step in range(plan.steps + 1):
        if step in plan.checkpoints:
            losses[step] = held_out_loss(model, unseen, plan.context)
            model.save_pretrained(folder / f"step{step}")
            bpe.save(str(folder / f"step{step}" / "tokenizer.json"))
        if step == plan.steps:
            break
        tokens = next(batches)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return Trained(losses, _entropy(unseen))


def held_out_loss(model: GPTNeoXForCausalLM, tokens: torch.Tensor, context: int) -> float:
    """Mean cross-entropy of whole contexts of ``tokens``, in nats a token."""
    model.eval()
    windows = tokens[: len(tokens) // context * context].reshape(-1, context)
    with torch.no_grad():
        losses = [
            (float(model(input_ids=part, labels=part).loss), len(part))
            for part in windows.split(32)
        ]
    model.train()
    return sum(loss * n for loss, n in losses) / len(windows)


def _batches(tokens: torch.Tensor, plan: Plan) -> Iterator[torch.Tensor]:
    """Contexts that begin anywhere, (batch, context)."""
    chance = torch.Generator().manual_seed(plan.seed)
    offsets = torch.arange(plan.context)
    while True:
        starts = torch.randint(len(tokens) - plan.context, (plan.batch, 1), generator=chance)
        yield tokens[starts + offsets]


def _rate(step: int, steps: int) -> float:
    """A linear rise, then a cosine down to a tenth."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _entropy(tokens: torch.Tensor) -> float:
    counts = Counter(tokens.tolist()).values()
    return -sum(n / len(tokens) * math.log(n / len(tokens)) for n in counts)


def survey_checkpoints(size: str, folder: Path, root: Path) -> list[ModelResult]:
    """Survey the checkpoints in ``folder`` as revisions of one model of a loopback hub."""
    hub_id = f"{ORGANISATION}/{size}"
    steps = sorted(int(path.name.removeprefix("step")) for path in folder.glob("step*"))
    with LoopbackHub() as hub:
        for step in steps:
            hub.add(hub_id, folder / f"step{step}", revision=f"step{step}")
        refs = [model_ref(hub_id, family_name="neox", revision=f"step{step}") for step in steps]
        api = HfApi(endpoint=hub.endpoint)
        return survey(refs, output_root=root, circuits=CIRCUITS, api=api)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", type=click.Choice(list(SIZES)), default="neox-1m", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=Plan.steps, show_default=True)
@click.option(
    "--checkpoints",
    "n_checkpoints",
    type=click.IntRange(min=2),
    default=Plan.n_checkpoints,
    show_default=True,
)
@click.option("--seed", type=click.IntRange(min=0), default=Plan.seed, show_default=True)
@click.option(
    "--survey",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="ROOT",
    help="Also survey the checkpoints, into ROOT/data/neox.",
)
def main(folder: Path, size: str, root: Path | None, **options: int) -> None:
    """Train a GPT-NeoX of 4 layers, of a size, and keep checkpoints of it in FOLDER."""
    disable_progress_bar()  # a bar a file
    began = time.monotonic()
    trained = train(folder, Plan(n_heads=SIZES[size], **options))
    for step, loss in trained.losses.items():
        click.echo(f"step {step:6d}  held-out loss {loss:.3f} nats a token")
    click.echo(
        f"Unigram entropy of the held-out tokens: {trained.unigram_entropy:.3f} nats. "
        f"{time.monotonic() - began:.0f} s."
    )
    for result in survey_checkpoints(size, folder, root) if root else ():
        click.echo(f"{result.title}: {result.error or result.path}")


if __name__ == "__main__":
    main()
