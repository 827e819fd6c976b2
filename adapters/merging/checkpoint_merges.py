"""Merges of checkpoints as the tensors that an export writes, one after the other, for whoever takes weights so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mergefront.adapters.checkpoints.header import CheckpointHeader
from mergefront.adapters.checkpoints.names import is_prediction_layer, is_unread
from mergefront.adapters.checkpoints.tokenizers import token_axes
from mergefront.adapters.merging.compression import TaskVectorForm
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.sources import BASE, open_models
from mergefront.optimizer.errors import EvaluationError
from mergefront.optimizer.recipes.recipe import Recipe


@dataclass(frozen=True)
class MergedModels:
    """Which checkpoints are merged, and by which rules; survives JSON (``asdict``).

    ``base`` and ``experts`` are folders. ``dtype`` is what merges are rounded to ("auto": what most of the base is
    stored in). ``tokenizer_source``, ``scope`` and ``carry`` are those of a study file.
    """

    base: str
    experts: Mapping[str, str]
    dtype: str = "auto"
    compat_mergekit: bool = False
    task_vectors: TaskVectorForm = "exact"
    allow: Sequence[str] = ()
    tokenizer_source: str | Mapping[str, Any] | None = None
    scope: str | None = None
    carry: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object of the fields."""
        return asdict(self)


class CheckpointMerges:
    """The engine of such merges: what it holds is read once. Raises ``UserError`` for models that do not fit.

    ``max_memory``: see ``MergeEngine``.
    """

    def __init__(
        self, models: MergedModels, device: str | torch.device = "cpu", max_memory: Mapping[str, int] | None = None
    ) -> None:
        opened = open_models(
            models.base, models.experts, models.dtype, models.tokenizer_source, models.scope, models.carry
        )
        aligned = opened.aligned.models
        self._dtype: torch.dtype | None = getattr(torch, opened.dtype) if opened.rounds_all else None
        self._engine = MergeEngine(
            aligned[BASE],
            {name: aligned[name] for name in models.experts},
            device,
            compat_mergekit=models.compat_mergekit,
            task_vectors=models.task_vectors,
            allow=models.allow,
            max_memory=max_memory,
        )
        self._base = aligned[BASE]
        self.header: CheckpointHeader = aligned[BASE].header
        self._token_axes = token_axes(self.header.tensors)
        self.delta_l1 = 0.0
        """The L1 norm of the last merge minus the base, once all its tensors were taken."""

    @property
    def names(self) -> list[str]:
        """The tensors that a model loads, layer by layer."""
        return [name for name in self._engine.names if is_loaded(name, self.header)]

    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of a merge."""
        found = {}
        for name in self.names:
            tensor = self._base[name]
            rounds = self._dtype is not None and tensor.is_floating_point()
            found[name] = tuple(tensor.shape), self._dtype if rounds and self._dtype else tensor.dtype
        return found

    def tensors(
        self, recipe: Recipe | None, exchanged: Sequence[Sequence[int]] = ()
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a merge (None: of the base) under the base's names.

        The rows of each pair of tokens that are to be ``exchanged`` are, in the embeddings and the head: such a model
        says of the exchanged texts what it said of the texts. Raises ``EvaluationError`` for what is not finite.
        """
        total = 0.0
        for name, tensor, norm in self._of_base() if recipe is None else self._of_merge(recipe):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise EvaluationError(
                    f"tensor {name!r} of this merge is not finite in {str(tensor.dtype).removeprefix('torch.')}",
                    kind="not finite",
                )
            total += norm
            if exchanged and name in self._token_axes:
                pairs = torch.tensor(exchanged, device=tensor.device)
                axis = self._token_axes[name]
                tensor = tensor.index_copy(axis, pairs.flatten(), tensor.index_select(axis, pairs.flip(1).flatten()))
            yield name, tensor
        self.delta_l1 = total

    def _of_merge(self, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor, float]]:
        return self._engine.measured(recipe, self.names, self._dtype)

    def _of_base(self) -> Iterator[tuple[str, torch.Tensor, float]]:
        for name in self.names:
            tensor = self._base[name]
            yield name, tensor.to(self._dtype) if tensor.is_floating_point() and self._dtype else tensor, 0.0


def is_loaded(name: str, header: CheckpointHeader) -> bool:
    """Whether a stored tensor is one that a model loads."""
    return not is_prediction_layer(name, header.config) and not is_unread(name, header.tensors[name].shape)
