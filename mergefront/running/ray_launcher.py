"""A study's workers as tasks of a Ray cluster (extra ``ray``).

Each task does what ``mergefront worker`` does, against the study's database: claims, budget and takeover are the
database's. Ray says where a worker runs, starts one again that died, and carries its progress back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import SearchStoppedError, UserError
from mergefront.optimizer.scores.evaluation import Evaluator
from mergefront.optimizer.search.loop import TrialOutcome
from mergefront.running.worker import work
from mergefront.storage.database import normalised_url, sqlite_path
from mergefront.study.stored_study import Study

RESTARTS = 3
"""How often Ray starts a worker again whose process or machine died."""
_LOOK_SECONDS = 0.2
_GIVING_BACK_SECONDS = 10.0


def work_on_ray(
    study: Study,
    evaluator: Evaluator | None,
    workers: int | None,
    on_trial_end: Callable[[TrialOutcome], None],
    on_trial_start: Callable[[int, str | None], None],
) -> None:
    """Work on a study with ``workers`` tasks until its budget is spent.

    ``workers`` None means one per GPU of the cluster, or one per CPU where there are no GPUs. ``evaluator`` None
    makes each worker build what the study's definition names. Connects to the cluster that ``RAY_ADDRESS`` names or
    that runs on this machine; without one Ray starts on this machine for as long as the call lasts.

    The first worker that cannot go on ends them all; what was under way is given back. Raises ``UserError`` without
    Ray and for an SQLite file that several machines would need, ``SearchStoppedError`` when workers keep dying.
    """
    ray = imported_ray()
    from ray.util.queue import Queue

    with _connected(ray):
        url = reachable_url(study.database.url, sum(node["Alive"] for node in ray.nodes()))
        left = max(study.record.evaluations - study.finished_count(), 1)
        definition = study.definition
        takes_gpus = definition.evaluator.type != "server" and definition.runtime.get("device") != "cpu"
        count, needs = share(ray.cluster_resources(), takes_gpus, workers, left)
        device = "cuda" if needs["num_gpus"] else None
        inbox = Queue(actor_options={"num_cpus": 0})
        task = ray.remote(max_retries=RESTARTS, **needs)(_work)
        pending = [task.remote(study.name, url, device, evaluator, inbox) for _ in range(count)]
        try:
            lost = _follow(ray, pending, lambda: _deliver(inbox, on_trial_end, on_trial_start))
        finally:
            _cancel(ray, pending)
            _deliver(inbox, on_trial_end, on_trial_start)
            inbox.shutdown()
    done = study.finished_count()
    if lost and done < study.record.evaluations:
        raise SearchStoppedError(
            f"{lost} of {count} workers died {RESTARTS + 1} times each (killed, out of memory, machine gone); "
            f"{done} of {study.record.evaluations} evaluations are kept. Mend the cause and resume the study"
        )


def imported_ray() -> Any:
    """Ray's module; raises ``UserError`` without the extra."""
    try:
        import ray
    except ImportError:
        raise UserError('launcher "ray" needs the extra: pip install "mergefront[ray]"') from None
    return ray


def _work(name: str, storage: str, device: str | None, evaluator: Evaluator | None, inbox: Any) -> None:
    """One worker, in a process of the cluster."""
    work(
        name,
        storage=storage,
        device=device,
        evaluator=evaluator,
        on_trial_end=lambda *told: inbox.put(("end", told)),
        on_trial_start=lambda *told: inbox.put(("start", told)),
    )


def _follow(ray: Any, pending: list[Any], deliver: Callable[[], None]) -> int:
    """Wait until every task has ended, passing its progress on; returns how many died for good.

    Raises the error of the first task that ended with one.
    """
    lost = 0
    while pending:
        ended, pending[:] = ray.wait(pending, timeout=_LOOK_SECONDS)
        deliver()
        for task in ended:
            try:
                ray.get(task)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError:
                lost += 1
    return lost


def _deliver(
    inbox: Any, on_trial_end: Callable[[TrialOutcome], None], on_trial_start: Callable[[int, str | None], None]
) -> None:
    for event, told in inbox.get_nowait_batch(inbox.qsize()):
        (on_trial_start if event == "start" else on_trial_end)(*told)


def _cancel(ray: Any, pending: list[Any]) -> None:
    """End tasks as Ctrl-C would, so that each gives back what it has under way; kill what does not end."""
    for task in pending:
        ray.cancel(task)
    if pending:
        _, stubborn = ray.wait(pending, num_returns=len(pending), timeout=_GIVING_BACK_SECONDS)
        for task in stubborn:
            ray.cancel(task, force=True)


def share(resources: dict[str, float], takes_gpus: bool, workers: int | None, most: int) -> tuple[int, dict[str, int]]:
    """How many workers, and what each asks the cluster for: a GPU where there are some and the study may use one."""
    gpus = int(resources.get("GPU", 0)) if takes_gpus else 0
    wanted = workers if workers is not None else min(gpus or int(resources.get("CPU", 1)), most)
    return max(wanted, 1), {"num_cpus": 1, "num_gpus": 1 if gpus else 0}


def reachable_url(url: str, machines: int) -> str:
    """The storage URL as every worker can use it, an SQLite path made absolute."""
    path = sqlite_path(url)
    if path is None:
        return url
    if machines > 1:
        raise UserError(
            f"storage {url}: {machines} machines cannot share it; copy the study to a server with "
            "'mergefront copy NAME --to postgresql+psycopg://...'"
        )
    return normalised_url(url, Path.cwd())


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    if ray.is_initialized():  # the caller's connection stays the caller's
        yield
        return
    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
