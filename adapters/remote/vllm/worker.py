"""What a vLLM worker does for whole merges; vLLM imports it (``--worker-extension-cls``), mergefront only names it.

The worker holds base and experts and merges: a few numbers travel to it. Written against vLLM 0.32. Every method
answers with a mapping and raises nothing, since an exception would put the answers of several workers out of step.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mergefront.adapters.checkpoints.header import Checkpoint, TensorInfo, read_header
from mergefront.adapters.merging.checkpoint_merges import CheckpointMerges, MergedModels, is_loaded
from mergefront.adapters.merging.sources import is_finite
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe

Answer = dict[str, Any]


def _answered(method: Callable[..., Answer]) -> Callable[..., Answer]:
    @functools.wraps(method)
    def answer(self: Any, *args: Any, **kwargs: Any) -> Answer:
        try:
            return {"ok": True, **method(self, *args, **kwargs)}
        except EvaluationError as error:
            return {"ok": False, "error": str(error), "kind": error.kind}
        except UserError as error:
            return {"ok": False, "error": str(error), "kind": "user"}
        except Exception as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}", "kind": "worker"}

    return answer


class MergeWorker:
    """Methods of a worker that are called by name over ``/collective_rpc``; ``version`` names the weights it has."""

    @_answered
    def mergefront_state(self: Any, run: str = "") -> Answer:
        """What the worker is, and the version of its weights (None: those that it was started with); how many seconds
        their search is ``silent``, of which this is a sign of life where it is ``run``."""
        config = self.model_config
        version = getattr(self, "_mergefront_version", None)
        if version is not None and version.startswith(f"{run}-"):
            self._mergefront_seen = time.monotonic()
        return {
            "silent": time.monotonic() - getattr(self, "_mergefront_seen", 0.0),
            "mergefront": _own_version(),
            "model": str(config.model),
            "dtype": str(config.dtype).removeprefix("torch."),
            "quantization": config.quantization and str(config.quantization),
            "version": version,
        }

    @_answered
    def mergefront_open(self: Any, models: Mapping[str, Any]) -> Answer:
        """Read the models that are merged (``MergedModels``); refused where a merge is no such model as the server has.

        Nothing of the served model changes.
        """
        merges = CheckpointMerges(MergedModels(**models), _device(self))
        served = Path(str(self.model_config.model))
        if served.is_dir():
            _refuse_other_model(merges.header.tensors, merges.names, served)
        self._mergefront_merges = merges
        return {}

    @_answered
    def mergefront_merge(
        self: Any, recipe: Mapping[str, Any] | None, version: str, exchanged: Sequence[Sequence[int]] = ()
    ) -> Answer:
        """Make a merge (None: the base itself), and take it as weights; the base's where its numbers are not finite.

        ``exchanged``: see ``CheckpointMerges.tensors``.
        """
        started = time.perf_counter()
        merges: CheckpointMerges = self._mergefront_merges
        made = _Made(merges, None if recipe is None else Recipe.from_json(recipe), exchanged)
        self._mergefront_version = None
        self.reload_weights(weights_iterator=iter(made))
        if made.fault is not None:
            self.reload_weights(weights_iterator=merges.tensors(None))
        _after_loading(self)
        if made.fault is not None:
            raise made.fault
        self._mergefront_version, self._mergefront_seen = version, time.monotonic()
        return {"version": version, "delta_l1": merges.delta_l1, "seconds": time.perf_counter() - started}

    @_answered
    def mergefront_load(self: Any, folder: str, version: str) -> Answer:
        """Take the checkpoint in a folder as weights; nothing is taken where it is no such model, or not finite."""
        started, path = time.perf_counter(), Path(folder)
        if not path.is_dir():
            raise UserError(f"the server has no folder {path}; vllm: {{server_folder: ...}} says what it is there")
        file = Checkpoint(path)
        served = Path(str(self.model_config.model))
        if served.is_dir():
            _refuse_other_model(file.header.tensors, list(file), served)
        broken = next((name for name in file if not is_finite(file[name])), None)
        if broken is not None:
            raise EvaluationError(f"tensor {broken!r} of this merge is not finite", kind="not finite")
        self._mergefront_version = None
        # Copies: vLLM may keep what it is given until a layer is whole, and the file's pages pass.
        self.reload_weights(weights_iterator=((name, file[name].clone()) for name in file))
        _after_loading(self)
        self._mergefront_version, self._mergefront_seen = version, time.monotonic()
        return {"version": version, "seconds": time.perf_counter() - started}

    @_answered
    def mergefront_end(self: Any, run: str) -> Answer:
        """Let go of what a search holds here; the weights stay, without a name."""
        if (getattr(self, "_mergefront_version", None) or "").startswith(f"{run}-"):
            self._mergefront_version = self._mergefront_merges = None
        return {}


class _Made:
    """The tensors of a merge; the base's behind one that cannot be had: a model that was loaded in part is lost."""

    def __init__(self, merges: CheckpointMerges, wanted: Recipe | None, exchanged: Sequence[Sequence[int]]) -> None:
        self._merges, self._wanted, self._exchanged = merges, wanted, exchanged
        self.fault: Exception | None = None

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        given = set()
        try:
            for name, tensor in self._merges.tensors(self._wanted, self._exchanged):
                given.add(name)
                yield name, tensor
        except Exception as error:
            self.fault = error
            yield from ((name, tensor) for name, tensor in self._merges.tensors(None) if name not in given)


def _own_version() -> str | None:
    """Of the installed package; None where its code alone is in reach."""
    try:
        return metadata.version("mergefront")
    except metadata.PackageNotFoundError:
        return None


def _device(worker: Any) -> torch.device:
    device: torch.device = next(iter(worker.model_runner.model.parameters())).device
    return device


def _refuse_other_model(here: Mapping[str, TensorInfo], names: Sequence[str], served: Path) -> None:
    """Raises ``UserError`` where the served model has other tensors: vLLM would end with them, or leave some out."""
    there = read_header(served)
    stored, given = there.tensors, set(names)
    lost = [name for name in stored if name not in given and is_loaded(name, there)]
    if lost:
        raise UserError(f"merges have no tensor {lost[0]!r}, which the served model ({served}) has")
    for name in names:
        if name not in stored:
            raise UserError(f"the served model ({served}) has no tensor {name!r}, which merges have")
        if stored[name].shape != here[name].shape:
            shapes = f"{list(stored[name].shape)} there, {list(here[name].shape)} in merges"
            raise UserError(f"tensor {name!r} of the served model ({served}) is of another shape: {shapes}")


def _after_loading(worker: Any) -> None:
    """What vLLM leaves undone: a tied head that was packed for a CPU keeps the embeddings of before, and numbers that
    were not finite stay in blocks of the key-value cache, where they spoil later answers."""
    for module in worker.model_runner.model.modules():
        if type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)
    for cache in getattr(worker.model_runner, "kv_caches", ()):
        for tensor in cache if isinstance(cache, (list, tuple)) else (cache,):
            tensor.zero_()
