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
from streaming import MB, machine, row, table

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


def ours(folder: Path, rounds: int) -> dict[tuple[str, ...], float]:
    """Seconds by conventions, and the table of them."""
    table(
        f"Full circuits of {LAYERS * HEADS} heads, QK and OV, {VOCABULARY} tokens",
        *("conventions", "seconds", "with imports", "processor time"),
        *("peak above torch imported", "peak of the process"),
    )
    seconds = {}
    for conventions in (("raw",), ("folded",), ("raw", "folded")):
        runs: list[Run] = [
            run("full_circuits", folder=str(folder), conventions=conventions) for _ in range(rounds)
        ]
        assert all(r.reported["spectra"] == 2 * 64 * len(conventions) for r in runs)
        seconds[conventions] = statistics.median(r.seconds for r in runs)
        row(
            " and ".join(conventions),
            f"{seconds[conventions]:.1f} s",
            f"{statistics.median(r.command for r in runs):.1f} s",
            f"{statistics.median(r.cpu for r in runs):.1f} s",
            f"{max(r.peak - r.idle for r in runs) / MB:.0f} MB",
            f"{max(r.peak for r in runs) / MB:.0f} MB",
        )
    return seconds


def the_usual_way(folder: Path, seconds: float, rounds: int) -> None:
    """What one head takes by FactoredMatrix, against a head's part of what all take here."""
    lens = importlib.util.find_spec("transformer_lens") is not None
    table(
        "One head, QK and OV as stored",
        *("by", "seconds", "64 heads would take", "ours of 64", "ratio", "peak above torch"),
    )
    for dtype in ("float32", "float64"):
        other = run(
            "factored",
            folder=str(folder),
            of="lens" if lens else "torch",
            dtype=dtype,
            times=rounds + 2,
        )
        one = statistics.median(other.reported["seconds"][1:])
        row(
            f"{'TransformerLens' if lens else 'steps of FactoredMatrix in torch'}, {dtype}",
            f"{one:.2f} s",
            f"{64 * one:.0f} s",
            f"{seconds:.1f} s",
            f"{64 * one / seconds:.1f}×",
            f"{(other.peak - other.idle) / MB:.0f} MB",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = make((options.folder or Path(temporary)) / "tinystories-33m")
        seconds = ours(folder, options.rounds)
        the_usual_way(folder, seconds["raw",], options.rounds)


if __name__ == "__main__":
    main()
