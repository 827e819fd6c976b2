"""Versions of the rules that a study follows, so that a change of rules never changes a study in silence.

A study stores the numbers it was started with; a study of commit 1712830 or before stores none and has 1 for each.

| number | raised when | a study with a lower number |
| --- | --- | --- |
| ``SCORING`` | the same definition would be scored differently | goes on, or is refused (``SCORING_CHANGES``) |
| ``SAMPLER_CHANGES`` | a sampler would propose other trials | goes on with the trials that are there |
| ``RACING_CHANGES`` | a race would ask other items, or estimate otherwise | goes on with the answers that are there |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import is_normalized

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import DEFAULT_ANCHORS
from mergefront.optimizer.recipes.stacks import texts_of
from mergefront.study.method_files import load_known_method_files

if TYPE_CHECKING:
    from mergefront.adapters.checkpoints.header import CheckpointHeader

DEFAULT_EVALUATIONS = 30
"""The budget of a study whose owner names none."""
SCORING = 7
"""Rules of scoring: merging, prompts, metrics, estimates of a race's own candidate."""


@dataclass(frozen=True)
class ScoringChange:
    """A rule of scoring that this version no longer follows as it was before ``number``.

    ``what`` completes the sentence "a study begun before ... would now be scored differently: "; ``touches`` says it of
    a stored definition whose files lie under a folder.
    """

    number: int
    what: str
    touches: Callable[[Mapping[str, Any], Path], bool]


def _has_images(stored: Mapping[str, Any], root: Path) -> bool:
    from mergefront.adapters.tasks.items import image_paths

    tasks = stored["evaluator"].get("tasks", {}).values()
    paths = [task[key] for task in tasks if task["type"] == "jsonl" for key in ("path", "report") if key in task]
    return any(image_paths(root / path) for path in paths)


def _puts_loras_on_bfloat16(stored: Mapping[str, Any], root: Path) -> bool:
    from mergefront.adapters.checkpoints.dtypes import main_dtype

    base = _local_base(stored, root)
    if base is None or main_dtype(base) != "bfloat16":
        return False
    return any((root / path / "adapter_config.json").exists() for path in stored["space"]["models"].values())


def _has_blocks_and_a_norm_called_embedding(stored: Mapping[str, Any], root: Path) -> bool:
    base = _local_base(stored, root)
    if base is None or stored["space"]["granularity"] == "global":
        return False
    return any("embedding_norm" in name for name in base.tensors)


def _has_blocks_and_a_tower(stored: Mapping[str, Any], root: Path) -> bool:
    base = _local_base(stored, root)
    if base is None or stored["space"]["granularity"] == "global":
        return False
    from mergefront.adapters.checkpoints.stacks import depths

    known = depths(base)
    return len(texts_of(known)) < len(known)


def _local_base(stored: Mapping[str, Any], root: Path) -> CheckpointHeader | None:
    """The base of a study that merges on this machine, if it is there."""
    base = stored["space"].get("base_model")
    if stored["evaluator"]["type"] != "local" or base is None or not (root / base).exists():
        return None
    from mergefront.adapters.checkpoints.header import read_header

    return read_header(root / base)


def _merges_loras_otherwise(stored: Mapping[str, Any], root: Path) -> bool:
    """Whether a LoRA has biases of B, or is of a kind or a layout that was once merged as a plain one."""
    base = _local_base(stored, root)
    if base is None:
        return False
    from mergefront.adapters.checkpoints.compatibility import compare_headers
    from mergefront.adapters.checkpoints.header import read_header
    from mergefront.adapters.checkpoints.lora import read_lora

    for folder in (root / path for path in stored["space"]["models"].values()):
        if not (folder / "adapter_config.json").exists():
            continue
        try:
            lora = read_header(folder)
            contents = read_lora(lora, base)
        except UserError:
            return True
        flag = bool(lora.config.get("fan_in_fan_out"))
        moved = any(m.transposed != (flag or ".lora_embedding_" in m.a) for m in contents.modules.values())
        if contents.biases or moved or compare_headers(base, lora, "lora"):
            return True
    return False


