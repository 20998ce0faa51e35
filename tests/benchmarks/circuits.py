"""Full circuits of all heads of TinyStories-33M's shape: time, memory, and the usual way's.

    python tests/benchmarks/circuits.py [--folder DIR] [--rounds N]

A GPT-Neo of 4 layers × 16 heads, d_model 768, 50 257 tokens, embeddings tied, of random float32
tensors. Wanted of two cores: both circuits of all 64 heads within 60 s and 1.5 GB.

The other way is TransformerLens' FactoredMatrix where that is installed, and else its steps in
torch, which the table says: eigenvalues and singular values of one head's QK and OV as stored, in
float32, as it loads models, and in float64. It is spared what is counted here: reading the file,
eigenvalues of the symmetric and antisymmetric parts, and the second convention.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from sides import Run, run
from streaming import MB, machine, median, row, table

from qk_taxonomy.records import Convention

LAYERS, HEADS, D_MODEL, VOCABULARY = 4, 16, 768, 50257
CONFIG = {
    "model_type": "gpt_neo",
    "architectures": ["GPTNeoForCausalLM"],
    "hidden_size": D_MODEL,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "attention_types": [[["global", "local"], LAYERS // 2]],
    "attention_layers": ["global", "local"] * (LAYERS // 2),
    "intermediate_size": None,
    "max_position_embeddings": 2048,
    "vocab_size": VOCABULARY,
    "window_size": 256,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


CHOSEN: tuple[tuple[Convention, ...], ...] = (("raw",), ("folded",), ("raw", "folded"))


def make(folder: Path) -> Path:
    """Write the checkpoint, laid out as ``save_pretrained`` lays it out."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return 0.02 * torch.randn(shape, generator=generator)

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1.0 + 5 * normal(D_MODEL), f"{name}.bias": normal(D_MODEL)}

    tensors = {
        "transformer.wte.weight": normal(VOCABULARY, D_MODEL),
        "transformer.wpe.weight": normal(2048, D_MODEL),
        **norm("transformer.ln_f"),
    }
    for i in range(LAYERS):
        layer = f"transformer.h.{i}."
        tensors |= norm(f"{layer}ln_1") | norm(f"{layer}ln_2")
        tensors |= {
            f"{layer}attn.attention.{role}_proj.weight": normal(D_MODEL, D_MODEL)
            for role in ("q", "k", "v", "out")
        }
        tensors |= {
            f"{layer}attn.attention.out_proj.bias": normal(D_MODEL),
            f"{layer}mlp.c_fc.weight": normal(4 * D_MODEL, D_MODEL),
            f"{layer}mlp.c_fc.bias": normal(4 * D_MODEL),
            f"{layer}mlp.c_proj.weight": normal(D_MODEL, 4 * D_MODEL),
            f"{layer}mlp.c_proj.bias": normal(D_MODEL),
        }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def measure(folder: Path, rounds: int, of: str) -> tuple[dict[str, list[Run]], ...]:
    """Runs of full circuits by conventions, and of the usual way by dtype, taken in turn."""
    ours: dict[str, list[Run]] = {" and ".join(chosen): [] for chosen in CHOSEN}
    usual: dict[str, list[Run]] = {dtype: [] for dtype in ("float32", "float64")}
    for _ in range(rounds):
        for chosen in CHOSEN:
            found = run("full_circuits", folder=str(folder), conventions=chosen)
            assert found.reported["spectra"] == 2 * LAYERS * HEADS * len(chosen)
            ours[" and ".join(chosen)].append(found)
        for dtype, runs in usual.items():
            runs.append(run("factored", folder=str(folder), of=of, dtype=dtype, times=3))
    return ours, usual


def show_ours(ours: dict[str, list[Run]]) -> None:
    table(
        f"Full circuits of {LAYERS * HEADS} heads, QK and OV, {VOCABULARY} tokens",
        *("conventions", "seconds", "with imports", "processor time"),
        *("peak above torch imported", "peak of the process"),
    )
    for conventions, runs in ours.items():
        row(
            conventions,
            f"{median(runs):.1f} s",
            f"{statistics.median(run.command for run in runs):.1f} s",
            f"{statistics.median(run.cpu for run in runs):.1f} s",
            f"{max(run.peak - run.idle for run in runs) / MB:.0f} MB",
            f"{max(run.peak for run in runs) / MB:.0f} MB",
        )


def show_usual(usual: dict[str, list[Run]], seconds: float, by: str) -> None:
    """What one head takes, against a head's part of what all take here."""
    each = seconds / (LAYERS * HEADS)
    table(
        "One head, QK and OV as stored",
        *("by", "seconds", "here, of 64", "ratio", "peak above torch imported"),
    )
    for dtype, runs in usual.items():
        one = statistics.median(t for run in runs for t in run.reported["seconds"][1:])
        above = max(run.peak - run.idle for run in runs)
        row(
            f"{by}, {dtype}",
            f"{one:.2f} s",
            f"{each:.3f} s",
            f"{one / each:.1f}×",
            f"{above / MB:.0f} MB",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lens = importlib.util.find_spec("transformer_lens") is not None
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = make((options.folder or Path(temporary)) / "tinystories-33m")
        ours, usual = measure(folder, options.rounds, "lens" if lens else "torch")
    show_ours(ours)
    by = "TransformerLens" if lens else "steps of FactoredMatrix in torch"
    show_usual(usual, median(ours["raw"]), by)


if __name__ == "__main__":
    main()
