"""What a name of the harness, or a YAML file of one's own, stands for: a task, or the tasks of a group or a tag."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mergefront.adapters.tasks.user_code import described
from mergefront.optimizer.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

Made = TypeVar("Made")


@dataclass(frozen=True)
class Loaded:
    """Tasks of the harness by name, in its order.

    ``aggregates`` is what a group says of how its tasks' scores are averaged (its ``aggregate_metric_list``); it is
    empty for a tag, and None for a single task. ``published``: they are the harness' own, not somebody's files.
    """

    tasks: Mapping[str, Any]
    published: bool
    aggregates: tuple[Any, ...] | None = None

    @property
    def is_several(self) -> bool:
        return self.aggregates is not None


def load(
    task: str,
    folder: Path,
    include_path: str | PathLike[str] | None,
    files: Mapping[str, Any] | None,
    num_fewshot: int | None,
) -> Loaded:
    """What the option ``task`` stands for, with the other options that matter to it. Raises ``UserError``."""
    if task.endswith((".yaml", ".yml")):
        path = folder / task
        if not os.path.isfile(path):
            raise UserError(f"task {task!r}: there is no file {path}")
        if files is not None:
            raise UserError(f"data_files belongs to a task by name; {task} names its own under dataset_kwargs")
        return Loaded({task: _from_file(path)}, False)
    own = None if include_path is None else _manager(folder / include_path, defaults=False)
    if own is not None and _is_complete(own, task):
        manager = own
    else:
        manager = _manager(None if include_path is None else folder / include_path)
    if task not in manager.all_tasks:
        near = get_close_matches(task, manager.all_tasks, n=1)
        hint = f"(did you mean {near[0]!r}?)" if near else "('lm-eval ls tasks' lists them)"
        raise UserError(f"unknown task {task!r} of the LM evaluation harness {hint}")
    published = own is None or task not in own.all_tasks
    if task not in manager.all_subtasks:
        if files is not None:
            raise UserError(f"data_files belongs to one task, and {task!r} is several; name its tasks one by one")
        found = loaded(lambda: manager.load([task]), task)
        group = found["groups"].get(task)
        return Loaded(found["tasks"], published, tuple(getattr(group, "aggregate_metric_list", None) or ()))
    if files is None:
        return Loaded(loaded(lambda: manager.load([task])["tasks"], task), published)
    config = _configuration(manager.task_index[task].yaml_path, task)
    local = _local_data(task, config, files, folder, num_fewshot)
    return Loaded({task: _configured({**config, **local}, task)}, published)


def _is_complete(own: TaskManager, name: str, above: tuple[str, ...] = ()) -> bool:
    """Whether ``name`` needs nothing of the harness, whose index takes seconds to read: a task of one's own, or a
    group that names only such.

    A tag is not complete, as tasks of the harness can have it too; a group that stands within another one's file is
    not, as the harness may have one of its name.
    """
    if name in own.all_subtasks:
        return True
    if name in above or name not in own.all_groups:
        return False
    members = (own.task_index[name].cfg or {}).get("task")
    return isinstance(members, list) and all(
        isinstance(member, str) and _is_complete(own, member, (*above, name)) for member in members
    )


def _configuration(path: Path | None, task: str) -> dict[str, Any]:
    """What the harness' YAML file of a task says. Raises ``UserError`` for a task that is a program."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = {} if path is None else dict(load_yaml(path, resolve_func=True))
    if not config or "class" in config:
        raise UserError(f"data_files: task {task!r} is a program, which reads its data itself")
    return config


def _configured(config: Mapping[str, Any], label: str) -> Any:
    from lm_eval.api.task import ConfigurableTask

    own = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    return loaded(lambda: ConfigurableTask(config=own), label)


def _local_data(
    task: str, config: Mapping[str, Any], files: Mapping[str, Any], folder: Path, num_fewshot: int | None
) -> dict[str, Any]:
    """What puts local ``files`` (by split) in the place of a task's data set. Raises ``UserError``."""
    splits = {kind: config.get(f"{kind}_split") for kind in ("training", "validation", "test", "fewshot")}
    used = [str(split) for split in splits.values() if split is not None]
    for split, name in files.items():
        if used and split not in used:
            raise UserError(f"data_files: task {task!r} has no split {split!r} {did_you_mean(split, used)}")
        if not os.path.isfile(folder / name):
            raise UserError(f"data_files: there is no file {folder / name}")
    examples = num_fewshot if num_fewshot is not None else int(config.get("num_fewshot") or 0)
    drawn_from = splits["fewshot"] or splits["training"] or splits["validation"] or splits["test"]
    if examples and drawn_from is not None and drawn_from not in files:
        raise UserError(
            f"data_files: task {task!r} draws {examples} examples from the split {drawn_from!r}; give a file for it, "
            "or set num_fewshot: 0"
        )
    kinds = {_FORMATS.get(Path(name).suffix) for name in files.values()}
    if len(kinds) != 1 or None in kinds:
        raise UserError(f"data_files must be files of one kind: {', '.join(_FORMATS)}")
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(folder / name) for split, name in files.items()}},
        **{f"{kind}_split": None for kind, split in splits.items() if split is not None and split not in files},
    }


_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""The data library's reader by file suffix."""


def _from_file(path: Path) -> Any:
    """The task that a YAML file defines; its data files are relative to it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = loaded(lambda: dict(load_yaml(path, resolve_func=True)), str(path))
    if isinstance(config.get("group"), str):
        raise UserError(f"{path} is a group of tasks; write task: {config['group']}, with its folder as include_path")
    arguments = config.get("dataset_kwargs") or {}
    if "data_files" in arguments:
        config["dataset_kwargs"] = {**arguments, "data_files": _beside(arguments["data_files"], path.parent)}
    return _configured(config, str(path))


def _beside(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {split: _beside(names, folder) for split, names in files.items()}
    if isinstance(files, list):
        return [_beside(name, folder) for name in files]
    return str(folder / files) if isinstance(files, str) and "://" not in files else files


def loaded(build: Callable[[], Made], label: str) -> Made:
    """What ``build`` makes. Whatever a benchmark's own code or data raises becomes ``UserError``."""
    try:
        with quiet():
            return build()
    except ConnectionError as error:
        raise UserError(
            f"task {label!r}: {error!s:.200}, and its data is not in the cache of datasets (HF_DATASETS_CACHE); where "
            f"the Hub can be reached, fetch it with: lm-eval run --model dummy --limit 1 --tasks {label}"
        ) from None
    except (Exception, SystemExit) as error:
        raise UserError(f"task {label!r}: the harness could not load it ({described(error):.300})") from None


@lru_cache(maxsize=4)
def _manager(include_path: Path | None, defaults: bool = True) -> TaskManager:
    """The harness' index of tasks; reading its ten thousand files takes seconds."""
    from lm_eval.tasks import TaskManager

    with quiet():
        return TaskManager(include_path=None if include_path is None else str(include_path), include_defaults=defaults)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the harness' and the data library's remarks and progress bars."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
