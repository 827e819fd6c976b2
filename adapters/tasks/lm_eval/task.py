"""A task of the LM evaluation harness (lm-eval 0.4.13) or a group of them, by name or from a YAML file of one's own.

The harness knows the items, the prompts and how answers are scored; the model that it asks is the
merge that is in memory, or the server. Item by item, so that splits, racing and paired comparisons work
as for any other task: a metric must therefore be a mean over items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.tasks.conversations import ChatSection, with_template
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.lm_eval.generation import longest_answer, merged_settings, not_greedy, stop_strings
from mergefront.adapters.tasks.lm_eval.group import GroupMeasure, group_measure
from mergefront.adapters.tasks.lm_eval.loading import Loaded, load, loaded
from mergefront.adapters.tasks.lm_eval.member import Direction, Member, Prompting, chosen_measure, listed_measures
from mergefront.adapters.tasks.lm_eval.splits import MemberSplits, equal_tasks
from mergefront.adapters.tasks.options import DEFAULT_MAX_UNANSWERED, FileBySplit, PathText, SplitOptions, Text
from mergefront.adapters.tasks.questions import Question
from mergefront.adapters.tasks.task import Splits, items_of, limited
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.scores.evaluation import ItemScores
from mergefront.optimizer.scores.outcomes import UNANSWERED
from mergefront.optimizer.sections import read_section

EXTRA = 'tasks of the LM evaluation harness need the extra: pip install "mergefront[lm-eval]"'
DEFAULT_FEWSHOT_SEED = 1234
"""The harness' own."""


class LmEvalOptions(SplitOptions):
    """A task of the LM evaluation harness, or several."""

    task: Text = Field(description="a task, a group or a tag of the harness, or a YAML file of your own")
    metric: Text | None = Field(
        None,
        description="a mean over items, alone or with a filter, such as `exact_match,strict-match` (the first)",
    )
    filter: Text | None = Field(None, description="a filter of the task (its first)")
    include_path: PathText | None = Field(None, description="a folder of more tasks")
    data_files: FileBySplit | None = Field(None, description="files in the place of the task's data set, by split")
    num_fewshot: int | None = Field(None, ge=0, description="examples in a prompt (as the task says)")
    fewshot_seed: int | None = Field(
        DEFAULT_FEWSHOT_SEED,
        ge=0,
        description="draws the examples as the harness does by this seed; null: for each item by itself, by the "
        "study's seed",
    )
    apply_chat_template: bool | Text = Field(
        False,
        description="the model's chat template writes the prompts, or the one of its templates that is named, or a "
        "Jinja file",
    )
    fewshot_as_multiturn: bool | None = Field(
        None, description="with a template each example is a turn of its own (true); false: all are one message"
    )
    system_instruction: Text | None = Field(None, description="text before everything else")
    gen_kwargs: dict[Text, Any] | None = Field(
        None, description="settings of generation: `until`, `max_gen_toks` (as the task says)"
    )
    limit: float | None = Field(
        None, gt=0, description="the first so many items of each set of a task, or that share of them below 1"
    )
    weight_by_size: bool | None = Field(
        None, description="of several tasks each item counts the same; false: each task does (as the group says)"
    )
    confirm_run_unsafe_code: bool = Field(
        False, description="run programs that models write outside a sandbox, in tasks that are scored so"
    )


