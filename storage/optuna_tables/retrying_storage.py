"""Optuna's storage, made to outlast a database that is away and to read without locking out writers."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session, sessionmaker

from mergefront.optimizer.search.attributes import SLOT
from mergefront.storage.optuna_tables.tables import create_trial, read_trial, read_trials
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


class RetryingStorage(RDBStorage):
    """``RDBStorage`` that repeats what was cut off by a lost connection, without doing anything twice.

    ``fault`` turns a database error into the error that users see.
    """

    def __init__(
        self, url: str, engine_kwargs: dict[str, Any], fault: Callable[[Exception], Exception], **options: Any
    ) -> None:
        super().__init__(url, engine_kwargs, **options)
        self._fault = fault
        self._reader: RDBStorage = copy.copy(self)
        options_of_reads: dict[str, Any] = {READS: True}
        if url.startswith("postgresql"):
            # What several statements read has to come from one moment; other databases' transactions see one anyhow.
            options_of_reads["isolation_level"] = "REPEATABLE READ"
        self.reading_engine: Engine = self.engine.execution_options(**options_of_reads)
        self._reader.scoped_session = scoped_session(sessionmaker(bind=self.reading_engine))

    get_study_id_from_name = _reading("get_study_id_from_name")
    get_study_name_from_id = _reading("get_study_name_from_id")
    get_study_directions = _reading("get_study_directions")
    get_study_user_attrs = _reading("get_study_user_attrs")
    get_study_system_attrs = _reading("get_study_system_attrs")
    get_all_studies = _reading("get_all_studies")
    get_trial_id_from_study_id_trial_number = _reading("get_trial_id_from_study_id_trial_number")
    set_study_user_attr = _repeatable("set_study_user_attr")
    set_study_system_attr = _repeatable("set_study_system_attr")
    set_trial_user_attr = _repeatable("set_trial_user_attr")
    set_trial_system_attr = _repeatable("set_trial_system_attr")

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """What Optuna's cache asks for; see ``read_trials``, which is many times faster than Optuna's own reading."""

        def attempt() -> list[FrozenTrial]:
            with without_collector(), self.reading_engine.begin() as connection:
                return read_trials(connection, study_id, included_trial_ids, trial_id_greater_than)

        trials = self._patiently(attempt)
        return trials if states is None else [trial for trial in trials if trial.state in states]

    def remove_session(self) -> None:
        """Give both sessions of this thread back."""
        super().remove_session()
        self._reader.scoped_session.remove()

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

        def attempt() -> FrozenTrial:
            with self.reading_engine.begin() as connection:
                return read_trial(connection, trial_id)

        return self._patiently(attempt)

    def _patiently(self, action: Callable[[], Result]) -> Result:
        try:
            return retry_transient(action)
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            raise self._fault(error) from None
