"""Optuna's storage, made to outlast a database that is away and to read without locking out writers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Engine

from mergefront.optimizer.search.attributes import SLOT
from mergefront.storage.optuna_tables.reading import (
    read_directions,
    read_study_attributes,
    read_trial,
    read_trials,
    study_id_of,
    study_name_of,
)
from mergefront.storage.optuna_tables.tables import create_trial
from mergefront.storage.retry import retry_transient

READS = "mergefront_reads"
"""Execution option of a connection whose transactions only read."""

Result = TypeVar("Result")


@contextmanager
def without_collector() -> Iterator[None]:
    """Disables cyclic GC while entered: rows form no cycles, and GC takes a third of the time that reading takes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _repeatable(name: str, *, reads: bool = False) -> Callable[..., Any]:
    """``RDBStorage``'s method of this name, which may run twice without harm; in transactions that only read."""
    plain = getattr(RDBStorage, name)

    def method(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self._patiently(lambda: plain(self._reader if reads else self, *args, **kwargs))

    return method


_reading = partial(_repeatable, reads=True)


def _sessions(engine: Engine) -> Any:
    from sqlalchemy.orm import scoped_session, sessionmaker

    return scoped_session(sessionmaker(bind=engine))


class RetryingStorage(RDBStorage):
    """``RDBStorage`` that repeats what was cut off by a lost connection, without doing anything twice.

    ``fault`` turns a database error into the error that users see. ``checked`` says that all of Optuna's tables are
    there and current (``reading.are_current``), or are made right away (``tables.create_tables``): making sure takes
    Optuna 0.1 s and 30 statements.
    """

    def __init__(
        self, url: str, engine_kwargs: dict[str, Any], fault: Callable[[Exception], Exception], *, checked: bool
    ) -> None:
        if checked:
            self._open(url, engine_kwargs)
        else:
            super().__init__(url, engine_kwargs)
        self._fault = fault
        options_of_reads: dict[str, Any] = {READS: True}
        if url.startswith("postgresql"):
            # What several statements read has to come from one moment; other databases' transactions see one anyhow.
            options_of_reads["isolation_level"] = "REPEATABLE READ"
        self.reading_engine: Engine = self.engine.execution_options(**options_of_reads)

    def _open(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        """What ``RDBStorage`` does when it is made, but for the check of its tables (as of ``schema.OPTUNA``)."""
        self.url = self._fill_storage_url_template(url) if "{" in url else url
        self.engine_kwargs = engine_kwargs
        self.skip_compatibility_check = False
        self.heartbeat_interval = self.grace_period = None
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self.engine = sqlalchemy.create_engine(self.url, **engine_kwargs)

    def __getattr__(self, name: str) -> Any:
        """What is made when it is first needed, since it brings SQLAlchemy's object mapper."""
        if name == "scoped_session":
            self.scoped_session = _sessions(self.engine)
            return self.scoped_session
        if name == "_reader":
            # A copy by Optuna's own means would open and check the database once more.
            self._reader = RDBStorage.__new__(RDBStorage)
            self._reader.__dict__.update(self.__dict__, scoped_session=_sessions(self.reading_engine))
            return self._reader
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    get_all_studies = _reading("get_all_studies")
    get_trial_id_from_study_id_trial_number = _reading("get_trial_id_from_study_id_trial_number")
    set_study_user_attr = _repeatable("set_study_user_attr")
    set_study_system_attr = _repeatable("set_study_system_attr")
    set_trial_user_attr = _repeatable("set_trial_user_attr")
    set_trial_system_attr = _repeatable("set_trial_system_attr")

    def _read(self, look: Callable[..., Result], *about: Any) -> Result:
        """What ``look`` finds in one transaction that only reads."""

        def attempt() -> Result:
            with without_collector(), self.reading_engine.begin() as connection:
                return look(connection, *about)

        return self._patiently(attempt)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._read(study_id_of, study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._read(study_name_of, study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._read(read_directions, study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._read(read_study_attributes, study_id, "user")

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._read(read_study_attributes, study_id, "system")

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """What Optuna's cache asks for; see ``read_trials``, which is many times faster than Optuna's own reading."""
        trials = self._read(read_trials, study_id, included_trial_ids, trial_id_greater_than)
        return trials if states is None else [trial for trial in trials if trial.state in states]

    def remove_session(self) -> None:
        """Give both sessions of this thread back."""
        for storage in (self, self.__dict__.get("_reader")):
            if storage is not None and "scoped_session" in storage.__dict__:
                storage.scoped_session.remove()

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """One new trial; when a first try was cut off, the trial that it may have made."""
        tried = False
        slot = None if template_trial is None else template_trial.user_attrs.get(SLOT)

        def attempt() -> FrozenTrial:
            nonlocal tried
            running = self._get_trials(study_id, (TrialState.RUNNING,), set(), -1) if tried and slot is not None else ()
            tried = True
            made = next((trial for trial in running if trial.user_attrs.get(SLOT) == slot), None)
            return made or self._made_trial(study_id, template_trial)

        return self._patiently(attempt)

    def _made_trial(self, study_id: int, template: FrozenTrial | None) -> FrozenTrial:
        with self.engine.begin() as connection:
            return create_trial(connection, study_id, template)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One trial; raises ``KeyError`` for an unknown id."""
        return self._read(read_trial, trial_id)

    def _patiently(self, action: Callable[[], Result]) -> Result:
        try:
            return retry_transient(action)
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            raise self._fault(error) from None
