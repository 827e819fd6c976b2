"""Turns between clients and sessions, and what becomes of jobs that nobody waits for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.serving.merges.queueing import FairQueue, GoneError, QueueClosedError, QueueFullError


async def run(work: Callable[[], Any]) -> Any:
    await asyncio.sleep(0)
    return work()


async def yes() -> bool:
    return True


async def order_of(jobs: list[tuple[str, str, float]]) -> list[int]:
    """In which order jobs (client, session, cost) that wait together are run."""
    queue, order = FairQueue(run, 10_000), []
    waiting = [
        asyncio.ensure_future(queue.ask(client, session, cost, lambda n=n: order.append(n), yes))
        for n, (client, session, cost) in enumerate(jobs)
    ]
    await asyncio.gather(*waiting)
    await queue.end()
    return order


JOBS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(1, 20).map(float)), min_size=1, max_size=40
)


@given(JOBS)
def test_nobody_is_served_much_more_than_another_who_waits(jobs: list[tuple[str, str, float]]):
    """A client with many sessions or large messages would hold up all others."""
    order = asyncio.run(order_of(jobs))
    assert sorted(order) == list(range(len(jobs)))
    largest = max(cost for _, _, cost in jobs)
    served = dict.fromkeys({client for client, _, _ in jobs}, 0.0)
    for place, number in enumerate(order):
        client, _, cost = jobs[number]
        still_waiting = {jobs[later][0] for later in order[place:]}
        served[client] += cost
        for other in still_waiting - {client}:
            assert served[client] - cost <= served[other] + largest
    for client, session in {(client, session) for client, session, _ in jobs}:
        own = [number for number in order if jobs[number][:2] == (client, session)]
        assert own == sorted(own), "a session's jobs are run in the order in which they came"


def test_idle_time_is_no_credit_and_leaving_the_queue_no_escape():
    """One request at a time would always come before a neighbour's queue."""

    async def scenario() -> list[str]:
        queue, order = FairQueue(run, 100), []
        crowd = [
            asyncio.ensure_future(queue.ask("crowd", "s", 1, lambda: order.append("crowd"), yes)) for _ in range(9)
        ]

        async def one_by_one() -> None:
            for _ in range(3):
                await queue.ask("single", "s", 3, lambda: order.append("single"), yes)

        await asyncio.gather(one_by_one(), *crowd)
        await queue.end()
        return order

    order = asyncio.run(scenario())
    assert order.index("single") <= 1
    between = [place for place, who in enumerate(order) if who == "single"]
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(between))


def test_jobs_nobody_waits_for_are_not_run_and_faults_stay_with_their_own_job():
    """A client that timed out and asks again would be worked for twice; one bad merge would end the service."""

    async def scenario() -> list[str]:
        queue, ran = FairQueue(run, 2), []

        async def no() -> bool:
            return False

        def fails() -> None:
            raise ValueError("bad merge")

        async def ask(work: Callable[[], Any], wanted: Callable[[], Awaitable[bool]] = yes) -> Any:
            return await queue.ask("a", "s", 1, work, wanted)

        cancelled = asyncio.ensure_future(ask(lambda: ran.append("cancelled")))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(GoneError):
            await ask(lambda: ran.append("gone"), no)
        with pytest.raises(ValueError, match="bad merge"):
            await ask(fails)
        await ask(lambda: ran.append("after"))
        waiting = [asyncio.ensure_future(ask(lambda: None)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="2 requests"):
            await ask(lambda: None)
        queue.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, QueueClosedError) for result in results)
        with pytest.raises(QueueClosedError):
            await ask(lambda: None)
        await queue.end()
        return ran

    assert asyncio.run(scenario()) == ["after"]
