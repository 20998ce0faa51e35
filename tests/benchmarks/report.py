"""The page at 1,000, 10,000 and 100,000 heads: its size, and how long a browser takes.

    python tests/benchmarks/report.py [HEADS]...

Prints, for each number of heads: seconds to write the page, its size, milliseconds from opening it
to decoded data, to plotly unpacked and run, to the first plot (when it can be used) and to the
whole page, and the median of several changes of a filter and of colours: until the picture is
drawn and, in brackets, of the page's own script. Drawing is by software where there is no GPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser import chromium
from synthetic_atlas import synthetic_atlas

from qk_taxonomy.report.page import atlas_page

SIZES = (1_000, 10_000, 100_000)
_MARKS = ("atlas-decoded", "atlas-inflated", "atlas-plotly", "atlas-plotted", "atlas-whole")
_TESTS_A_HEAD = 1
_REPEATS = 5

# Resolves with the milliseconds until the frame after a change is drawn, and those of the script.
_TIMED = """async ([id, value]) => {
  const control = document.getElementById(id);
  const start = performance.now();
  control.value = value;
  control.dispatchEvent(new Event("change", { bubbles: true }));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const own = performance.getEntriesByName("atlas-changed").at(-1).duration;
  return [performance.now() - start, own];
}"""
_FILTERS = (("layer-high", "10"), ("layer-high", "31"))
_COLOURS = (("colour", "model"), ("colour", "effective_rank_lambda"), ("colour", "class"))


def measured(page: Any, changes: tuple[tuple[str, str], ...]) -> list[str]:
    """What each change takes, as text."""
    found: dict[str, list[list[float]]] = {}
    for _ in range(_REPEATS):
        for change in changes:
            found.setdefault("=".join(change), []).append(page.evaluate(_TIMED, list(change)))
    medians = {name: np.median(times, axis=0) for name, times in found.items()}
    return [f"{name} {drawn:.0f} ms ({own:.0f})" for name, (drawn, own) in medians.items()]


def main(sizes: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for n in sizes:
            atlas = synthetic_atlas(
                n, n_layers=32, heads_a_layer=32, n_classes=6, n_families=8,
                n_tests=min(n * _TESTS_A_HEAD, 100_000),
            )  # fmt: skip
            start = time.perf_counter()
            path = Path(folder) / f"{n}.html"
            path.write_text(atlas_page(atlas), encoding="utf-8")
            written = time.perf_counter() - start
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(path.as_uri())
            page.wait_for_function("document.documentElement.dataset.ready", timeout=120_000)
            marks = [
                page.evaluate(f"performance.getEntriesByName('{name}')[0].startTime")
                for name in _MARKS
            ]
            changed = measured(page, _FILTERS) + measured(page, _COLOURS)
            page.close()
            opened = [f"{name[6:]} {ms:.0f} ms" for name, ms in zip(_MARKS, marks, strict=True)]
            print(f"{n:>7} heads: written in {written:.1f} s, {path.stat().st_size / 1e6:.2f} MB")
            print(f"        {', '.join(opened)}")
            print(f"        {', '.join(changed)}", flush=True)


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or SIZES)
