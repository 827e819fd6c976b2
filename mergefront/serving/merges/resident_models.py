"""The resident models: the base and its experts are loaded once, one merge at a time is in the live model.

The merge stays in place until another recipe is asked for, so that a candidate's messages pay for one merge.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.recipe import Recipe

if TYPE_CHECKING:
    from mergefront.adapters.local.model import HuggingFaceModel

T = TypeVar("T")

PROTOCOL = 1
"""Part of the pool's digest: raised when the same pool would answer otherwise."""
_CONTENT = (".safetensors", ".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Worked(Generic[T]):
    """What a job returned and took. ``merge_seconds`` is 0 where the merge was in place already."""

    value: T
    merged: bool
    merge_seconds: float
    seconds: float


class MergePool:
    """A base model and its experts. ``run`` belongs to one thread at a time.

    ``base`` and ``models`` are folders in Hugging Face's format (experts may be PEFT LoRAs). Raises
    ``UserError`` for what cannot be loaded.
    """

    def __init__(
        self,
        base: Path,
        models: Mapping[str, Path],
        *,
        device: str = "auto",
        dtype: str = "auto",
        allow: Collection[str] = (),
    ) -> None:
        from mergefront.adapters.local.backend import LocalBackend

        self.models = tuple(models)
        self._backend = LocalBackend.from_checkpoints(base, dict(models), device=device, dtype=dtype, allow=allow)
        computing = next(iter(self._backend.model.parameters())).dtype
        self.digest = pool_digest(base, models, f"{computing} from {dtype}")
        self._in_place: tuple[str, AbstractContextManager[Any], HuggingFaceModel] | None = None

    def check(self, recipe: Recipe) -> None:
        """Raises ``UserError`` for a model that the pool does not have."""
        for name in recipe.models:
            if name not in self.models:
                raise UserError(f"the pool has no model {name!r} {did_you_mean(name, self.models)}")

    def run(self, recipe: Recipe, work: Callable[[HuggingFaceModel], T]) -> Worked[T]:
        """``work`` with the merge of ``recipe``; whatever it raises, the merge stays in place."""
        started = time.perf_counter()
        in_place, merge_seconds = self._in_place, 0.0
        merged = in_place is None or in_place[0] != recipe.digest
        if in_place is None or merged:
            self.release()
            applied = self._backend.apply(recipe)
            in_place = self._in_place = (recipe.digest, applied, applied.__enter__())
            merge_seconds = time.perf_counter() - started
        return Worked(work(in_place[2]), merged, merge_seconds, time.perf_counter() - started)

    def release(self) -> None:
        """Leave the merge that is in place; in the thread of ``run``."""
        if self._in_place is not None:
            applied, self._in_place = self._in_place[1], None
            applied.__exit__(None, None, None)


def pool_digest(base: Path, models: Mapping[str, Path], dtype: str) -> str:
    """32 hexadecimal characters that change with every file that decides an answer, and with the names."""
    digest = hashlib.sha256(f"mergefront pool {PROTOCOL} {dtype}".encode())
    for name, folder in [("", base), *sorted(models.items())]:
        digest.update(f"\n{name}".encode())
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix in _CONTENT:
                digest.update(f"\n{file.name} ".encode())
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:32]
