"""Claims and evaluations of one study: what makes a search safe to kill at any instant."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from sqlalchemy import ColumnElement, Select, Text, and_, cast, func, select
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import IntegrityError

from mergefront.optimizer.errors import StorageError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.search.ledger import LONGEST_KIND, Attributes, Claim, Failure
from mergefront.storage.database import Database
from mergefront.storage.evaluation_rows import StoredRecipes, read_evaluation, writable, write_items
from mergefront.storage.optuna_tables.reading import read_trial
from mergefront.storage.optuna_tables.tables import finish_trial, write_attributes, write_params
from mergefront.storage.schema import claims, evaluations, studies, utc_now
from mergefront.storage.workers.heartbeat import Heartbeat
from mergefront.storage.workers.processes import is_alive, is_previous_boot, machine_identity, process_identity

_LEASED = "leased"
_RELEASE_SECONDS = 1.0
_LONGEST_LIST = 500  # databases limit the number of values in a statement
_NOBODY: dict[str, Any] = {"host": None, "process": None, "heartbeat": None, "started": None}

LEASE_SECONDS = 120.0
"""A worker on another machine that has not been heard of for so long is taken for dead."""
HEARTBEAT_SECONDS = 20.0
PROPOSAL_SECONDS = 60.0
"""A proposal that takes longer holds nobody up."""
LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.02, 5.0
"""How often the next in line looks, and how seldom the last; the tenth looks every second."""
TURN_SECONDS = 2.0
"""How long somebody in line has seen a slot at its head before it passes by."""


@dataclass(frozen=True)
class Worker:
    """Somebody at work on a trial (None: not opened yet) for so many ``seconds``; ``name`` is host:process."""

    name: str
    trial: int | None
    seconds: float | None
    abandoned: bool


class StudyLedger:
    """The ledger of one study (implements ``mergefront.optimizer.search.loop.Ledger``).

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
        self.host = machine_identity()
        # Ledgers of one process are told apart: each takes care of its own claims.
        self.process = f"{process_identity(os.getpid())}/{secrets.token_hex(4)}"
        self._open: set[int] = set()
        self._heart = Heartbeat(self._beat, HEARTBEAT_SECONDS)

    def claim(self, budget: int) -> Claim | None:
        """See ``Ledger.claim``; atomic between processes and machines."""
        claim = self.database.write(lambda connection: self._claim(connection, budget))
        if claim is not None:
            self._open.add(claim.slot)
        return claim

    def _claim(self, connection: Connection, budget: int) -> Claim | None:
        # In SQLite the transaction has the only lock for writing; this one lets others insert rows that refer to it.
        row_of_study = select(studies.c.study_id).where(studies.c.study_id == self.study_id)
        now = self.database.now(connection, row_of_study.with_for_update(key_share=True))
        every = claims.c.study_id == self.study_id
        last = claims.c.slot == select(func.max(claims.c.slot)).where(every).scalar_subquery()
        rows = connection.execute(
            select(claims).where(every, claims.c.finished.is_(False) | last).order_by(claims.c.slot)
        ).all()
        unfinished = [row for row in rows if not row.finished]
        abandoned = next((row for row in unfinished if self._is_abandoned(row, now)), None)
        if abandoned is not None:
            deaths = abandoned.deaths + (abandoned.process is not None and not self._is_mine(abandoned))
            connection.execute(
                claims.update().where(self._slot(abandoned.slot)).values(deaths=deaths, **self._owner(now[0]))
            )
            in_line = abandoned.trial_number is None and bool(self._proposing(unfinished, abandoned.slot, now))
            return Claim(abandoned.slot, abandoned.trial_number, deaths, in_line=in_line)
        slot = rows[-1].slot + 1 if rows else 0
        if slot >= budget:
            return None
        row = {"study_id": self.study_id, "slot": slot, "trial_number": None, "finished": False, "deaths": 0}
        connection.execute(claims.insert().values(**row, **self._owner(now[0])))
        return Claim(slot, None, fresh=True, in_line=bool(self._proposing(unfinished, slot, now)))

    def others_at_work(self) -> bool:
        """See ``Ledger.others_at_work``."""

        def look(connection: Connection) -> bool:
            now = self.database.now(connection)
            return any(not self._is_abandoned(row, now) for row in self._unfinished(connection))

        return self.database.read(look)

    def wait_for_turn(self, claim: Claim, should_stop: Callable[[], bool]) -> bool:
        """See ``Ledger.wait_for_turn``; nothing is locked meanwhile."""

        def look(connection: Connection) -> tuple[list[Row[Any]], float]:
            now = self.database.now(connection)
            return self._proposing(self._unfinished(connection), claim.slot, now), now[0]

        first_seen: dict[int, float] = {}

        def is_stuck(row: Row[Any], now: float) -> bool:
            """Of the slot at the head of the line, which starts its clock anew there, perhaps only after this look."""
            seen = time.monotonic() - first_seen.setdefault(row.slot, time.monotonic())
            return seen > TURN_SECONDS and now - float(row.started or 0.0) > PROPOSAL_SECONDS

        def start(connection: Connection) -> None:
            now, _ = self.database.now(connection)
            connection.execute(claims.update().where(self._own_slot(claim.slot)).values(started=now))

        before, now = self.database.read(look)
        while not all(is_stuck(row, now) for row in before):
            if should_stop():
                return False
            # Whoever is far back looks seldom: many that wait would take the cores from the one who proposes.
            place = len(before)
            time.sleep(min(LOOK_SECONDS * min(place**2, 5 * place), LONGEST_LOOK_SECONDS))
            before, now = self.database.read(look)
        self.database.write(start)
        return True

    def _proposing(self, unfinished: Sequence[Row[Any]], slot: int, now: tuple[float, float]) -> list[Row[Any]]:
        """The claims before a slot that live and have no proposal yet, in order."""
        return [
            row
            for row in unfinished
            if row.slot < slot and row.trial_number is None and not self._is_abandoned(row, now)
        ]

    def finished_count(self) -> int:
        """How many slots of the budget are spent, by whomever."""
        return self._count(claims.c.study_id == self.study_id, claims.c.finished.is_(True))

    def workers(self) -> list[Worker]:
        """Who works on what; claims of the dead and of expired leases are marked as abandoned."""

        def look(connection: Connection) -> list[Worker]:
            now = self.database.now(connection)
            return [
                Worker(
                    "asked"
                    if row.process == _LEASED
                    else f"{(row.host or '?').split('/')[0]}:{row.process.split('/')[0]}",
                    row.trial_number,
                    None if row.started is None else max(0.0, now[0] - row.started),
                    self._is_abandoned(row, now),
                )
                for row in self._unfinished(connection)
                if row.process is not None
            ]

        return self.database.read(look)

    def bind(
        self,
        claim: Claim,
        trial: FrozenTrial,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attributes: Attributes,
    ) -> None:
        """See ``Ledger.bind``."""

        def change(connection: Connection) -> None:
            if claim.trial_number != trial.number:
                connection.execute(claims.update().where(self._slot(claim.slot)).values(trial_number=trial.number))
            write_params(connection, trial._trial_id, params, distributions)
            write_attributes(connection, trial, attributes)

        try:
            self.database.write(change)
        except IntegrityError:
            # Written by a transaction whose success was never heard of, or by one who took this trial over.
            written = self.database.read(lambda connection: read_trial(connection, trial._trial_id)).params
            if any(written.get(name) != value for name, value in params.items()):
                raise

    def finish(
        self,
        claim: Claim,
        trial: FrozenTrial,
        recipe: Recipe,
        outcome: Evaluation | Failure,
        values: Sequence[float] | None,
        attributes: Attributes,
        keep: bool,
    ) -> bool:
        """See ``Ledger.finish``."""

        def change(connection: Connection) -> bool:
            is_first = finish_trial(connection, trial._trial_id, values)
            if is_first:
                write_attributes(connection, trial, attributes)
                if keep:
                    self._keep(connection, trial.number, recipe, outcome, "search", utc_now())
            connection.execute(claims.update().where(self._slot(claim.slot)).values(finished=True))
            return is_first

        is_first = self.database.write(change, durable=True)
        self._open.discard(claim.slot)
        return is_first

    def claim_of(self, trial_number: int) -> tuple[Claim, bool] | None:
        """The claim that a trial fills and whether it is finished; None for an unknown trial."""
        query = select(claims).where(claims.c.study_id == self.study_id, claims.c.trial_number == trial_number)
        row = self.database.read(lambda connection: connection.execute(query).first())
        return None if row is None else (Claim(row.slot, row.trial_number, row.deaths), bool(row.finished))

    def release(self, claim: Claim) -> None:
        """See ``Ledger.release``."""
        self._open.discard(claim.slot)
        # Not waited for: whoever gives back is about to end, and the claim of an ended process is free anyhow.
        update = claims.update().where(self._own_slot(claim.slot)).values(**_NOBODY)
        with suppress(StorageError):
            self.database.write(lambda connection: connection.execute(update), patience=_RELEASE_SECONDS)

    @contextmanager
    def keep_alive(self, claim: Claim) -> Iterator[None]:
        """See ``Ledger.keep_alive``: a heartbeat from a thread of its own."""
        self._heart.add(claim.slot)
        try:
            yield
        finally:
            self._heart.remove(claim.slot)

    def find(self, recipe: Recipe, split: str = "search") -> Evaluation | None:
        """The evaluation of an identical recipe in this study, or None."""
        return self.find_all([recipe.digest], split).get(recipe.digest)

    def find_all(self, digests: Sequence[str], split: str = "search") -> dict[str, Evaluation]:
        """The evaluations of those recipes that have one, with their items, by digest."""

        return self.database.read(lambda connection: self._found(connection, digests, split)) if digests else {}

    def _found(self, connection: Connection, digests: Sequence[str], split: str) -> dict[str, Evaluation]:
        found: dict[str, Evaluation] = {}
        sets: dict[str, tuple[str, ...]] = {}
        for start in range(0, len(digests), _LONGEST_LIST):
            few = evaluations.c.digest.in_(digests[start : start + _LONGEST_LIST])
            for row in connection.execute(self._scored(split).where(few)).all():
                if row.digest not in found:
                    found[row.digest] = read_evaluation(connection, row, sets)
        return found

    def evaluations_beside(self, known: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
        """See ``Ledger.evaluations_beside``."""

        def look(connection: Connection) -> dict[str, Evaluation]:
            query = self._scored("search").with_only_columns(evaluations.c.digest)
            digests = dict.fromkeys(connection.execute(query).scalars())
            new = self._found(connection, [one for one in digests if one not in known], "search")
            return {digest: known[digest] if digest in known else new[digest] for digest in digests}

        return self.database.read(look)

    def record(self, recipe: Recipe, evaluation: Evaluation, split: str) -> None:
        """Keep an evaluation that belongs to no trial, such as one on the report items."""
        moment = utc_now()
        of_this_call = self._scored(split).where(
            evaluations.c.digest == recipe.digest, evaluations.c.created_at == moment
        )

        def change(connection: Connection) -> None:
            if connection.execute(of_this_call).first() is None:
                self._keep(connection, None, recipe, evaluation, split, moment)

        self.database.write(change, durable=True)

    def _keep(
        self,
        connection: Connection,
        trial_number: int | None,
        recipe: Recipe,
        outcome: Evaluation | Failure,
        split: str,
        moment: datetime,
    ) -> None:
        found = Evaluation({}) if isinstance(outcome, Failure) else outcome
        row: dict[str, Any] = {
            "study_id": self.study_id,
            "trial_number": trial_number,
            "digest": recipe.digest,
            "split": split,
            "recipe": recipe.to_json(),
            "scores": {name: float(value) for name, value in found.scores.items()},
            "standard_errors": {
                name: float(value) for name, value in found.standard_errors.items() if np.isfinite(value)
            },
            "seconds": dict(found.seconds),
            "cost": dict(found.cost),
            "details": dict(found.details),
            "versions": self.versions,
            "created_at": moment,
        }
        if isinstance(outcome, Failure):
            kept = outcome.bounded()
            row |= {"failure_kind": writable(kept.kind)[:LONGEST_KIND], "failure": writable(kept.reason)}
        key = connection.execute(evaluations.insert().values(**row)).inserted_primary_key
        assert key is not None
        for task, items in sorted(found.items.items()):
            write_items(connection, int(key[0]), task, items)

    def evaluations(self, split: str = "search", *, items: bool | Collection[str] = False) -> dict[str, Evaluation]:
        """Every finished evaluation by its recipe's digest; item scores only when asked for, of all or of some."""

        def look(connection: Connection) -> dict[str, Evaluation]:
            found: dict[str, Evaluation] = {}
            sets: dict[str, tuple[str, ...]] = {}
            for row in connection.execute(self._scored(split)).all():
                wanted = items if isinstance(items, bool) else row.digest in items
                if row.digest not in found:
                    found[row.digest] = read_evaluation(connection, row, sets if wanted else None)
            return found

        return self.database.read(look)

    def _scored(self, split: str) -> Select[Any]:
        """The rows of evaluations that did not fail, in the order in which they finished."""
        columns = ("id", "digest", "scores", "standard_errors", "seconds", "cost", "details")
        return (
            select(*(evaluations.c[name] for name in columns))
            .where(
                evaluations.c.study_id == self.study_id,
                evaluations.c.split == split,
                evaluations.c.failure.is_(None),
            )
            .order_by(evaluations.c.id)
        )

    def evaluation_count(self) -> int:
        """How many evaluations are kept, of every split and failures included."""
        return self._count(evaluations.c.study_id == self.study_id)

    def _count(self, *where: ColumnElement[bool]) -> int:
        query = select(func.count()).where(*where)
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))

    def recipes(self, digest: str | None = None) -> Mapping[str, Recipe]:
        """Every recipe that was evaluated or failed, by its digest, or the one of this digest alone."""
        query = select(evaluations.c.digest, cast(evaluations.c.recipe, Text).label("text")).where(
            evaluations.c.study_id == self.study_id
        )
        if digest is not None:
            query = query.where(evaluations.c.digest == digest)
        return StoredRecipes(
            self.database.read(lambda connection: {row.digest: row.text for row in connection.execute(query)})
        )

    def _unfinished(self, connection: Connection) -> Sequence[Row[Any]]:
        return connection.execute(
            select(claims)
            .where(claims.c.study_id == self.study_id, claims.c.finished.is_(False))
            .order_by(claims.c.slot)
        ).all()

    def _is_abandoned(self, row: Row[Any], now: tuple[float, float]) -> bool:
        if row.process is None or row.heartbeat is None:
            return True
        if row.host == self.host:
            if self._is_mine(row):
                return row.slot not in self._open  # claimed by a transaction whose success was never heard of
            return not is_alive("/".join(row.process.split("/")[:2]))  # process id and start time
        if row.process != _LEASED and self.database.is_sqlite and is_previous_boot(row.host or ""):
            return True
        time_now, running_since = now
        # Nobody could give a sign of life while the server was down.
        silent = time_now - max(float(row.heartbeat), running_since)
        if row.process == _LEASED:
            return time_now - float(row.heartbeat) > LEASE_SECONDS
        return abs(silent) > LEASE_SECONDS  # a sign of life from far in the future: the clock was set back

    def _is_mine(self, row: Row[Any]) -> bool:
        return bool(row.host == self.host and row.process == self.process)

    def _owner(self, now: float) -> dict[str, Any]:
        if self.lease is not None:
            return {"host": "", "process": _LEASED, "heartbeat": now + self.lease - LEASE_SECONDS, "started": now}
        return {"host": self.host, "process": self.process, "heartbeat": now, "started": now}

    def _slot(self, slot: int) -> ColumnElement[bool]:
        return and_(claims.c.study_id == self.study_id, claims.c.slot == slot)

    def _own_slot(self, slot: int) -> ColumnElement[bool]:
        """A slot that nobody else has taken over meanwhile."""
        process = _LEASED if self.lease is not None else self.process
        return and_(self._slot(slot), claims.c.process == process)

    def _beat(self, slot: int) -> None:
        def change(connection: Connection) -> None:
            now, _ = self.database.now(connection)
            connection.execute(claims.update().where(self._own_slot(slot)).values(heartbeat=now))

        self.database.write(change)
