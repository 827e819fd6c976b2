"""Claims and evaluations of one study: what makes a search safe to kill at any instant."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from sqlalchemy import and_, func, select
from sqlalchemy.engine import Connection, Row

from mergefront.optimizer.evaluation import Evaluation, ItemScores
from mergefront.optimizer.recipe import Recipe
from mergefront.optimizer.search import Claim, Failure
from mergefront.storage.database import Database
from mergefront.storage.optuna_tables import finish_trial, write_params, write_user_attributes
from mergefront.storage.schema import claims, evaluations, item_scores, item_sets, studies

LEASE_SECONDS = 120.0
"""A worker on another machine that has not been heard of for so long is taken for dead."""
HEARTBEAT_SECONDS = 20.0


class StudyLedger:
    """The ledger of one study (implements ``mergefront.optimizer.search.Ledger``).

    ``versions`` (package -> version) is kept with every evaluation. With ``lease`` (seconds) a claim
    belongs to nobody's process and is free again when that time has passed: for work that is done elsewhere.
    """

    def __init__(
        self, database: Database, study_id: int, versions: Mapping[str, str], lease: float | None = None
    ) -> None:
        self.lease = lease
        self.database = database
        self.study_id = study_id
        self.versions = dict(versions)
        self.host = socket.gethostname()
        self.process = process_identity(os.getpid())

    def claim(self, budget: int) -> Claim | None:
        """See ``Ledger.claim``; atomic between processes and machines."""
        with self.database.transaction() as connection:
            # Locks the study's row where the database has row locks; SQLite has the write lock already.
            connection.execute(select(studies.c.study_id).where(studies.c.study_id == self.study_id).with_for_update())
            abandoned = self._abandoned(connection)
            if abandoned is not None:
                deaths = abandoned.deaths + (abandoned.process is not None)
                connection.execute(
                    claims.update().where(self._slot(abandoned.slot)).values(deaths=deaths, **self._owner())
                )
                return Claim(abandoned.slot, abandoned.trial_number, deaths)
            last = connection.execute(
                select(func.max(claims.c.slot)).where(claims.c.study_id == self.study_id)
            ).scalar()
            slot = 0 if last is None else last + 1
            if slot >= budget:
                return None
            connection.execute(
                claims.insert().values(
                    study_id=self.study_id, slot=slot, trial_number=None, finished=False, deaths=0, **self._owner()
                )
            )
            return Claim(slot, None, fresh=True)

    def forgive(self) -> None:
        """See ``Ledger.forgive``."""
        with self.database.transaction() as connection:
            for row in self._unfinished(connection):
                if self._is_abandoned(row):
                    freed = {"deaths": 0, "host": None, "process": None, "heartbeat": None}
                    connection.execute(claims.update().where(self._slot(row.slot)).values(**freed))

    def others_at_work(self) -> bool:
        """See ``Ledger.others_at_work``."""
        with self.database.transaction() as connection:
            rows = self._unfinished(connection)
        return any(not self._is_abandoned(row) for row in rows)

    def bind(
        self,
        claim: Claim,
        trial: FrozenTrial,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any],
    ) -> None:
        """See ``Ledger.bind``."""
        with self.database.transaction() as connection:
            if claim.trial_number != trial.number:
                connection.execute(claims.update().where(self._slot(claim.slot)).values(trial_number=trial.number))
            write_params(connection, trial._trial_id, params, distributions)
            changed = {key: value for key, value in attributes.items() if trial.user_attrs.get(key) != value}
            write_user_attributes(connection, trial._trial_id, changed)

    def finish(
        self,
        claim: Claim,
        trial: FrozenTrial,
        recipe: Recipe,
        outcome: Evaluation | Failure,
        values: Sequence[float] | None,
        attributes: Mapping[str, Any],
        keep: bool,
    ) -> None:
        """See ``Ledger.finish``."""
        with self.database.transaction() as connection:
            if finish_trial(connection, trial._trial_id, values):
                write_user_attributes(connection, trial._trial_id, attributes)
                if keep:
                    self._keep(connection, trial.number, recipe, outcome, "search")
            connection.execute(claims.update().where(self._slot(claim.slot)).values(finished=True))

    def close(self, claim: Claim) -> None:
        """See ``Ledger.close``."""
        self._update(claim, finished=True)

    def claim_of(self, trial_number: int) -> tuple[Claim, bool] | None:
        """The claim that a trial fills and whether it is finished; None for an unknown trial."""
        with self.database.transaction() as connection:
            row = connection.execute(
                select(claims).where(claims.c.study_id == self.study_id, claims.c.trial_number == trial_number)
            ).first()
        return None if row is None else (Claim(row.slot, row.trial_number, row.deaths), bool(row.finished))

    def release(self, claim: Claim) -> None:
        """See ``Ledger.release``."""
        self._update(claim, host=None, process=None, heartbeat=None)

    @contextmanager
    def keep_alive(self, claim: Claim) -> Iterator[None]:
        """See ``Ledger.keep_alive``: a heartbeat from a thread of its own."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                self._update(claim, heartbeat=time.time())

        thread = threading.Thread(target=beat, name="mergefront-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def find(self, recipe: Recipe, split: str = "search") -> Evaluation | None:
        """The evaluation of an identical recipe in this study, or None."""
        with self.database.transaction() as connection:
            row = connection.execute(
                select(evaluations)
                .where(
                    evaluations.c.study_id == self.study_id,
                    evaluations.c.digest == recipe.digest,
                    evaluations.c.split == split,
                    evaluations.c.failure.is_(None),
                )
                .order_by(evaluations.c.id)
            ).first()
            return None if row is None else _read_evaluation(connection, row)

    def record(self, recipe: Recipe, evaluation: Evaluation, split: str) -> None:
        """Keep an evaluation that belongs to no trial, such as one on the report items."""
        with self.database.transaction() as connection:
            self._keep(connection, None, recipe, evaluation, split)

    def _keep(
        self,
        connection: Connection,
        trial_number: int | None,
        recipe: Recipe,
        outcome: Evaluation | Failure,
        split: str,
    ) -> None:
        row: dict[str, Any] = {
            "study_id": self.study_id,
            "trial_number": trial_number,
            "digest": recipe.digest,
            "split": split,
            "recipe": recipe.to_json(),
            "versions": self.versions,
            "created_at": datetime.now(UTC).replace(tzinfo=None),
        }
        if isinstance(outcome, Failure):
            empty: dict[str, Any] = {name: {} for name in ("scores", "standard_errors", "seconds", "cost", "details")}
            row |= {"failure_kind": outcome.kind[:255], "failure": outcome.reason, **empty}
        else:
            row |= {
                "scores": {name: float(value) for name, value in outcome.scores.items()},
                "standard_errors": {
                    name: float(value) for name, value in outcome.standard_errors.items() if np.isfinite(value)
                },
                "seconds": dict(outcome.seconds),
                "cost": dict(outcome.cost),
                "details": dict(outcome.details),
            }
        key = connection.execute(evaluations.insert().values(**row)).inserted_primary_key
        if isinstance(outcome, Evaluation):
            assert key is not None
            for task, items in outcome.items.items():
                _write_items(connection, int(key[0]), task, items)

    def evaluations(self, split: str = "search", *, items: bool = False) -> dict[str, Evaluation]:
        """Every finished evaluation by its recipe's digest; item scores only when asked for."""
        with self.database.transaction() as connection:
            rows = connection.execute(
                select(evaluations)
                .where(
                    evaluations.c.study_id == self.study_id,
                    evaluations.c.split == split,
                    evaluations.c.failure.is_(None),
                )
                .order_by(evaluations.c.id)
            ).all()
            found: dict[str, Evaluation] = {}
            for row in rows:
                found.setdefault(row.digest, _read_evaluation(connection, row, items))
            return found

    def recipes(self) -> dict[str, Recipe]:
        """Every recipe that was evaluated or failed, by its digest."""
        with self.database.transaction() as connection:
            rows = connection.execute(
                select(evaluations.c.digest, evaluations.c.recipe).where(evaluations.c.study_id == self.study_id)
            ).all()
        return {row.digest: Recipe.from_json(row.recipe) for row in rows}

    def _unfinished(self, connection: Connection) -> Sequence[Row[Any]]:
        return connection.execute(
            select(claims)
            .where(claims.c.study_id == self.study_id, claims.c.finished.is_(False))
            .order_by(claims.c.slot)
        ).all()

    def _abandoned(self, connection: Connection) -> Row[Any] | None:
        return next((row for row in self._unfinished(connection) if self._is_abandoned(row)), None)

    def _is_abandoned(self, row: Row[Any]) -> bool:
        if row.process is None or row.heartbeat is None:
            return True
        if row.host == self.host:
            return row.process != self.process and not _alive(row.process)
        return time.time() - float(row.heartbeat) > LEASE_SECONDS

    def _owner(self) -> dict[str, Any]:
        if self.lease is not None:
            return {"host": "", "process": "leased", "heartbeat": time.time() + self.lease - LEASE_SECONDS}
        return {"host": self.host, "process": self.process, "heartbeat": time.time()}

    def _slot(self, slot: int) -> Any:
        return and_(claims.c.study_id == self.study_id, claims.c.slot == slot)

    def _update(self, claim: Claim, **values: Any) -> None:
        with self.database.transaction() as connection:
            connection.execute(claims.update().where(self._slot(claim.slot)).values(**values))


def process_identity(pid: int) -> str:
    """Process id and start time, so that a later process with the same id is told apart."""
    try:
        # Field 22 of /proc/PID/stat; the command in field 2 may hold spaces and brackets.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"{pid}/{started}"


def _alive(identity: str) -> bool:
    pid, _, _ = identity.partition("/")
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OSError):
        return True
    return process_identity(int(pid)) == identity