def _stops_at_special_tokens(stored: Mapping[str, Any], root: Path) -> bool:
    """Whether a stop string has a special token of the base's tokenizer in it that does not end texts anyway."""
    evaluator, base = stored["evaluator"], root / str(stored["space"].get("base_model"))
    if evaluator["type"] != "local" or not (base / "tokenizer.json").is_file():
        return False
    from mergefront.adapters.checkpoints.header import read_json
    from mergefront.adapters.tasks.task_types import build_task

    added = read_json(base / "tokenizer.json").get("added_tokens", [])
    described = base / "tokenizer_config.json"
    settings = read_json(described) if described.is_file() else {}
    marks = {token["content"] for token in added if token["special"]} - {settings.get("eos_token")}
    stops: list[str] = []
    for name, task in evaluator.get("tasks", {}).items() if marks else ():
        if task["type"] == "lm_eval":
            harness_task: Any = build_task(name, task, root, evaluator.get("seed", 0))
            stops.extend(harness_task.stops)
        else:
            stops.extend(task.get("stop") or ())
    return any(mark in stop for mark in marks for stop in stops)


def _scores_by_echo(stored: Mapping[str, Any], _root: Path) -> bool:
    """Whether log-likelihoods come from echoed prompts."""
    from mergefront.adapters.tasks.metrics.known_metrics import METRICS

    backend = stored["evaluator"].get("backend", {})
    modes = [one.get("mode") for one in backend.get("members", {"": backend}).values()]
    if backend.get("type") not in ("openai", "ensemble") or "completions" not in modes:
        return False
    return any(
        task["type"] == "lm_eval" or task.get("margins") or METRICS[task.get("metric")].verb == "loglikelihood"
        for task in stored["evaluator"]["tasks"].values()
        if task["type"] == "lm_eval" or task.get("metric") in METRICS
    )


def _reads_numbers(stored: Mapping[str, Any], root: Path) -> bool:
    return any(task.get("metric") == "numeric" for task in _of_json_lines(stored))


def _normalises(stored: Mapping[str, Any], root: Path) -> bool:
    return any(
        task.get("metric") == "f1" or (task.get("metric") == "exact_match" and task.get("normalise"))
        for task in _of_json_lines(stored)
    )


def _has_accents(stored: Mapping[str, Any], root: Path) -> bool:
    """Whether an accepted answer has characters that can be written as one or as several."""
    from mergefront.adapters.tasks.items import read_items
    from mergefront.adapters.tasks.metrics.metric_spec import ANSWER

    paths = [
        task[key]
        for task in _of_json_lines(stored)
        if task.get("metric") == "exact_match"
        for key in ("path", "report")
        if key in task
    ]
    answers = (one for path in paths for item in read_items(root / path, path, ANSWER).items for one in item.answers)
    return any(not (is_normalized("NFC", one) and is_normalized("NFD", one)) for one in answers)


