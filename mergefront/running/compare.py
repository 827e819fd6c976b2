"""Comparing merge methods at published coefficients, without a search: the study NAME/compare of a study file.

Its merges are given beforehand, as a warm start's recipes are: the search loop evaluates the anchors and those, each in
a trial of its own, and is resumed as any other. Both studies know what the other one has evaluated already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mergefront.adapters.remote.scales import not_a_sum
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import DEFAULT_ANCHORS, anchors
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.published import Published, chosen_methods, comparison_space, of_subsets, published
from mergefront.optimizer.search.attributes import WARM_START_RECIPES
from mergefront.optimizer.search.stopping import NEVER
from mergefront.results.comparison import Comparison, compared
from mergefront.running.progress import where_it_is_watched
from mergefront.running.report_items import plan_report, report
from mergefront.running.run import search_ready
from mergefront.storage.studies import COMPARISON, update
from mergefront.study.check import CheckReport, check_study
from mergefront.study.definition import StudyDefinition
from mergefront.study.evaluators import is_mixture, make_evaluator, refuse_external
from mergefront.study.ready import ReadyStudy, store
from mergefront.study.rules import sampler_version
from mergefront.study.stored_study import Candidate, Study

_ADDS_LORAS = ("llama_server", "ensemble", "openai")
"""Backends that scale whole models and do nothing else to them."""


@dataclass(frozen=True)
class ReadyComparison:
    """A comparison that is stored and ready to be evaluated; ``left_out`` has methods that this study cannot use.

    Without an evaluator where nothing is left to evaluate (``is_done``).
    """

    ready: ReadyStudy
    merges: Sequence[Published]
    left_out: dict[str, str]

    @property
    def study(self) -> Study:
        return self.ready.study

    @property
    def is_done(self) -> bool:
        """Whether every merge was scored or failed."""
        return self.study.finished_count() >= self.study.plan.slots

    def result(self, split: str = "search") -> Comparison:
        """What is known by now, on the items of a split."""
        return compared(self.study, self.merges, self.left_out, split)

    def of_report(self) -> list[Candidate]:
        """Whom a report scores: the anchors and the methods over all experts."""
        digests = {one.recipe.digest for one in self.merges if one.subset is None}
        return [one for one in self.study.candidates() if one.anchor is not None or one.digest in digests]


def compare(
    path: str | Path,
    *,
    methods: Sequence[str] | str | None = None,
    subsets: int = 0,
    report_items: bool = False,
    progress: bool = True,
) -> Comparison:
    """Score the base, each expert and merge methods at published coefficients on a study file's tasks.

    ``methods`` are names of merge methods, also with commas between them (default: all that the study's models and
    backend can do). With ``subsets``
    each of them merges so many random subsets of the experts as well, and the result says how often it beats the base.
    ``report_items`` scores all but the subsets on the report items too, and compares there. The evaluations are trials
    of the study NAME/compare: what is finished is kept, and the same call goes on.

    Raises ``StudyFileError`` with every problem of the file, ``UserError`` for an unknown method.
    """
    with ready_to_compare(check_study(path), methods, subsets) as comparison:
        if not comparison.is_done:
            with where_it_is_watched(comparison.study, progress) as callbacks:
                search_ready(comparison.ready, on_trial_end=callbacks[0], on_trial_start=callbacks[1])
        if not report_items:
            return comparison.result()
    report(comparison.study, plan_report(comparison.study, comparison.of_report()))
    return comparison.result("report")


@contextmanager
def ready_to_compare(
    checked: CheckReport, methods: Sequence[str] | str | None = None, subsets: int = 0
) -> Iterator[ReadyComparison]:
    """A checked study file as a comparison that is ready to start; see ``compare``."""
    definition = checked.definition_or_raise()
    if is_mixture(definition):
        raise UserError("compare is for merges of several models; 'mergefront run' scores the whole mixture too")
    definition = _comparison_of(definition)
    if isinstance(subsets, bool) or not isinstance(subsets, int) or subsets < 0:
        raise UserError(f"subsets is {subsets!r}; it must be a whole number of at least 0")
    words = methods.split(",") if isinstance(methods, str) else methods
    names = list(METHODS) if words is None else chosen_methods([word.strip() for word in words])
    merges, left_out = published(definition.space, names)
    refused = {one.recipe.method: why for one in merges if (why := _refused(definition, one)) is not None}
    able = [name for name in names if name not in refused]
    baselines = anchors(definition.space)
    known = {one.recipe.digest for one in baselines}
    merges = [one for one in merges if one.recipe.method in able and one.recipe.digest not in known]
    merges += of_subsets(definition.space, able, subsets) if subsets else []
    refuse_external(definition)
    stored = store(replace(checked, definition=definition))
    study = stored.study
    _give(study, merges)
    comparison = ReadyComparison(stored, merges, left_out | refused)
    if comparison.is_done:
        yield comparison  # models take long to load, and a table of what is kept needs none
        return
    here = replace(study.definition, runtime=definition.runtime, allow=definition.allow)
    with make_evaluator(here, lambda: study.database) as evaluator:
        yield replace(comparison, ready=replace(stored, evaluator=evaluator))


def _comparison_of(definition: StudyDefinition) -> StudyDefinition:
    """The same models, tasks and scoring; nothing of the search."""
    return replace(
        definition,
        name=f"{definition.name}{COMPARISON}",
        space=comparison_space(definition.space),
        sampler="random",
        sampler_options={},
        sampler_version=sampler_version("random"),
        stop=NEVER,
        evaluations=None,
        warm_start=(),
        anchors=(DEFAULT_ANCHORS,),
        aligned={},
        centres={},
        learned={},
        racing=None,
        compares=True,
        left_out=frozenset(),
    )


def _refused(definition: StudyDefinition, merge: Published) -> str | None:
    """Why the study's backend or models cannot do a merge, as far as that is known beforehand."""
    described, recipe = definition.evaluator, merge.recipe
    method = METHODS[recipe.method]
    if described.type == "server":
        kind = described.backend["type"]
        if described.backend.get("protocol") == "evo-merging" and recipe.method != "lora_factor":
            return f"this service always merges by lora_factor; leave {recipe.method} out"
        if kind in _ADDS_LORAS or (kind == "vllm" and method.lora is None):
            return not_a_sum(recipe)
    if described.type == "function" and method.lora is not None:
        return f"{method.name} merges LoRAs, and a function of your own says nothing of its models"
    if described.type == "local" and method.lora is not None:
        places = definition.places
        whole = [name for name, path in recipe.models.items() if not _is_lora(places.folder(path))]
        return f"{method.name} merges LoRAs, and {whole[0]} is a whole checkpoint" if whole else None
    return None


def _is_lora(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()


def _give(study: Study, merges: Sequence[Published]) -> None:
    """The merges behind those that the study was given before, whose trials keep their places."""
    given = list(study.optuna.user_attrs.get(WARM_START_RECIPES, ()))
    known = {entry["name"] for entry in given}
    given += [{"name": one.name, "recipe": one.recipe.to_json()} for one in merges if one.name not in known]
    if len(given) > len(known):
        study.optuna.set_user_attr(WARM_START_RECIPES, given)
    study.record = update(study.database, study.record, evaluations=study.plan.slots)
