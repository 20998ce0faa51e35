"""Surveys on a Dask cluster: its executor in place of this process's threads.

https://distributed.dask.org: a scheduler (``dask scheduler``) and workers (``dask worker ADDRESS``)
on any machines that have this package. Workers fetch and compute parts of layers; the spectra,
some kilobytes each, come back to this process, which writes the files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qk_taxonomy import __version__
from qk_taxonomy.errors import QKTaxonomyError

if TYPE_CHECKING:
    from distributed import Client

# Seconds to wait for the scheduler to answer, and for a first worker.
_PATIENCE = 20


class ClusterExecutor(Executor):
    """Submits to a Dask client's executor, and can tell when nobody is left to do the work."""

    def __init__(self, client: Client) -> None:
        self._client = client
        # Not pure: parts of two models may be described alike.
        self._executor = client.get_executor(pure=False)
        self._last_seen = time.monotonic()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(fn, *args, **kwargs)

    def check(self) -> None:
        """Raises QKTaxonomyError where no worker has been there for a while: Dask would wait for
        one for ever.
        """
        if self._client.scheduler_info()["workers"]:
            self._last_seen = time.monotonic()
        elif time.monotonic() - self._last_seen > _PATIENCE:
            raise QKTaxonomyError(
                "No worker of the Dask cluster is left, and none came back. What ended them is in "
                "what they printed; start others with `dask worker ADDRESS`, then give the same "
                "command again: finished layers are kept."
            )


@contextmanager
def dask_executor(address: str) -> Iterator[ClusterExecutor]:
    """The executor of the cluster whose scheduler listens at ``address`` (tcp://host:8786).

    Raises QKTaxonomyError where distributed is not installed, nobody answers, no worker has joined,
    or a worker has another version of this package.
    """
    try:
        from distributed import Client
    except ImportError as err:
        raise QKTaxonomyError(
            "Surveys on a cluster need Dask, which is not installed: "
            'pip install "qk-taxonomy[cluster]".'
        ) from err
    try:
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
            versions = set(client.run(_version).values())
        except ImportError as err:
            raise QKTaxonomyError(
                f"A worker at {address} cannot import qk_taxonomy ({_reason(err)}). Install "
                f"qk-taxonomy {__version__} where the workers run."
            ) from err
        if versions != {__version__}:
            raise QKTaxonomyError(
                f"The workers at {address} have qk-taxonomy {', '.join(sorted(versions))}, and "
                f"this is {__version__}: numbers could differ. Install one version everywhere."
            )
        yield ClusterExecutor(client)


def _version() -> str:
    """The version of this package that a worker has."""
    return __version__


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
