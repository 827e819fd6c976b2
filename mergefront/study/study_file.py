"""The study file: strict YAML, every problem reported at once.

An unknown key is an error with the nearest known one. Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from mergefront.adapters.local.mixture.sections import MIXTURE, SearchedExpertsSection
from mergefront.adapters.remote.settings import JudgeSection, ServerSection, VllmEngineSection
from mergefront.adapters.starting.training_run import checkpoint_folders, trained_checkpoints
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.racing.race import RacingSettings
from mergefront.optimizer.recipes.methods import MERGE_EXPERTS, METHODS
from mergefront.optimizer.search.stopping import StopRule
from mergefront.optimizer.sections import OpenSection, Problem, Section, problems_of
from mergefront.optimizer.yaml_file import read_mapping
from mergefront.storage import DEFAULT_STORAGE
from mergefront.storage.studies import MOST_EVALUATIONS
from mergefront.study.definition import EvaluatorDefinition

_OF_SEVERAL_MODELS = ("models", "space", "training_run", "method_files", "tokenizer_source", "scope", "carry", "allow")
"""Keys of the section merge that say nothing of one mixture."""


class BlocksSection(Section):
    """Blocks of the model's layers, or of those of each stack, with coefficients of their own: how many, or the first
    layer of each."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["blocks"]}, {"required": ["starts"]}]})

    blocks: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=0)]] | None = None
    boundaries: Literal["depth", "importance"] = "depth"
    starts: list[Annotated[int, Field(ge=0)]] | None = None


