"""Surveys on a Dask cluster: its executor in place of this process's threads.

https://distributed.dask.org: a scheduler (``dask scheduler``) and workers (``dask worker ADDRESS``)
on any machines that have this package. Workers fetch and compute parts of layers; the spectra,
some kilobytes each, come back to this process, which writes the files.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qk_taxonomy import __version__
from qk_taxonomy.errors import QKTaxonomyError

if TYPE_CHECKING:
    from distributed import Client

# Seconds to wait for the scheduler to answer, and for a first worker.
_PATIENCE = 20

# Packages that make the numbers, whose releases must be the same here and at every worker.
_COMPUTING = ("numpy", "scipy", "torch")


class ClusterExecutor(Executor):
    """Submits to a Dask client's executor, and can tell when nobody is left to do the work."""

    def __init__(self, client: Client) -> None:
        self._client = client
        # Not pure: parts of two models may be described alike.
        self._executor = client.get_executor(pure=False)
        self._gone_since: float | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(fn, *args, **kwargs)

    def check(self, *, at_work: bool) -> None:
        """Raises QKTaxonomyError where no worker has been there for a while: Dask would wait for
        one for ever. ``at_work``: whether a part was finished since the last time.
        """
        if at_work or self._client.scheduler_info()["workers"]:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = time.monotonic()
        elif time.monotonic() - self._gone_since > _PATIENCE:
            raise QKTaxonomyError(
                "No worker of the Dask cluster is left, and none came back. What ended them is in "
                "what they printed; start others with `dask worker ADDRESS`, then give the same "
                "command again: finished layers are kept."
            )


@contextmanager
def dask_executor(address: str) -> Iterator[ClusterExecutor]:
    """The executor of the cluster whose scheduler listens at ``address`` (tcp://host:8786).

    Raises QKTaxonomyError where distributed is not installed, nobody answers, no worker has joined,
    or a worker has another version of this package, NumPy, SciPy or torch.
    """
    try:
        from distributed import Client
        from distributed.comm.addressing import get_address_host_port
    except ImportError as err:
        raise QKTaxonomyError(
            "Surveys on a cluster need Dask, which is not installed: "
            'pip install "qk-taxonomy[cluster]".'
        ) from err
    try:
        # A client of no address would wait for itself when the process ends.
        get_address_host_port(address, strict=True)
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as err:
        raise QKTaxonomyError(
            f"No Dask scheduler answers at {address} ({_reason(err)}). Start one with "
            "`dask scheduler`, which prints its address (tcp://host:port), or mend --dask."
        ) from err
    # What it logs of a lost connection, with tracebacks, the errors of futures say in short.
    for handler in logging.getLogger("distributed").handlers:
        handler.setLevel(logging.CRITICAL)
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as err:
            raise QKTaxonomyError(
                f"No worker has joined the Dask scheduler at {address}. Start some with "
                f"`dask worker {address}`."
            ) from err
        try:
            found = client.run(_versions)
        except (ImportError, AttributeError) as err:
            raise QKTaxonomyError(
                f"A worker at {address} has no qk_taxonomy, or another one ({_reason(err)}). "
                f"Install qk-taxonomy {__version__} where the workers run."
            ) from err
        _refuse_other_versions(found)
        yield ClusterExecutor(client)


def explained(error: BaseException) -> BaseException:
    """What kept a part from being done; Dask's account of workers that died with it, in words."""
    distributed = sys.modules.get("distributed")  # where it is not loaded, the error is not Dask's
    if distributed is None or not isinstance(error, distributed.KilledWorker):
        return error
    readable = QKTaxonomyError(
        "The Dask workers that were given a part of the work died, one after another (the last was "
        f"{getattr(error.last_worker, 'address', error.last_worker)}): most often of their memory "
        "limit, which is in what they printed. Give the same command with a smaller --memory, or "
        "start workers with more (`dask worker --memory-limit`); finished layers are kept."
    )
    readable.__cause__ = error
    return readable


def _versions() -> dict[str, str]:
    """The releases (major.minor.patch) that decide the numbers, by package, where this runs."""
    releases = {}
    for package in _COMPUTING:
        version = importlib.metadata.version(package)
        match = re.match(r"\d+(\.\d+){0,2}", version)
        releases[package] = match[0] if match else version
    return {"qk-taxonomy": __version__, **releases}


def _refuse_other_versions(workers: Mapping[str, Mapping[str, str]]) -> None:
    """Raises QKTaxonomyError naming the first worker, by address, that would compute otherwise."""
    own = _versions()
    for worker, found in sorted(workers.items()):
        for package, version in own.items():
            if found[package] != version:
                raise QKTaxonomyError(
                    f"The Dask worker {worker} has {package} {found[package]}, and this process "
                    f"has {version}: numbers could differ. Install one version everywhere."
                )


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