def _of_json_lines(stored: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [task for task in stored["evaluator"].get("tasks", {}).values() if task["type"] == "jsonl"]


def _shows_items_as_examples(stored: Mapping[str, Any], root: Path) -> bool:
    """Whether a task of the harness drew few-shot examples from its items."""
    from mergefront.adapters.tasks.task_types import build_task

    evaluator = stored["evaluator"]
    for name, task in evaluator.get("tasks", {}).items():
        if task["type"] == "lm_eval" and task.get("num_fewshot") != 0:
            with suppress(UserError):  # of a task that cannot be made at all the run says why
                harness_task: Any = build_task(name, task, root, evaluator.get("seed", 0))
                if harness_task.may_show_items:
                    return True
    return False


def _names_the_longest_answer_otherwise(stored: Mapping[str, Any], root: Path) -> bool:
    """Whether a harness task of somebody's own says how long answers are by a name that was not read."""
    from mergefront.adapters.tasks.lm_eval.files import task_files

    tasks = [task for task in stored["evaluator"].get("tasks", {}).values() if task["type"] == "lm_eval"]
    own = [task["task"] for task in tasks if task["task"].endswith((".yaml", ".yml"))]
    files = [root / file for name in own for file in task_files(name, root) if file.endswith((".yaml", ".yml"))]
    return any(name in file.read_bytes() for file in files for name in (b"max_tokens", b"max_completion_tokens"))


def _merges_stacked_experts_by_their_matrices(stored: Mapping[str, Any], root: Path) -> bool:
    base = _local_base(stored, root)
    if base is None or not _methods(stored) & {"tsv_m", "wudi", "widen"}:
        return False
    from mergefront.adapters.checkpoints.names import matrices_of

    return any(len(tensor.shape) > 2 and matrices_of(name, tensor.shape) for name, tensor in base.tensors.items())


def _merges_singular_vectors(stored: Mapping[str, Any], root: Path) -> bool:
    return _local_base(stored, root) is not None and bool(_methods(stored) & {"tsv_m", "wudi"})


def _merges_by_tsv_m(stored: Mapping[str, Any], root: Path) -> bool:
    return _local_base(stored, root) is not None and "tsv_m" in _methods(stored)


def _methods(stored: Mapping[str, Any]) -> set[str]:
    methods = stored["space"].get("method", ())
    return {methods} if isinstance(methods, str) else set(methods)


def _puts_whole_tensors_of_loras_on_the_base_as_mergekit(stored: Mapping[str, Any], root: Path) -> bool:
    """Whether a LoRA has a whole tensor in another dtype than the base's."""
    base = _local_base(stored, root)
    if base is None or stored["evaluator"].get("backend", {}).get("compat") != "mergekit":
        return False
    from mergefront.adapters.checkpoints.header import read_header
    from mergefront.adapters.checkpoints.lora import read_lora

    folders = [root / path for path in stored["space"]["models"].values()]
    for lora in (read_header(folder) for folder in folders if (folder / "adapter_config.json").exists()):
        whole = read_lora(lora, base).whole
        if any(lora.tensors[key].dtype != base.tensors[name].dtype for name, key in whole.items()):
            return True
    return False


SCORING_CHANGES: tuple[ScoringChange, ...] = (
    ScoringChange(
        7,
        "tsv_m shortened singular vectors of LoRAs that meet no other expert's, and now they keep their length",
        _merges_by_tsv_m,
    ),
    ScoringChange(
        6,
        "with compat: mergekit, biases and other whole tensors of LoRAs kept their own dtype, and now they are rounded "
        "to the base's, as a LoRA is saved on its base",
        _puts_whole_tensors_of_loras_on_the_base_as_mergekit,
    ),
    ScoringChange(
        6,
        "tsv_m took arbitrary directions for those that LoRAs did not train, wudi solved in single precision, and both "
        "merged LoRAs by their products",
        _merges_singular_vectors,
    ),
    ScoringChange(
        5,
        "tsv_m and wudi took the mean of tensors that hold all experts of a layer, and widen their rows as one, and"
        " now each expert's matrix is merged",
        _merges_stacked_experts_by_their_matrices,
    ),
    ScoringChange(
        4,
        "max_tokens and max_completion_tokens are the longest answer of a task of the harness, which was 256",
        _names_the_longest_answer_otherwise,
    ),
    ScoringChange(
        3,
        "numbers are read by one grammar for answers and texts (decimal commas, fractions, groups, signs)",
        _reads_numbers,
    ),
    ScoringChange(3, "normalised answers are compared without any punctuation or form of compatibility", _normalises),
    ScoringChange(3, "an accent and its letter are compared as one character", _has_accents),
    ScoringChange(3, "an item is no longer an example in its own prompt", _shows_items_as_examples),
    ScoringChange(
        3,
        "tokens of echoed prompts were found by the places that the endpoint states, which count begin tokens, and now "
        "by what they spell",
        _scores_by_echo,
    ),
    ScoringChange(2, "items that name an image are asked with it", _has_images),
    ScoringChange(2, "stop strings that are special tokens end an answer", _stops_at_special_tokens),
    ScoringChange(
        2,
        "the task vectors of its LoRAs were rounded to bfloat16 before they were merged, and now keep their digits",
        _puts_loras_on_bfloat16,
    ),
    ScoringChange(
        2,
        "the final norm (embedding_norm) took the coefficients of the first block, and now takes those of the last",
        _has_blocks_and_a_norm_called_embedding,
    ),
    ScoringChange(
        2,
        "layers of towers (vision, audio) took the coefficients of the text layers of the same number, and now all "
        "take those of the first block",
        _has_blocks_and_a_tower,
    ),
    ScoringChange(
        2,
        "a LoRA of it was not merged as peft merges it (biases of B, kinds started from the base's weights, embeddings "
        "of a tied base, layers stored as in x out)",
        _merges_loras_otherwise,
    ),
)
"""The rules that old studies cannot be scored by any more. A study that no row touches goes on."""
RACING_CHANGES = {
    3: "candidates are asked a smaller core and more items of their own",
    6: "scores and errors are estimated anew",
}
"""What a race does otherwise since some rules of scoring. Its estimates are those of this version, always."""


@dataclass(frozen=True)
class SamplerChange:
    """Since ``number`` a sampler proposes other trials in the studies that it ``touches`` (as of ``ScoringChange``)."""

    sampler: str
    number: int
    touches: Callable[[Mapping[str, Any], Path], bool] = lambda stored, root: True


def _has_exact_slopes(stored: Mapping[str, Any], root: Path) -> bool:
    from mergefront.optimizer.recipes.space import MergeSpace
    from mergefront.optimizer.recipes.unit_cube import Encoder
    from mergefront.optimizer.samplers.mmmo.merge_features import MOST_BY_DIFFERENCES

    load_known_method_files(stored.get("method_files", {}), root)
    return Encoder(MergeSpace.from_json(stored["space"]).distributions()).dimension > MOST_BY_DIFFERENCES


def _was_screened(stored: Mapping[str, Any], root: Path) -> bool:
    options = stored["sampler"]["options"]
    return bool(options.get("variant", "default") == "default" and options.get("fisher_screen", "low") != "off")


def _climbs_on_a_part(stored: Mapping[str, Any], root: Path) -> bool:
    # As ``completed`` has it: what stored no ``unexplained`` reads roughness.
    options = {"budget": "fast", "unexplained": "roughness", "variant": "default", **stored["sampler"]["options"]}
    if options["variant"] != "default" or options["budget"] == "botorch":
        return False
    return bool(options["budget"] == "quality" or options["unexplained"] == "noise")


SAMPLER_CHANGES: tuple[SamplerChange, ...] = (
    # Failed trials teach.
    *(SamplerChange(sampler, 2) for sampler in ("mm-mo", "map", "cma-es", "tpe", "tpe-multivariate")),
    # It is shown no more trials than fit.
    SamplerChange("gp", 2),
    # Slopes are written out: since 3, and in fewer steps since 4.
    SamplerChange("mm-mo", 4, _has_exact_slopes),
    # Only the published variant has a Fisher screen.
    SamplerChange("mm-mo", 5, _was_screened),
    # Climbs begin on a part of the samples, where there are more than eight.
    SamplerChange("mm-mo", 6, _climbs_on_a_part),
)

_TASK_DEFAULTS_OF_1712830: Mapping[str, Mapping[str, Any]] = {
    "jsonl": {
        "max_new_tokens": 32,
        "stop": ["\n"],
        "delimiter": " ",
        "length_normalised": False,
        "margins": False,
        "normalise": False,
        "tolerance": 0.0,
        "seconds": 5.0,
        "memory_mb": 512,
        "report_fraction": 0.5,
    },
}
"""What a task's options were where a study of commit 1712830 or before left them out."""


_BEFORE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "jsonl": {"max_unanswered": 0.0, "skip_blank_start": False},
    "lm_eval": {
        "max_unanswered": 0.0,
        "fewshot_seed": None,
        "confirm_run_unsafe_code": False,
        "apply_chat_template": False,
    },
}
"""What studies did that stored no such option: an item without a usable answer failed every candidate, a stop string of
white space ended an answer that began with it, and few-shot examples were drawn for each item by itself."""


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored definition with the defaults of its day.

    Anchors were all that studies began with; those of commit 1712830 and before did not store defaults of tasks; mm-mo
    read what it could not explain as roughness before that was an option, had no trend before it had one by itself, and
    did not look at items' margins; later options of tasks are in ``_BEFORE_OPTIONS``.
    """
    evaluator, sampler = stored["evaluator"], stored["sampler"]
    stored = {"anchors": [DEFAULT_ANCHORS], **stored}
    if sampler["name"] == "mm-mo":
        options = {"unexplained": "roughness", "trend": "none", "item_margins": False, **sampler["options"]}
        stored = {**stored, "sampler": {**sampler, "options": options}}
    if "tasks" not in evaluator:
        return dict(stored)
    asked = {name: {**_BEFORE_OPTIONS.get(task["type"], {}), **task} for name, task in evaluator["tasks"].items()}
    evaluator = {**evaluator, "tasks": asked}
    stored = {**stored, "evaluator": evaluator}
    if "scoring" in stored:
        return stored
    tasks = {}
    for name, task in evaluator["tasks"].items():
        defaults = dict(_TASK_DEFAULTS_OF_1712830.get(task["type"], {}))
        if "report" in task:
            defaults.pop("report_fraction", None)
        tasks[name] = {**defaults, **task}
    return {**stored, "evaluator": {**evaluator, "tasks": tasks}}


def dtype_and_compute(scoring: int, dtype: str, device: str) -> tuple[str, str]:
    """A local backend's ``dtype`` and ``compute`` for a stored dtype.

    By rules 1 the dtype was what the live model computed in, and "auto" was float32 on a CPU: merges were not rounded.
    """
    if scoring >= 2:
        return dtype, "auto"
    if dtype != "auto":
        return dtype, dtype
    from mergefront.adapters.local.devices.usable import usable_devices

    return ("float32", "float32") if usable_devices(device).main.type == "cpu" else ("auto", "auto")


def sampler_version(name: str) -> int:
    """The version of a sampler's rules."""
    return max((row.number for row in SAMPLER_CHANGES if row.sampler == name), default=1)


