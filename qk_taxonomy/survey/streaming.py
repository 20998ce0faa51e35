"""Reading and computing side by side, in bounded memory, over any executor."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch

from qk_taxonomy.architectures.parts import memory_bytes, parts
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.stopping import stoppable_threads
from qk_taxonomy.circuits.threads import start_threads
from qk_taxonomy.errors import QKTaxonomyError
from qk_taxonomy.records import Circuit, Convention, LayerPart, LayerPlan, LayerSpectra
from qk_taxonomy.survey.cluster import ClusterExecutor, explained
from qk_taxonomy.survey.layers import joined, survey_part

# Parts of a layer that the memory for weights must have room for: while one is computed, others
# are on their way.
_PARTS_AT_ONCE = 3

# Bytes of weights that are worth a request of their own, and not much more: the first are computed
# with when so many have come, and when the last have come, so many are left to be computed with.
_HANDY = 16 * 1000**2

# Bytes that computing takes beside the weights, pieces of them in float64 and matrices of heads: on
# two cores, and for each thread beyond.
_WORKING = 64 * 1000**2
_WORKING_A_THREAD = 17 * 1000**2

# Seconds without a finished part after which a cluster is asked whether it is still there.
_LOOK_UP = 5.0

# Seconds that parts under way are waited for when a survey is interrupted or fails.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Workers:
    """Where parts of layers are read and computed: ``at_once`` parts, which hold at most
    ``memory`` bytes of weights together, each of them ``part_memory`` where it can be cut so.

    A part that is larger than ``memory`` goes alone. Once ``stop`` is set, threads of this process
    end what they read.
    """

    executor: Executor
    at_once: float
    memory: float
    part_memory: float
    stop: threading.Event


@contextmanager
def workers_of(executor: Executor | None, jobs: int, memory: float) -> Iterator[Workers]:
    """``jobs`` threads of this process, with ``memory`` bytes for all; or an executor's workers,
    which take what they can, with so much memory each. Threads that are left are told to stop.
    """
    # How layers are cut does not depend on the machine: neither do their spectra, to the last bit.
    part_memory = max(memory - _WORKING, memory / 4) / _PARTS_AT_ONCE
    stop = threading.Event()
    if executor is not None:
        yield Workers(executor, math.inf, math.inf, part_memory, stop)
        return
    start_threads()
    others = max(0, torch.get_num_threads() - 2)
    weights = max(memory - _WORKING - others * _WORKING_A_THREAD, part_memory)
    threads = stoppable_threads(jobs, "qk-layer", stop)
    try:
        yield Workers(threads, jobs, weights, part_memory, stop)
    finally:
        stop.set()
        threads.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Layer:
    """The parts of a layer, and what of them is finished."""

    n_parts: int
    finished: dict[int, list[LayerSpectra]] = field(default_factory=dict)

    def add(self, number: int, spectra: list[LayerSpectra]) -> list[LayerSpectra] | None:
        """The spectra of the layer, once this was its last part."""
        self.finished[number] = spectra
        if len(self.finished) < self.n_parts:
            return None
        whole = joined(part for _, part in sorted(self.finished.items()))
        self.finished.clear()
        return whole


@dataclass(frozen=True)
class _Piece:
    """A part of a layer, and which of the layer's it is."""

    part: LayerPart
    number: int
    layer: _Layer


@dataclass(frozen=True)
class Stream:
    """The layers of a checkpoint, cut into parts that workers can take."""

    checkpoint: Checkpoint
    work: tuple[_Piece, ...]
    conventions: tuple[Convention, ...]
    device: str | None

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        plans: Iterable[LayerPlan],
        circuits: Sequence[Circuit],
        conventions: Sequence[Convention],
        device: str | None,
        part_memory: float,
    ) -> Stream:
        """The work of ``plans``, in parts of at most ``part_memory`` bytes of weights."""
        work = []
        for plan in plans:
            cut = parts(plan, circuits, part_memory, _HANDY)
            layer = _Layer(len(cut))
            work += [_Piece(part, number, layer) for number, part in enumerate(cut)]
        return cls(checkpoint, tuple(work), tuple(conventions), device)

    @property
    def n_bytes(self) -> int:
        """Bytes to read, those that several parts need counted as often."""
        return sum(piece.part.n_bytes for piece in self.work)

    def run(
        self,
        workers: Workers,
        keep: Callable[[list[LayerSpectra]], None],
        read: Callable[[int], None],
        stopping: Callable[[], None],
    ) -> None:
        """Read and compute all parts; ``keep`` is called with every layer as it is finished, and
        ``read`` with the bytes of every part.

        Where the survey is interrupted (``stopping`` is called then), parts under way have some
        seconds to end; where a part fails, those that still read stop. The layers that they finish
        are kept, and then the error is raised. A cluster drops the parts that it has.
        """
        waiting = deque(self.work)
        under_way: dict[Future[list[LayerSpectra]], _Piece] = {}

        def finish(futures: Iterable[Future[list[LayerSpectra]]]) -> None:
            failure: BaseException | None = None
            for future in futures:
                piece = under_way.pop(future)
                error = _error(future)
                if error is not None:
                    failure = failure or error
                    continue
                read(piece.part.n_bytes)
                spectra = piece.layer.add(piece.number, future.result())
                if spectra is not None:
                    keep(spectra)
            if failure is not None:
                raise failure

        try:
            while waiting or under_way:
                while waiting and _fits(waiting[0], under_way.values(), workers):
                    piece = waiting.popleft()
                    arguments = (self.checkpoint, piece.part, self.conventions, self.device)
                    under_way[workers.executor.submit(survey_part, *arguments)] = piece
                done = wait(under_way, timeout=_LOOK_UP, return_when=FIRST_COMPLETED).done
                if isinstance(workers.executor, ClusterExecutor):
                    workers.executor.check(at_work=bool(done))
                finish(done)
        except BaseException as err:
            if isinstance(err, Exception):
                workers.stop.set()
            else:
                stopping()
            for future in under_way:
                future.cancel()
            with suppress(Exception):
                finish(wait(under_way, timeout=_PATIENCE).done)
            raise


def _error(future: Future[list[LayerSpectra]]) -> BaseException | None:
    """What kept a part from being done."""
    if future.cancelled():
        return QKTaxonomyError(
            "A part of the work was given up by the executor that had it (is the scheduler gone?). "
            "Give the same command again: finished layers are kept."
        )
    error = future.exception()
    return None if error is None else explained(error)


def _fits(piece: _Piece, others: Collection[_Piece], workers: Workers) -> bool:
    """Whether a part may begin beside others."""
    memory = sum(memory_bytes(each.part) for each in (piece, *others))
    return not others or (len(others) < workers.at_once and memory <= workers.memory)