class SpaceSection(BaseModel):
    """How finely is searched; every other key is a coefficient of the methods (see ``MergeSpace``)."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    granularity: Literal["global", "layers"] | BlocksSection = Field(
        default="global", description="how many coefficients there are over the depth of the model"
    )
    split: list[str] = Field(default=[], description="parts of tensor names that get coefficients of their own")
    simplex: bool = Field(default=False, description="the experts' weights are proportions that sum to one")

    @property
    def parameters(self) -> dict[str, Any]:
        """What is searched or fixed, by the names of the coefficients."""
        return dict(self.model_extra or {})

    @property
    def grouping(self) -> str | dict[str, Any]:
        """The granularity, as it is written."""
        given = self.granularity
        return given if isinstance(given, str) else given.model_dump(exclude_unset=True)


class TrainingRunSection(Section):
    """The run whose checkpoints are the experts, and the metric that weighs them."""

    folder: str = Field(description="a Trainer's output_dir, with folders checkpoint-N")
    metric: str | None = Field(
        default=None, description="a key of the run's log; by default the evaluation's loss, or the training's"
    )
    greater_is_better: bool | None = Field(
        default=None, description="by default, as a Trainer has it, false for names that end in loss"
    )

    @classmethod
    def read(cls, given: Any) -> TrainingRunSection:
        """What a file says of a run by known keys; a text is its folder. Raises ``ValidationError``."""
        named = {"folder": given} if isinstance(given, str) else given
        known = {key: named[key] for key in cls.model_fields if key in named} if isinstance(named, dict) else named
        return cls.model_validate(known)


class MergeSection(Section):
    """What is merged, how, and which coefficients are searched."""

    method: str | list[str] = Field(description="a merge method, or several: then the method is searched too")
    base_model: str | None = Field(default=None, description="the common ancestor: a folder, or org/name on the Hub")
    models: dict[str, str] | list[str] = Field(
        description="the experts by name: folders or names on the Hub, whole checkpoints or LoRAs"
    )
    experts: SearchedExpertsSection | None = Field(
        default=None, description="of method merge_experts, in the place of models and space: how many experts are kept"
    )
    training_run: TrainingRunSection | str | None = Field(
        default=None, description="in the place of models, the folder of a Trainer whose checkpoints are the experts"
    )
    space: SpaceSection = Field(default_factory=SpaceSection)
    method_files: list[str] = Field(
        default_factory=list, description="Python files that declare methods of your own; they are run before all else"
    )
    allow: list[str] = Field(
        default_factory=list,
        description="keys of the models' configurations, and integer tensors, whose difference is known to be harmless",
    )
    tokenizer_source: str | dict[str, Any] | None = Field(
        default=None, description="whose tokens the merges have: base, union, or one of the models"
    )
    scope: str | None = Field(default=None, description="language: only the stacks of text are merged")
    carry: dict[str, str] = Field(
        default_factory=dict, description="with scope, the expert that each tower is taken from"
    )


class LocalBackendSection(Section):
    """Merges in memory and scores on this machine. A model on a CPU computes in float32."""

    type: Literal["local"] = "local"
    device: str = Field(
        default="auto", description="as torch calls it, or several (cuda:0,cuda:1); auto: a GPU where there is one"
    )
    device_map: Literal["auto"] | None = Field(
        default=None, description="auto: layers lie on the devices, in the host's memory and on disk, as they fit"
    )
    max_memory: int | str | dict[str, int | str] | None = Field(
        default=None,
        description="of weights: 24GB, or {'cuda:0': 20GB, cpu: 60GB}; what does not fit is streamed "
        "(default: half of what is free beside the live model)",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="what merged weights are rounded to before they are scored, and written in; auto: the base's",
    )
    compat: Literal["mergekit"] | None = Field(
        default=None, description="mergekit: computed in the checkpoints' own dtype, as mergekit does"
    )
    task_vectors: Literal["exact", "int8"] | Annotated[int, Field(ge=1)] = Field(
        default="exact", description="how experts are held in memory: exact, int8, or a rank"
    )
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="what computes the merged model; vllm: a server of its own"
    )
    vllm: VllmEngineSection = VllmEngineSection()

    @model_validator(mode="after")
    def _asks_its_engine(self) -> LocalBackendSection:
        if self.engine != "vllm" and "vllm" in self.model_fields_set:
            raise PydanticCustomError("engine", "'vllm' says which vLLM is used, which needs engine: vllm")
        idle = {"device", "device_map", "max_memory"} & self.model_fields_set
        if self.engine == "vllm" and idle:
            raise PydanticCustomError(
                "engine",
                "engine vllm chooses its devices by its own arguments; remove {keys}",
                {"keys": " and ".join(sorted(idle))},
            )
        return self


class FunctionBackendSection(Section):
    """Scores with the user's own function ``Recipe -> {objective: number}``."""

    type: Literal["function"]
    call: str


class ExternalBackendSection(Section):
    """An outside harness asks for recipes and tells their scores; nothing is loaded and nothing scored here."""

    type: Literal["external"]


class ObjectiveSection(Section):
    """One objective; ``direction`` defaults to what its task's metric says."""

    name: str
    direction: Literal["maximize", "minimize"] | None = None
    range: tuple[float, float] | None = Field(default=None, strict=False)


class ConstraintSection(Section):
    """A bound on a reported number; the same as ``name <= at_most`` or ``name >= at_least``."""

    name: str
    at_most: float | None = Field(default=None, strict=False)
    at_least: float | None = Field(default=None, strict=False)


class AlignedSection(Section):
    """How the start point ``aligned`` learns its weights."""

    prompts: dict[str, str] = Field(
        default_factory=dict,
        description="files of prompts by expert; by default the search items of the task that is called so",
    )
    steps: int = Field(default=50, ge=1, le=10_000, description="steps of learning, each on a prompt of every expert")


