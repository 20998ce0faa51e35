"""Turns at asking the hub: who waits, for how long, and how many go on; without waiting here."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from email.utils import formatdate

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from loopback_hub import LoopbackHub, Status

from qk_taxonomy.checkpoints.pacing import BrokenAnswerError, Pacer, ask, named_pause
from qk_taxonomy.checkpoints.stopping import StoppedError, stoppable_threads


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pacer(clock: Clock, short_pauses: None) -> Pacer:
    return Pacer(lambda: clock.now, clock.sleep)


class Refusals:
    """Errors as huggingface_hub raises them for answers of a hub."""

    def __init__(self, hub: LoopbackHub) -> None:
        self.hub = hub

    def __call__(self, status: int, headers: Mapping[str, str] | None = None) -> HfHubHTTPError:
        self.hub.inject("/api/models/", Status(status, headers or {}))
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(endpoint=self.hub.endpoint).model_info("org/tiny")
        return caught.value


@pytest.fixture
def refusal(hub: LoopbackHub) -> Refusals:
    return Refusals(hub)


def refuse(pacer: Pacer, error: HfHubHTTPError, *, together: int = 1) -> None:
    """So many requests, begun together, end with the error."""
    turns = [pacer.turn() for _ in range(together)]
    for turn in turns:
        turn.__enter__()
    for turn in turns:
        assert not turn.__exit__(type(error), error, None)  # it is not kept from the caller


def succeed(pacer: Pacer, *, together: int = 1) -> None:
    with ExitStack() as turns:
        for _ in range(together):
            turns.enter_context(pacer.turn())


def test_nobody_waits_before_the_hub_asks_for_it(pacer: Pacer, clock: Clock) -> None:
    succeed(pacer, together=64)
    assert pacer.most == math.inf
    assert clock.slept == []


@pytest.mark.parametrize("status", [429, 503])
def test_all_wait_for_the_time_that_is_named(
    pacer: Pacer, clock: Clock, refusal: Refusals, status: int
) -> None:
    refuse(pacer, refusal(status, {"Retry-After": "7"}))
    succeed(pacer)
    succeed(pacer)
    assert clock.slept == [7.0]


@pytest.mark.parametrize("status", [404, 500])
def test_other_failures_slow_nobody_down(
    pacer: Pacer, clock: Clock, refusal: Refusals, status: int
) -> None:
    refuse(pacer, refusal(status, {"Retry-After": "7"}))
    succeed(pacer)
    assert (clock.slept, pacer.most) == ([], math.inf)


def test_half_as_many_go_on_and_one_more_after_every_round(
    pacer: Pacer, clock: Clock, refusal: Refusals
) -> None:
    busy = refusal(429, {"Retry-After": "1"})
    refuse(pacer, busy, together=8)
    assert pacer.most == 4  # once for all that were under way together
    refuse(pacer, busy, together=4)
    assert pacer.most == 2
    for most in (3, 4, 5):
        for _ in range(most):  # one request more than a round of most - 1
            succeed(pacer, together=int(pacer.most))
            if pacer.most >= most:
                break
        assert most <= pacer.most < most + 0.5
    before = pacer.most
    succeed(pacer, together=2)
    assert pacer.most == before  # fewer than are allowed show nothing
    for _ in range(5):
        refuse(pacer, busy)
    assert pacer.most == 1


def test_without_a_time_the_pauses_double_until_an_answer_comes(
    pacer: Pacer, clock: Clock, refusal: Refusals
) -> None:
    busy = refusal(429)
    for _ in range(20):
        refuse(pacer, busy)
    succeed(pacer)
    refuse(pacer, busy)
    succeed(pacer)
    first = clock.slept[0]
    expected = [min(first * 2**n, 60.0) for n in range(20)]
    assert clock.slept == pytest.approx([*expected, first])


def test_one_that_comes_when_all_turns_are_taken_waits_for_an_end(
    pacer: Pacer, refusal: Refusals
) -> None:
    refuse(pacer, refusal(429, {"Retry-After": "0"}), together=4)
    began = threading.Event()

    def third() -> None:
        with pacer.turn():
            began.set()

    thread = threading.Thread(target=third)
    with pacer.turn():
        with pacer.turn():
            thread.start()
            assert not began.wait(0.05)
        assert began.wait(10)
    thread.join(10)


@pytest.mark.parametrize("busy", ["a pause", "all turns taken"])
def test_one_that_is_told_to_stop_waits_no_longer(refusal: Refusals, busy: str) -> None:
    pacer, stop = Pacer(), threading.Event()
    seconds = "300" if busy == "a pause" else "0"
    refuse(pacer, refusal(429, {"Retry-After": seconds}), together=2)
    with stoppable_threads(1, "told", stop) as told, ExitStack() as turns:
        if busy == "all turns taken":
            turns.enter_context(pacer.turn())
        waiting = told.submit(ask, pacer, lambda: "answered", tries=1)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.05)
        stop.set()
        turns.close()
        assert isinstance(waiting.exception(timeout=8), StoppedError)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 56.0),
        ({"RateLimit": '"resolvers";r=2999;t=55'}, None),
        ({"RateLimit": '"resolvers";r=0;t=55', "Retry-After": "7"}, 56.0),
    ],
)
def test_how_long_an_answer_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert named_pause(headers) == seconds


def test_a_date_to_come_back_at() -> None:
    for ahead in (60, -60):
        named = named_pause({"Retry-After": formatdate(time.time() + ahead, usegmt=True)})
        assert named == pytest.approx(max(ahead, 0), abs=2)


class TestAsking:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_what_may_pass_is_asked_again(
        self, pacer: Pacer, refusal: Refusals, status: int
    ) -> None:
        failures = [refusal(status), refusal(status), BrokenAnswerError("a proxy's")]

        def request() -> str:
            if failures:
                raise failures.pop()
            return "answered"

        assert ask(pacer, request, tries=4) == "answered"
        assert not failures

    def test_after_pauses_that_double(self, pacer: Pacer, clock: Clock, refusal: Refusals) -> None:
        error = refusal(500)

        def request() -> None:
            raise error

        with pytest.raises(HfHubHTTPError):
            ask(pacer, request, tries=20)
        first = clock.slept[0]
        assert clock.slept == pytest.approx([min(first * 2**n, 60.0) for n in range(19)])

    def test_no_later_than_the_hub_asks_for(
        self, pacer: Pacer, clock: Clock, refusal: Refusals
    ) -> None:
        failures = [refusal(429, {"Retry-After": "7"}), refusal(503, {"Retry-After": "9"})]

        def request() -> None:
            if failures:
                raise failures.pop()

        ask(pacer, request, tries=3)
        assert sum(clock.slept) == 16.0

    def test_as_often_as_it_was_told(self, pacer: Pacer, refusal: Refusals) -> None:
        error, asked = refusal(500), []

        def request() -> None:
            asked.append(error)
            raise error

        with pytest.raises(HfHubHTTPError) as caught:
            ask(pacer, request, tries=3)
        assert (caught.value, len(asked)) == (error, 3)

    @pytest.mark.parametrize("status", [400, 403, 404, 416])
    def test_what_will_not_pass_is_not(self, pacer: Pacer, refusal: Refusals, status: int) -> None:
        errors = [refusal(status)]

        def request() -> None:
            raise errors.pop()

        with pytest.raises(HfHubHTTPError):
            ask(pacer, request, tries=3)
