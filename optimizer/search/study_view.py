"""A study as a sampler is to see it: as it was at one moment, some trials left out, some shown with other values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any, cast

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class _StudyView:
    """Everything but the trials (``_seen``) is the study itself."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy=deepcopy, states=states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = [trial for trial in self._seen() if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _seen(self) -> list[FrozenTrial]:
        """All trials that there are to be seen."""
        raise NotImplementedError


class _RestatedStudy(_StudyView):
    """Its trials as ``shown`` makes them."""

    def __init__(self, study: Study, shown: Callable[[FrozenTrial], FrozenTrial | None]) -> None:
        super().__init__(study)
        self._shown = shown

    def _seen(self) -> list[FrozenTrial]:
        # Optuna's cache is refreshed by study.ask(), which the search loop goes round: a sampler that reads trials
        # from it (TPE) would see those of the first proposal for ever.
        trials = self._study._get_trials(deepcopy=False, use_cache=False)
        return [shown for trial in trials if (shown := self._shown(trial)) is not None]


def study_view(study: Study, shown: Callable[[FrozenTrial], FrozenTrial | None]) -> Study:
    """The study with every trial as ``shown`` makes it, without those of which it makes None.

    ``shown`` must copy what it changes: storages hand out trials that others read too.
    """
    return cast(Study, _RestatedStudy(study, shown))


class StudyAtOneMoment(_StudyView):
    """A study whose trials are those of one reading, while a sampler proposes the parameters of one of them.

    System attributes that are set on that trial are not stored but kept in ``attributes``, so that they can be stored
    together with the parameters.
    """

    def __init__(self, study: Study, trials: Sequence[FrozenTrial], trial: FrozenTrial) -> None:
        super().__init__(study)
        self._read = list(trials)
        self.attributes: dict[str, Any] = {}
        self._storage = _KeptBack(study._storage, trial._trial_id, self.attributes)

    def _seen(self) -> list[FrozenTrial]:
        return self._read


class _KeptBack:
    """A storage, but for the system attributes of one trial."""

    def __init__(self, storage: BaseStorage, trial_id: int, attributes: dict[str, Any]) -> None:
        self._storage = storage
        self._trial_id = trial_id
        self._attributes = attributes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id == self._trial_id:
            self._attributes[key] = value
        else:
            self._storage.set_trial_system_attr(trial_id, key, value)
