"""What each hypothesis costs on 10,000 heads: seconds, and shares of the whole, within one run.

    python tests/benchmarks/hypotheses.py

Twelve models in four families, three contrasts among them; 896 heads (28 layers × 32 on 8 key-value
heads, d_head 128, d_model 4096) a model.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from qk_taxonomy import __version__
from qk_taxonomy.cache import FORMAT, FORMAT_VERSION, write_spectra
from qk_taxonomy.hypotheses.run import HYPOTHESES, run_hypotheses
from qk_taxonomy.outputs.hypotheses import generate_hypothesis_tests
from qk_taxonomy.records import LayerSpectra, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS, describe
from qk_taxonomy.statistics.nulls import untrained_spectra
from qk_taxonomy.untrained import draws_for, untrained_heads

LAYERS, HEADS, KV_HEADS, D_HEAD, D_MODEL = 28, 32, 8, 128, 4096


def model(root: Path, family: str, name: str, seed: int) -> None:
    """A spectra file of heads whose λ are those of untrained ones, each raised to some power."""
    rng = np.random.default_rng(seed)
    group = HEADS // KV_HEADS
    lam = untrained_spectra(D_HEAD, D_MODEL, LAYERS * KV_HEADS, group=group, seed=seed)
    power = rng.uniform(1.0, 3.0, (LAYERS * KV_HEADS, group, 1))
    lam = np.power(lam, power).reshape(LAYERS, HEADS, D_HEAD)
    layers = [
        LayerSpectra(
            layer=number,
            circuit="qk",
            convention="raw",
            singular_values=np.sqrt(values),
            eigenvalues=np.zeros(values.shape, dtype=np.complex64),
            statistics=describe(values),
        )
        for number, values in enumerate(lam)
    ]
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_id": f"made/{name}",
        "family": family,
        "revision": "none",
        "architecture": "llama",
        "n_layers": str(LAYERS),
        "n_heads": str(HEADS),
        "n_kv_heads": str(KV_HEADS),
        "d_head": str(D_HEAD),
        "d_model": str(D_MODEL),
        "weights_dtype": "F32",
        "source": "made by a benchmark",
        "statistics": ",".join(STATISTICS),
        "tool_version": __version__,
        "provenance": json.dumps({}),
    }
    path = root / "data" / family / f"{name}.safetensors"
    write_spectra(path, ModelSpectra(metadata, tuple(layers)))


def catalogue(root: Path, names: dict[str, list[str]]) -> Path:
    """Family files of the models, and the contrasts of the first three families."""
    folder = root / "catalog"
    (folder / "families").mkdir(parents=True)
    contrasts = []
    for family, models in names.items():
        lines = [f'name = "{family}"', f'title = "{family}"', 'description = "made"']
        lines.append('license = "none"')
        for name in models:
            lines += ["[[models]]", f'id = "made/{name}"', "parameters = 1"]
        (folder / "families" / f"{family}.toml").write_text("\n".join(lines))
        sides = f'treatment = "made/{models[1]}"\ncontrol = "made/{models[0]}"'
        contrasts.append(f'[[contrasts]]\nname = "{family}"\nkind = "instruct"\n{sides}')
    (folder / "contrasts.toml").write_text("\n\n".join(contrasts[:3]))
    return folder


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = {f"made{f}": [f"made{f}-{m}" for m in range(3)] for f in range(4)}
        for number, (family, name) in enumerate((f, n) for f, all_ in names.items() for n in all_):
            model(root, family, name, number)
        catalog = catalogue(root, names)
        n = sum(map(len, names.values())) * LAYERS * HEADS
        print(f"{n} heads, d_head {D_HEAD}")
        start = time.perf_counter()
        untrained_heads(D_HEAD, D_MODEL, draws_for(LAYERS * HEADS, D_HEAD))
        print(f"{'untrained heads of the shape, once':36} {time.perf_counter() - start:6.1f} s")
        seconds = {}
        for hypothesis in HYPOTHESES:
            start = time.perf_counter()
            rows = run_hypotheses(root, hypotheses=[hypothesis], catalog=catalog).table
            seconds[hypothesis] = time.perf_counter() - start
            print(f"{hypothesis:36} {seconds[hypothesis]:6.1f} s {len(rows):8} rows")
        start = time.perf_counter()
        generate_hypothesis_tests(root, run_hypotheses(root, catalog=catalog))
        whole = time.perf_counter() - start
        print(f"{'all, with table and figures':36} {whole:6.1f} s")
        print(", ".join(f"{name} {part / whole:.0%}" for name, part in seconds.items()), "of it")


if __name__ == "__main__":
    main()
