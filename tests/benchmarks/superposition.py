"""The superposition study's basic preset: seconds, alone and with 20 seeds.

    python tests/benchmarks/superposition.py [--steps N] [--rounds N]

Wanted of two cores: the preset (7 probabilities, 10,000 steps) within 90 s, and 20 seeds of it
within 8 times those 90 s. Unless --steps says 10,000, fewer steps are timed and the table scales
them up: a step takes as long at the end of training as at its beginning. The two are timed in turn,
and medians are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

from streaming import machine, row, table

from qk_taxonomy.studies.superposition.config import SuperpositionConfig
from qk_taxonomy.studies.superposition.presets import load_config
from qk_taxonomy.studies.superposition.train import train

WANTED = 90.0
SEEDS, TIMES = 20, 8


def seconds(config: SuperpositionConfig, steps: int) -> float:
    """Of so many steps."""
    short = dataclasses.replace(config, steps=steps)
    begun = time.perf_counter()
    train(short)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    (basic,) = load_config("basic")
    seeds = dataclasses.replace(basic, n_seeds=SEEDS)
    print(machine())
    # The first training starts the threads.
    seconds(basic, 50)
    scale = basic.steps / options.steps
    timed = [
        (scale * seconds(basic, options.steps), scale * seconds(seeds, options.steps))
        for _ in range(options.rounds)
    ]
    alone, many = (statistics.median(times) for times in zip(*timed, strict=True))
    said = "" if scale == 1 else f", from {options.steps} steps"
    table(f"{basic.steps} steps{said}", "", "seconds", "wanted")
    row(f"{basic.n_instances} instances", f"{alone:.1f}", f"< {WANTED:.0f}")
    row(f"{seeds.n_instances} instances", f"{many:.1f}", f"< {TIMES * WANTED:.0f}")
    row("ratio", f"{many / alone:.1f}", "")


if __name__ == "__main__":
    main()