def changes_since(name: str, stored: Mapping[str, Any], root: Path) -> list[str]:
    """What a stored study's owner should know of rules that have changed since it was started, a line each.

    Raises ``UserError`` for a study that this version cannot score as it was scored before.
    """
    scoring = stored.get("scoring", 1)
    if scoring > SCORING:
        raise UserError(
            f"study {name!r} is scored by rules of version {scoring}, this mergefront knows {SCORING}; "
            "upgrade mergefront to go on with it"
        )
    changed = [row.what for row in SCORING_CHANGES if row.number > scoring and row.touches(stored, root)]
    if changed:
        raise UserError(
            f"study {name!r} would now be scored differently than when it was begun: {'; '.join(changed)}; go on with "
            f"the mergefront that began it, or begin a study of another name with warm_start: [{{study: {name}}}]"
        )
    from mergefront.optimizer.samplers.registry import too_many_objectives

    refusal = too_many_objectives(stored["sampler"]["name"], len(stored["objectives"]))
    if refusal is not None:
        raise UserError(
            f"study {name!r} cannot go on: {refusal}; begin a study of another name with "
            f"warm_start: [{{study: {name}}}]"
        )
    lines = []
    changes = [what for number, what in RACING_CHANGES.items() if scoring < number]
    if stored.get("racing") and changes:
        lines.append(
            f"racing has changed since study {name!r} was started: {', and '.join(changes)}; it goes on with the "
            "answers that are there"
        )
    sampler = stored["sampler"]
    here, then = sampler_version(sampler["name"]), sampler.get("version", 1)
    since = [row for row in SAMPLER_CHANGES if row.sampler == sampler["name"] and row.number > then]
    if then > here or any(row.touches(stored, root) for row in since):
        lines.append(
            f"sampler {sampler['name']} has changed since study {name!r} was started (version {then}, now {here}); "
            "it goes on with the trials that are there"
        )
    return lines