@dataclass
class LmEvalTask:
    """Tasks of the harness, mostly one, with one metric; the score is the mean over all items.

    Search items are a task's validation items and report items its test items where it has both;
    otherwise the one set that there is, is split by seed (``report_fraction``). ``owners`` has the task of each item,
    and ``weights`` what its score is multiplied by, where it is not 1: so that the mean is that of the tasks' means.
    ``announcement`` says, for a published benchmark, whose items the search then optimises on; ``remark``, what was
    chosen where there was a choice.
    """

    name: str
    members: tuple[Member, ...]
    direction: Direction
    splits: Splits = field(repr=False)
    owners: Mapping[str, Member] = field(repr=False)
    weights: Mapping[str, float] = field(default_factory=dict, repr=False)
    announcement: str | None = None
    remark: str | None = None
    max_unanswered: float = DEFAULT_MAX_UNANSWERED

    @property
    def verb(self) -> Verb:
        return "generate" if self.members[0].generates else "loglikelihood"

    @property
    def documents(self) -> dict[str, Any]:
        """What the harness knows of each item, by its id."""
        return {item: member.documents[item] for item, member in self.owners.items()}

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer, where the task asks for answers."""
        return tuple(dict.fromkeys(stop for member in self.members for stop in stop_strings(member.settings)))

    @property
    def longest_answer(self) -> int:
        """The most tokens of an answer; 0 where choices are scored."""
        return max(longest_answer(member.settings) if member.generates else 0 for member in self.members)

    def items(self, split: str) -> Sequence[Item]:
        return items_of(self.name, self.splits, split, "a 'report_fraction' above 0")

    def questions(self, items: Sequence[Item]) -> list[Question]:
        return [loaded(partial(self._question, item), self.name) for item in items]

    @property
    def may_show_items(self) -> bool:
        """Whether the harness would draw an item as an example for its own prompt."""
        return any(member.may_show_items for member in self.members)

    def _question(self, item: Item) -> Question:
        member = self.owners[item.id]
        requests = member.requests(item.id)
        prompt, second = requests[0].args[:2]
        if self.verb == "loglikelihood":
            return Question(member.chats.get(prompt, prompt), tuple(request.args[1] for request in requests))
        return Question(
            member.chats.get(prompt, prompt), member.accepted(item.id), longest_answer(second), stop_strings(second)
        )

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores:
        """Ask the model what the harness would ask it about the items, and score its answers as the harness does.

        An item without a usable answer is wrong (0); where less is better, it raises ``EvaluationError``.
        """
        from mergefront.adapters.tasks.lm_eval.model import HarnessModel

        asked = {
            item.id: [replace(one, resps=[], filtered_resps={}) for one in self.owners[item.id].requests(item.id)]
            for item in items
        }
        flat = [instance for several in asked.values() for instance in several]
        needs_greedy = any(member.needs_greedy for member in self.members)
        chats = {text: chat for member in self.members for text, chat in member.chats.items()}
        harness_model = HarnessModel(model, chats, needs_greedy=needs_greedy)
        for kind in dict.fromkeys(instance.request_type for instance in flat):
            of_kind = [instance for instance in flat if instance.request_type == kind]
            for instance, answer in zip(of_kind, getattr(harness_model, kind)(of_kind), strict=True):
                instance.resps.append(answer)
        scores = dict.fromkeys(asked, 0.0)
        for item, several in asked.items():
            missing = next(filter(None, (harness_model.unanswered.get(id(one)) for one in several)), None)
            if missing is None:
                continue
            if self.direction == "minimize":
                raise EvaluationError(
                    f"no usable answer to item {item} ({missing}), and {self.members[0].metric} has no score for that",
                    kind=UNANSWERED,
                )
            asked[item] = []
        for member in self.members:
            answered = {item: several for item, several in asked.items() if several and self.owners[item] is member}
            scores |= member.scores(answered)
        ids = tuple(item.id for item in items)
        return ItemScores(ids, tuple(scores[item] * self.weights.get(item, 1.0) for item in ids))


def read_lm_eval_task(
    name: str, config: Mapping[str, Any], folder: Path, seed: int
) -> tuple[LmEvalTask | None, list[str]]:
    """The task of one study file entry, and everything that is wrong with its options."""
    options, problems = read_section(LmEvalOptions, config)
    if options is None or problems:
        return None, problems
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        return None, [EXTRA]
    if options.fewshot_as_multiturn and not options.apply_chat_template:
        return None, ["fewshot_as_multiturn needs apply_chat_template: true, whose turns the examples would be"]
    metric, filter_ = options.metric, options.filter
    if metric is not None and "," in metric:
        if filter_ is not None:
            return None, [f"metric {metric!r} names a filter, and filter is {filter_!r}; keep one of them"]
        metric, _, filter_ = metric.partition(",")
    try:
        found = load(options.task, folder, options.include_path, options.data_files, options.num_fewshot)
        refused = [fault for label, harness in found.tasks.items() for fault in _refused(harness, label, options)]
        if refused:
            return None, refused
        for label, harness in found.tasks.items():
            _take_settings(harness, label, options, found)
        measure = _measure(found, options, metric, filter_)
    except UserError as error:
        return None, [str(error)]
    prompting, unread = _prompting(options, folder, seed)
    problems += unread
    members = tuple(
        Member(label, harness, measure.metric, measure.filter, _few_shot(harness, options, found), prompting)
        for label, harness in found.tasks.items()
    )
    shared = MemberSplits(options.report_fraction, options.limit, seed)
    try:
        sets = [loaded(partial(shared.sets, member), member.name) for member in members]
        for member, of_member in zip(members, sets, strict=True):
            every = {one: document for of_split in of_member.values() for one, document in of_split.items()}
            problems += loaded(partial(_unfit, member, every), member.name)
    except UserError as error:
        return None, [str(error)]
    search, report, owners, on_test = shared.split(members, sets)
    splits, too_few = limited({"search": search, "report": report}, options)
    problems += too_few
    if not search:
        problems.append(f"task {options.task!r} has {len(owners)} items, too few to search on")
    elif lost := [member.name for member in members if not any(owners[item.id] is member for item in splits["search"])]:
        problems.append(
            f"{len(lost)} tasks of {options.task!r} have no search item, such as {lost[0]}; take more items"
        )
    announcement = None
    if found.published and on_test:
        announcement = _announcement(name, options.task, own_files=options.data_files is not None)
    weights = {} if measure.by_size else equal_tasks(splits, owners)
    return (
        LmEvalTask(
            name,
            members,
            members[0].direction,
            splits,
            owners,
            weights,
            announcement,
            _remark(name, found, measure, options, metric is not None),
            options.max_unanswered,
        ),
        problems,
    )


def _prompting(options: LmEvalOptions, folder: Path, seed: int) -> tuple[Prompting, list[str]]:
    """How prompts are made, and what is wrong with a file of a template."""
    named = options.apply_chat_template
    section = ChatSection(system=None, template=named if isinstance(named, str) else None, date=None)
    chat, problems = with_template(section, folder)
    template = (chat.template or "") if named else None
    multiturn = options.fewshot_as_multiturn is not False
    return Prompting(seed, options.fewshot_seed, options.system_instruction, template, multiturn), problems


def _refused(harness: Any, label: str, options: LmEvalOptions) -> Iterator[str]:
    """Why a task of the harness can never be scored here, or not as the options have it."""
    if harness.OUTPUT_TYPE == "loglikelihood_rolling":
        yield f"task {label!r} scores whole texts together; use type: jsonl with metric: loss instead"
    if getattr(harness, "MULTIMODAL", False):
        yield f"task {label!r} shows images or sounds; use type: jsonl, whose items may have an 'image'"
    if getattr(harness, "UNSAFE_CODE", False) and not options.confirm_run_unsafe_code:
        yield (
            f"task {label!r} runs programs that models write, without a sandbox; use type: jsonl with metric: code, "
            "or say confirm_run_unsafe_code: true"
        )
    given = {"system_instruction": options.system_instruction, "apply_chat_template": options.apply_chat_template}
    idle = [key for key, value in given.items() if value]
    if idle and not _is_configured(harness):
        yield f"task {label!r} is a program, which makes its prompts itself; leave {idle[0]} out"


def _is_configured(harness: Any) -> bool:
    from lm_eval.api.task import ConfigurableTask

    return isinstance(harness, ConfigurableTask)


def _take_settings(harness: Any, label: str, options: LmEvalOptions, found: Loaded) -> None:
    """Put the user's settings of generation in the place of the task's. Raises ``UserError``."""
    given = options.gen_kwargs
    if given is None:
        return
    if harness.OUTPUT_TYPE != "generate_until":
        raise UserError(f"gen_kwargs: task {label!r} generates nothing; leave gen_kwargs out")
    harness.set_config("generation_kwargs", merged_settings(harness.config.generation_kwargs or {}, given))


def _few_shot(harness: Any, options: LmEvalOptions, found: Loaded) -> int:
    """Examples in a prompt. In a group the harness leaves a task at none that says none itself."""
    own = int(harness.config.num_fewshot or 0)
    fixed = found.is_several and harness.config.num_fewshot == 0
    return own if fixed else own if options.num_fewshot is None else options.num_fewshot


def _measure(found: Loaded, options: LmEvalOptions, metric: str | None, filter_: str | None) -> GroupMeasure:
    """How items are scored and averaged. Raises ``UserError``."""
    if found.is_several:
        return group_measure(options.task, found, metric, filter_, options.weight_by_size)
    if options.weight_by_size is not None:
        raise UserError(f"weight_by_size: {options.task!r} is one task; leave it out")
    (harness,) = found.tasks.values()
    return GroupMeasure(*chosen_measure(harness, options.task, metric, filter_))


def _unfit(member: Member, every: Mapping[str, Any]) -> list[str]:
    """Why a task of the harness cannot be searched on: it samples, or has answers of no text, whose log-likelihood is
    0 and beats every other."""
    harness = member.harness
    if member.generates:
        fault = not_greedy(member.settings)
        return [] if fault is None else [fault]
    texts_of = harness.doc_to_choice if harness.OUTPUT_TYPE == "multiple_choice" else harness.doc_to_target
    empty = [document for document in every.values() if any(not text.strip() for text in _texts(texts_of(document)))]
    if not empty:
        return []
    return [
        f"{len(empty)} of {len(every)} items have an empty choice, which no model can be asked about, such as "
        f"{empty[0]!s:.200}; leave them out (process_docs in a YAML file of your own, or data_files)"
    ]


def _texts(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _remark(name: str, found: Loaded, measure: GroupMeasure, options: LmEvalOptions, wished: bool) -> str | None:
    """What was chosen for the user, and what else there is."""
    harness = next(iter(found.tasks.values()))
    others = [one for one in listed_measures(harness) if one not in (measure.metric, measure.text)]
    said = []
    if found.is_several:
        said.append(f"{len(found.tasks)} tasks, of which each {'item' if measure.by_size else 'task'} counts the same")
    if said or (others and not wished):
        said.append(f"scored by {measure.text}" + (f" (metric: there are also {', '.join(others)})" if others else ""))
    fixed = [label for label, one in found.tasks.items() if one.config.num_fewshot == 0 and options.num_fewshot]
    if fixed:
        kept = "as the harness does" if found.is_several else "which the harness does not"
        said.append(f"{fixed[0]} has num_fewshot: 0, {'kept' if found.is_several else 'overridden'} here, {kept}")
    return f"task {name}: {'; '.join(said)}" if said else None


def _announcement(name: str, benchmark: str, *, own_files: bool) -> str:
    if own_files:
        return (
            f"Task {name} asks the published benchmark {benchmark} on files of its own. If they hold the benchmark's "
            "test items, the search optimised on them, and its merges must not be compared with others by that "
            "benchmark."
        )
    return (
        f"Task {name} optimises on test items of the published benchmark {benchmark}. The merges found here must not "
        "be compared with others by that benchmark; the report items are other items of it."
    )
