"""How long a client waits for a server in trouble, by a clock of the test: to the second, without waiting."""

from __future__ import annotations

import asyncio
import selectors
import sys
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.remote.http.breaker import BreakerPolicy, ServerUnavailableError
from mergefront.adapters.remote.http.client import ClientPolicy, HttpClient, Reply
from mergefront.adapters.remote.http.json_answers import field
from mergefront.adapters.remote.http.retry import RetryPolicy
from mergefront.optimizer.errors import SearchStoppedError

sys.path.insert(0, str(Path(__file__).parent))
from servers import Answer, Received, Served, as_json, serve

EXCHANGE_SECONDS = 50_000.0
CONNECTING_SECONDS = 0.3
"""A loop that opens a connection or waits for an answer waits for the network; these are the limits that it sets."""
AT_ONCE = RetryPolicy(attempts=1000, first_wait=1e-6, longest_wait=1e-6)


class Skipping(selectors.DefaultSelector):
    """Lets the time pass at once in which a loop has nothing to do but wait for its clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and CONNECTING_SECONDS < timeout < EXCHANGE_SECONDS / 2:
            self.now += timeout
            return super().select(0)
        ready = super().select(timeout)
        if timeout is not None and not ready:
            self.now += max(timeout, 0.0)
        return ready


class ClockedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Skipping()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


class Script:
    """Answers from a list, the last one for ever; ``arrivals`` are the moments of the requests by the loop's clock."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.arrivals: list[float] = []
        self.loops: list[ClockedLoop] = []

    def loop(self) -> ClockedLoop:
        self.loops.append(ClockedLoop())
        return self.loops[-1]

    def __call__(self, _: Received) -> Answer:
        self.arrivals.append(self.loops[-1].time())
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @property
    def waits(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setattr(asyncio, "new_event_loop", made.loop)
    return made


def busy(status: int, **headers: str) -> Answer:
    return as_json({}, status, **headers)


FINE = as_json({"value": 1})


def ask(client: HttpClient, number: int = 0) -> float:
    return client.run(client.ask("POST", "/f", {"number": number}, lambda got: Reply(float(field(got, "value")))))


def client_of(server: Served, **policy: Any) -> HttpClient:
    return HttpClient(server.url, ClientPolicy(**{"timeout": EXCHANGE_SECONDS, "retry": AT_ONCE, **policy}))


def test_a_server_gets_the_time_that_it_asks_for_up_to_the_most_that_is_given(script: Script) -> None:
    script.answers = [busy(429, **{"Retry-After": "299.5"}), busy(503, **{"Retry-After": "300"}), FINE]
    with serve(script) as server, client_of(server) as client:
        assert ask(client) == 1.0
    assert script.waits == pytest.approx([299.5, 300.0])


@pytest.mark.parametrize(("most", "asked"), [(300.0, "301"), (20.0, "20.5")])
def test_a_server_that_asks_for_longer_stops_the_search_at_once(script: Script, most: float, asked: str) -> None:
    script.answers = [busy(429, **{"Retry-After": asked})]
    with serve(script) as server, client_of(server, longest_retry_after=most) as client:
        with pytest.raises(SearchStoppedError, match="asks to wait"):
            ask(client)
        assert len(script.arrivals) == 1 and script.loops[-1].time() == 0.0
    assert ClientPolicy().longest_retry_after == 300.0


@pytest.mark.parametrize("answer", [busy(429, **{"Retry-After": "0"}), busy(500, **{"Retry-After": "200"}), busy(502)])
def test_retries_wait_twice_as_long_each_time_whatever_less_is_asked_for(script: Script, answer: Answer) -> None:
    script.answers = [answer] * 6 + [FINE]
    patient = RetryPolicy(attempts=10, first_wait=1.0, longest_wait=16.0)
    with serve(script) as server, client_of(server, retry=patient) as client:
        assert ask(client) == 1.0
    for wait, bound in zip(script.waits, [1.0, 2.0, 4.0, 8.0, 16.0, 16.0], strict=True):
        assert bound / 2 <= wait <= bound + 1e-9


def test_a_server_that_keeps_failing_is_left_alone_twice_as_long_each_time_and_once_it_answers_all_is_forgotten(
    script: Script,
) -> None:
    breaker = BreakerPolicy(threshold=3, pause=1.0, longest_pause=8.0, give_up=1000.0)
    script.answers = [busy(503)] * 8 + [FINE] + [busy(503)] * 4 + [FINE]
    with serve(script) as server, client_of(server, breaker=breaker) as client:
        assert ask(client, 1) == ask(client, 2) == 1.0
    opened, then_well, opened_again = script.waits[2:8], script.waits[8], script.waits[11:]
    assert opened == pytest.approx([1.0, 2.0, 4.0, 8.0, 8.0, 8.0], abs=1e-4)
    assert opened_again == pytest.approx([1.0, 2.0], abs=1e-4)
    assert max(*script.waits[:2], then_well, *script.waits[9:11]) < 1e-4


def test_a_server_is_given_up_when_nothing_was_answered_for_so_long(script: Script) -> None:
    breaker = BreakerPolicy(threshold=2, pause=10.0, longest_pause=40.0, give_up=100.0)
    script.answers = [busy(503)]
    with serve(script) as server, client_of(server, breaker=breaker) as client:
        with pytest.raises(ServerUnavailableError, match="100 seconds"):
            ask(client)
        assert script.loops[-1].time() == pytest.approx(110.0, abs=1e-3)
    assert script.arrivals == pytest.approx([0.0, 0.0, 10.0, 30.0, 70.0], abs=1e-3)


def test_a_repeated_attempt_opens_a_connection_of_its_own() -> None:
    """Behind a load balancer a connection leads to one machine; if that one is ill, so is every answer through it."""
    ill: list[int] = []

    def ill_machines(request: Received) -> Answer:
        if request.port in ill or 0 < len(ill) < 3:
            ill.append(request.port)
            return busy(500)
        if not ill:
            ill.append(request.port)  # well once, and ill from now on
        return FINE

    quick = RetryPolicy(attempts=4, first_wait=0.001, longest_wait=0.001)
    with serve(ill_machines) as server, HttpClient(server.url, ClientPolicy(retry=quick)) as client:
        assert ask(client, 1) == ask(client, 2) == 1.0
        ports = [request.port for request in server.received]
    assert ports[0] == ports[1], "a connection that works is used again"
    assert len(set(ports)) == len(ports) - 1 == 3
