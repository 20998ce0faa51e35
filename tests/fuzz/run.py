"""Coverage-guided fuzzing of the package's own parsers: `python tests/fuzz/run.py --seconds 30`.

Needs ``pip install ".[fuzz]"`` (atheris). Each parser runs in a process of its own, from seeds that
are made on the way, with at most 1 GiB and 10 s an input. Exits with 1 where there is a finding: an
input that ends in another error than the package's own, is too slow or too large, or is accepted
and not sound. Such inputs are kept under ``--keep``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

_MOST_MIB = 1024
_MOST_SECONDS = 10
_LONGEST_INPUT = 1 << 14


def fuzz(name: str, arguments: list[str]) -> None:
    """Run one harness in this process until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["qk_taxonomy"], enable_loader_override=False):
        from harnesses import HARNESSES
    warnings.simplefilter("ignore")
    attempt = HARNESSES[name].attempt
    atheris.Setup([sys.argv[0], *arguments], lambda data: attempt(data) and None)
    atheris.Fuzz()


def run(name: str, seconds: int, work: Path, keep: Path) -> bool:
    """Fuzz one parser and print a line on it; whether nothing was found."""
    from harnesses import HARNESSES

    corpus = work / name
    corpus.mkdir()
    accepted = 0
    for number, seed in enumerate(HARNESSES[name].seeds()):
        accepted += HARNESSES[name].attempt(seed)
        (corpus / f"seed-{number}").write_bytes(seed)
    words = work / f"{name}.dict"
    escaped = (word.replace("\\", "\\\\").replace('"', '\\"') for word in HARNESSES[name].words)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    arguments = [
        str(corpus),
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={_MOST_MIB}",
        f"-timeout={_MOST_SECONDS}",
        f"-max_len={_LONGEST_INPUT}",
        f"-artifact_prefix={keep / name}-",
        "-print_final_stats=1",
        "-seed=1",
    ]
    if HARNESSES[name].words:
        arguments.append(f"-dict={words}")
    program = [sys.executable, __file__, "--harness", name, "--", *arguments]
    done = subprocess.run(
        program, capture_output=True, text=True, errors="replace", timeout=seconds + 120
    )
    coverage = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr) or [("0", "0")]
    runs = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
    peak = re.search(r"peak_rss_mb:\s+(\d+)", done.stderr)
    print(
        f"{name:12} {int(runs[1]) if runs else 0:9,} runs   coverage {coverage[0][0]:>5} -> "
        f"{coverage[-1][0]:>5} branches, {coverage[-1][1]:>6} features   peak "
        f"{peak[1] if peak else '?'} MiB   {'nothing found' if not done.returncode else 'FOUND'}",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr, flush=True)
    return not done.returncode and accepted > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="for each parser")
    parser.add_argument("--only", nargs="*", help="names of parsers")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--harness", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.harness:
        fuzz(options.harness, options.arguments)
        return 0
    from harnesses import HARNESSES

    options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="qk-fuzz-") as work:
        names = options.only or list(HARNESSES)
        sound = [run(name, options.seconds, Path(work), options.keep) for name in names]
    if all(sound) and not any(options.keep.iterdir()):
        options.keep.rmdir()
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
