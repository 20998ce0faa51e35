"""How many requests are under way at once, and when the next may begin: as the hub's limits allow.

All threads that ask one endpoint take turns of one :class:`Pacer`. Where the endpoint asks to slow
down, all of them wait, and half as many go on; with every round of answers one more joins
(additive increase, multiplicative decrease, as TCP does: Jacobson 1988).
https://huggingface.co/docs/hub/rate-limits
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import parse_ratelimit_headers
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
)

from qk_taxonomy.checkpoints.stopping import go_on, pause, stopped
from qk_taxonomy.errors import CheckpointError

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)

# Answers that ask everybody to slow down, and those that may be another one a little later.
_BUSY = (429, 503)
_PASSING = (408, 500, 502, 504, *_BUSY)

# Seconds to wait where nobody says how long: at first, and at most, doubled in between.
FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0

# Seconds that an answer may name; the hub counts in windows of 300.
_LONGEST_NAMED_PAUSE = 900.0


class BrokenAnswerError(CheckpointError):
    """An answer that is not what was asked for, as a proxy on the way may give once."""


class Pacer:
    """Turns at asking one endpoint, for any number of threads; ``clock`` and ``sleep`` in seconds.

    ``most`` requests may be under way at once, of which the whole number counts: until it is first
    asked to slow down, every thread that comes has a turn.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = pause,
    ) -> None:
        self._clock = clock
        self.sleep = sleep
        self._changed = threading.Condition()
        self._under_way = 0
        self.most = math.inf
        self._resume = -math.inf
        self._slowed = 0
        self._next_pause = FIRST_PAUSE

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One request: begins when it may, and learns from the HfHubHTTPError it ends with."""
        slowed = self._begin()
        try:
            yield
        except HfHubHTTPError as err:
            if err.response is not None and err.response.status_code in _BUSY:
                self._slow_down(slowed, named_pause(err.response.headers))
            raise
        else:
            self._speed_up(slowed)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _begin(self) -> int:
        """Wait for a turn; return how often requests had been slowed down when it began.

        Raises StoppedError.
        """
        while True:
            with self._changed:
                # Those that have the turns are told to stop together with those that wait.
                self._changed.wait_for(lambda: stopped() or self._under_way + 1 <= self.most)
                go_on()
                pause = self._resume - self._clock()
                if pause <= 0:
                    self._under_way += 1
                    return self._slowed
            self.sleep(pause)

    def _slow_down(self, slowed: int, pause: float | None) -> None:
        with self._changed:
            # Requests that were under way together are refused together: that counts once.
            first = slowed == self._slowed
            if first:
                self._slowed += 1
                self.most = max(1.0, self._under_way // 2)
            if pause is None and first:
                pause = self._next_pause
                self._next_pause = min(2 * pause, _LONGEST_PAUSE)
            pause = min(pause or 0.0, _LONGEST_NAMED_PAUSE)
            self._resume = max(self._resume, self._clock() + pause)
            if first:
                _log.warning(
                    "The hub asks to slow down: waiting %.0f s, then up to %d at a time.",
                    pause,
                    self.most,
                )

    def _speed_up(self, slowed: int) -> None:
        with self._changed:
            if slowed != self._slowed:
                return
            self._next_pause = FIRST_PAUSE
            if self._under_way + 1 > self.most:  # an allowance nobody uses does not grow
                self.most += 1 / self.most


@functools.cache
def shared_pacer(endpoint: str) -> Pacer:
    """The one pacer of this process for an endpoint."""
    return Pacer()


def named_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait by its RateLimit or Retry-After header; None: neither."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0  # whole seconds, which may have been rounded down
    named = headers.get("Retry-After", "").strip()
    if named.isdigit():
        return float(named)
    try:
        until = parsedate_to_datetime(named)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())


def ask(pacer: Pacer, request: Callable[[], Answer], *, tries: int) -> Answer:
    """What ``request`` returns, in a turn of its own; failures that may pass are asked again.

    Raises what the last of ``tries`` raised, or the first that will not pass; StoppedError.
    """

    def in_turn() -> Answer:
        with pacer.turn():
            return request()

    again = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(tries),
        wait=_pause,
        sleep=pacer.sleep,
        reraise=True,
    )
    return again(in_turn)


def _status(err: BaseException | None) -> int | None:
    has_answer = isinstance(err, HfHubHTTPError) and err.response is not None
    return err.response.status_code if has_answer else None  # type: ignore[union-attr]


def _may_pass(err: BaseException) -> bool:
    status = _status(err)
    if status is not None:
        return status in _PASSING
    return isinstance(err, HTTPError | BrokenAnswerError)


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try; none where the pacer has all threads wait."""
    assert state.outcome is not None
    if _status(state.outcome.exception()) in _BUSY:
        return 0.0
    return wait_exponential(multiplier=FIRST_PAUSE, max=_LONGEST_PAUSE)(state)
