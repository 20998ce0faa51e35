"""Surveys models one by one, each in a process of its own that may use little memory.

``python bounded.py ROOT PATH...`` prints a line of JSON for each path: the error's class (None
where there was none), whether it is the package's own, its message, the processor's seconds and the
bytes it took.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from qk_taxonomy.catalog import model_ref
from qk_taxonomy.errors import QKTaxonomyError
from qk_taxonomy.survey import survey_model

#: Bytes a process may have beyond what importing the package took; stacks of threads among them.
LIMIT = 400 << 20

#: Seconds of processor time.
SECONDS = 30


def memory(field: str) -> int:
    """Bytes of this process by a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise LookupError(field)


def attempt(root: Path, path: str) -> dict[str, Any]:
    """Survey one model under the limits."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + LIMIT,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS,) * 2)
    before, began = memory("VmRSS"), time.process_time()
    error: BaseException | None = None
    try:
        survey_model(model_ref(path, family_name="hostile"), output_root=root)
    except BaseException as err:
        error = err
    return {
        "error": None if error is None else type(error).__name__,
        "own": isinstance(error, QKTaxonomyError),
        "message": str(error),
        "seconds": time.process_time() - began,
        "bytes": max(0, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before),
    }


def main(root: str, *paths: str) -> None:
    for path in paths:
        child = os.fork()
        if child == 0:
            print(json.dumps(attempt(Path(root), path)), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            killed = {"error": f"killed ({status})", "own": False, "message": "", "seconds": 0}
            print(json.dumps(killed | {"bytes": 0}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