def _write_items(connection: Connection, evaluation_id: int, task: str, items: ItemScores) -> None:
    digest = sha256("\n".join(items.ids).encode()).hexdigest()[:32]
    known = connection.execute(select(item_sets.c.digest).where(item_sets.c.digest == digest)).first()
    if known is None:
        connection.execute(item_sets.insert().values(digest=digest, ids=list(items.ids)))
    connection.execute(
        item_scores.insert().values(
            evaluation_id=evaluation_id,
            task=task,
            item_set=digest,
            scores=_pack(items.scores),
            margins=None if items.margins is None else _pack(items.margins),
        )
    )


def _read_evaluation(connection: Connection, row: Row[Any], with_items: bool = True) -> Evaluation:
    items: dict[str, ItemScores] = {}
    if with_items:
        stored = connection.execute(
            select(item_scores, item_sets.c.ids)
            .join(item_sets, item_sets.c.digest == item_scores.c.item_set)
            .where(item_scores.c.evaluation_id == row.id)
        ).all()
        items = {
            entry.task: ItemScores(
                tuple(entry.ids), _unpack(entry.scores), None if entry.margins is None else _unpack(entry.margins)
            )
            for entry in stored
        }
    return Evaluation(row.scores, row.standard_errors, items, row.seconds, row.cost, row.details)


def _pack(values: tuple[float, ...]) -> bytes:
    return np.asarray(values, dtype="<f8").tobytes()


def _unpack(data: bytes) -> tuple[float, ...]:
    return tuple(np.frombuffer(data, dtype="<f8").tolist())