class SearchSection(OpenSection):
    """Sampler and budget; every other key is an option of the sampler."""

    sampler: str = "mm-mo"
    evaluations: int | None = Field(default=None, ge=1, le=MOST_EVALUATIONS)
    anchors: list[Literal["default", "inverse-norm", "posterior-weighted", "aligned"]] = Field(
        default=["default"],
        description="what is evaluated first: default (base, experts, averages), and start points after it",
    )
    aligned: AlignedSection = Field(
        default_factory=AlignedSection, description="how the start point aligned learns from prompts"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The options of the sampler."""
        return {key: value for key, value in (self.model_extra or {}).items() if key not in self.misspelt}


class StudyFile(Section):
    """A study file, as written."""

    study: str = Field(description="the study's name in its database")
    storage: str = Field(default=DEFAULT_STORAGE, description="the database, relative to this file")
    seed: int = Field(default=0, ge=0)
    merge: MergeSection
    backend: LocalBackendSection | FunctionBackendSection | ExternalBackendSection | ServerSection = Field(
        default_factory=LocalBackendSection, discriminator="type"
    )
    tasks: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="what models are asked and how their answers are scored, by name"
    )
    judges: dict[str, JudgeSection] = Field(
        default_factory=dict, description="endpoints that grade answers, by the names that tasks have for them"
    )
    objectives: list[str | ObjectiveSection] = Field(
        min_length=1,
        description="names of tasks (or delta_l1, or parameters of a mixture) that the search makes better",
    )
    constraints: list[str | ConstraintSection] = Field(
        default_factory=list, description="bounds, such as 'tokens <= 300'"
    )
    racing: bool | RacingSettings = Field(
        default=False, description="candidates are asked only as many items as it takes to know what to do with them"
    )
    search: SearchSection = Field(default_factory=SearchSection)
    stop: StopRule = Field(default=StopRule(), description="when a run ends before its budget is spent")
    warm_start: list[str | dict[str, str]] = Field(
        default_factory=list, description="studies or merge configurations whose candidates are tried first"
    )


def read_study_file(path: Path) -> tuple[StudyFile, list[str]]:
    """Parse and validate one file; returns it as far as its keys are known, and a problem for each that is not.

    An unknown key is read as the nearest known one, so that the rest can be checked too. Raises ``StudyFileError``
    with every problem of a file that cannot be read so either.
    """
    content = read_mapping(path, "study file", "study, merge, tasks, objectives and search")
    if isinstance(content.get("backend"), dict):
        content["backend"].setdefault("type", "local")
    said: dict[str, None] = {}
    try:
        _add_training_run(content.get("merge"), path.parent)
    except UserError as error:
        raise StudyFileError(str(path), [f"merge.training_run: {error}"]) from None
    try:
        _add_mixture(content.get("merge"))
    except UserError as error:
        raise StudyFileError(str(path), [f"merge.experts: {error}"]) from None
    while True:
        try:
            return StudyFile.model_validate(content), list(said)
        except ValidationError as error:
            found = problems_of(error, StudyFile, content)
        unknown = [problem for problem in found if problem.known is not None]
        said |= dict.fromkeys(map(str, unknown or found))
        for problem in unknown:
            _mend(content, problem)
        if not unknown:
            raise StudyFileError(str(path), list(said))


def _add_training_run(merge: Any, root: Path) -> None:
    """Write a training run's checkpoints into the section as its models and, where a method is weighed by them, their
    metrics as fixed coefficients. Raises ``UserError``."""
    if not isinstance(merge, dict) or merge.get("training_run") is None:
        return
    try:
        run = TrainingRunSection.read(merge["training_run"])
    except ValidationError:
        merge.setdefault("models", {})
        return  # what is wrong with it is said with the rest
    if "models" in merge:
        raise UserError("the checkpoints of the run are the models; leave merge.models out")
    merge["models"] = {name: f"{run.folder.rstrip('/')}/{name}" for name in checkpoint_folders(root / run.folder)}
    methods, weighed = merge.get("method"), METHODS["metrics_weighted"]
    if weighed.name not in (methods if isinstance(methods, list) else [methods]) or not isinstance(
        space := merge.setdefault("space", {}), dict
    ):
        return
    penalty = weighed.parameter("penalty")
    if not space and penalty is not None:
        space["penalty"] = list(penalty.search)
    for one in trained_checkpoints(root / run.folder, run.metric, run.greater_is_better)[1]:
        space.setdefault(f"metric[{one.name}]", one.quality)


def _add_mixture(merge: Any) -> None:
    """Write the one model of ``merge_experts`` into the section as its expert, and what is searched of it as its space.

    Raises ``UserError``.
    """
    if not isinstance(merge, dict):
        return
    if merge.get("method") != MERGE_EXPERTS.name:
        if merge.get("experts") is not None:
            raise UserError(f"only method {MERGE_EXPERTS.name} has experts inside one model; remove the section")
        return
    if merge.get("experts") is None:
        raise UserError(
            "this section is missing; write experts: {method: frequency, prompts: FILE, space: {keep: [4, 16], "
            "granularity: layers}}"
        )
    idle = [key for key in _OF_SEVERAL_MODELS if merge.get(key) is not None]
    if idle:
        raise UserError(f"the experts of base_model are merged, and nothing else; remove {', '.join(idle)}")
    merge["models"] = {MIXTURE: str(merge.get("base_model", ""))}
    with suppress(ValidationError):  # what is wrong with it is said with the rest
        merge["space"] = SearchedExpertsSection.model_validate(merge["experts"]).as_space()


def _mend(content: Any, unknown: Problem) -> None:
    """Give an unknown key the nearest known name that is free, or remove it."""
    *parents, key = unknown.where
    for part in parents:
        content = content[part]
    value = content.pop(key)
    for near in get_close_matches(str(key), unknown.known or (), 1):
        content.setdefault(near, value)


def left_out(file: StudyFile, evaluator: EvaluatorDefinition, options: Mapping[str, Any]) -> frozenset[tuple[str, ...]]:
    """The paths in a definition's JSON whose values are defaults, since the file does not write them.

    ``options`` are the sampler's with every default.
    """
    found = set(left_out_of_search(options, file.search.options, RacingSettings.read(file.racing)))
    if "seed" not in file.model_fields_set:
        found |= {("seed",), ("space", "seed"), ("evaluator", "seed")}
    if "sampler" not in file.search.model_fields_set:
        found.add(("sampler", "name"))
    if "anchors" not in file.search.model_fields_set:
        found.add(("anchors",))
    written_of_alignment = file.search.aligned.model_fields_set
    found |= {("aligned", key) for key in AlignedSection.model_fields if key not in written_of_alignment}
    found |= {("space", key) for key in ("granularity", "split") if key not in file.merge.space.model_fields_set}
    backend = ("evaluator", "backend")
    written_keys = {key for key in file.backend.model_fields_set if getattr(file.backend, key) != "auto"}
    written_keys |= {"prompts"} & evaluator.backend.keys()  # of merge.experts, which has no default for it
    found |= {(*backend, key) for key in evaluator.backend if key not in written_keys}
    for name, member in getattr(file.backend, "members", {}).items():
        described = evaluator.backend["members"][name]
        found |= {(*backend, "members", name, key) for key in described if key not in member.model_fields_set}
    for name, judge in evaluator.judges.items():
        written = file.judges[name].model_fields_set
        found |= {("evaluator", "judges", name, key) for key in judge if key not in written}
    for name, task in evaluator.tasks.items():
        found |= {("evaluator", "tasks", name, key) for key in task if key not in file.tasks[name]}
    return frozenset(found)


def left_out_of_search(
    options: Mapping[str, Any], written: Mapping[str, Any], racing: RacingSettings | None
) -> frozenset[tuple[str, ...]]:
    """The paths in a definition's JSON of what was not written of the space's ranges, the sampler and racing."""
    found: set[tuple[str, ...]] = {("space", "ranges")}
    if not written:
        found.add(("sampler", "options"))
    found |= {("sampler", "options", name) for name in options if name not in written}
    if racing is not None:
        found |= {("racing", key) for key in RacingSettings.model_fields if key not in racing.model_fields_set}
    return frozenset(found)
