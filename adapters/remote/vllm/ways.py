"""The ways by which a merge becomes a vLLM server's weights.

The workers merge, where they have our extension and the models: a few numbers travel. Or the merge is made here and
written to a folder, from which the workers read it, with the extension or by vLLM's own means.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mergefront.adapters.checkpoints.names import HEADS, embedding_name
from mergefront.adapters.checkpoints.writer import write_tensors
from mergefront.adapters.merging.checkpoint_merges import CheckpointMerges, MergedModels
from mergefront.adapters.remote.http.client import HttpClient
from mergefront.adapters.remote.settings import MERGE_WORKER
from mergefront.adapters.remote.vllm.wire import VllmWire
from mergefront.optimizer.errors import EvaluationError, MergefrontError, UserError
from mergefront.optimizer.recipes.recipe import Recipe

Pairs = Sequence[Sequence[int]]
_MEMORY = Path("/dev/shm")


class Way(Protocol):
    """One of them, for one server; ``run`` is what this search is called there."""

    name: str

    def open(self) -> None:
        """Make the server ready, also where it was started again. Raises ``UserError`` where it cannot be."""

    async def send(self, recipe: Recipe | None, version: str, exchanged: Pairs) -> float:
        """Make a merge (None: the base) the weights, and ``version`` their name; returns the L1 norm of merged - base.

        Raises ``EvaluationError`` for a merge that no model is.
        """
        ...

    async def versions(self) -> list[str | None]:
        """What each worker says that its weights are called (None: nobody has named them since it was started)."""
        ...

    def close(self) -> None:
        """Let the server go, and remove what was written."""


class InWorkers:
    """The workers hold the models and merge."""

    name = "merge"

    def __init__(self, client: HttpClient, models: MergedModels, run: str) -> None:
        self._client, self._wire, self._models, self._run = client, VllmWire(client), models, run

    def open(self) -> None:
        raise_first(self._client.run(self._wire.call_workers("mergefront_open", models=self._models.to_json())))

    async def send(self, recipe: Recipe | None, version: str, exchanged: Pairs) -> float:
        content = None if recipe is None else recipe.to_json()
        answers = await self._wire.call_workers(
            "mergefront_merge", recipe=content, version=version, exchanged=list(exchanged)
        )
        raise_first(answers)
        return float(answers[0]["delta_l1"])

    async def versions(self) -> list[str | None]:
        return await worker_versions(self._wire, self._run)

    def close(self) -> None:
        self._client.run(self._wire.call_workers("mergefront_end", run=self._run))


class FromFile:
    """The merge is made here; the workers read and check it.

    ``folder`` is where it is written (None: shared memory), ``server_folder`` what that is called there.
    """

    name = "file"

    def __init__(
        self, client: HttpClient, models: MergedModels, run: str, folder: Path | None, server_folder: str | None
    ) -> None:
        self._client, self._wire, self._models, self._run = client, VllmWire(client), models, run
        self._own = None if folder is not None else Path(tempfile.mkdtemp("", "mergefront-", _memory()))
        self._folder = self._own or folder or Path()
        self._there = server_folder or str(self._folder.resolve())
        self._merges: CheckpointMerges | None = None

    def open(self) -> None:
        """Nothing is held there."""

    async def send(self, recipe: Recipe | None, version: str, exchanged: Pairs) -> float:
        delta_l1 = self._write(recipe, exchanged)
        raise_first(await self._wire.call_workers("mergefront_load", folder=self._there, version=version))
        return delta_l1

    async def versions(self) -> list[str | None]:
        return await worker_versions(self._wire, self._run)

    def close(self) -> None:
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
        self._let_go()

    def _let_go(self) -> None:
        self._client.run(self._wire.call_workers("mergefront_end", run=self._run))

    def _write(self, recipe: Recipe | None, exchanged: Pairs, head: str = "") -> float:
        """Write the merge over the last one, at once; its embeddings once more under the name ``head``."""
        merges = self._merger()
        embedding = embedding_name(merges.names)
        layout = {}
        for name, entry in merges.layout().items():
            layout[name] = entry
            if head and name == embedding:
                layout[head] = entry

        def tensors() -> Iterator[tuple[str, Any]]:
            for name, tensor in merges.tensors(recipe, exchanged):
                yield name, tensor
                if head and name == embedding:
                    yield head, tensor

        with tempfile.TemporaryDirectory(dir=self._folder) as partial:
            made = tensors()
            write_tensors(Path(partial), layout, made, shard_bytes=1 << 62)
            deque(made, maxlen=0)  # what a merge differs by is known at its end
            os.replace(Path(partial) / "model.safetensors", self._folder / "model.safetensors")
        return merges.delta_l1

    def _merger(self) -> CheckpointMerges:
        if self._merges is None:
            self._merges = CheckpointMerges(self._models)
        return self._merges


class ByReload(FromFile):
    """The merge is made here; vLLM reads it by its own means, and keeps the name of the weights itself."""

    name = "reload"

    def open(self) -> None:
        try:
            self._client.run(self._wire.named_weights())
        except EvaluationError as error:
            raise UserError(
                "backend.vllm: without our worker the server has to say which weights it has (/weight_info, vLLM 0.27 "
                f"or later); start it with --worker-extension-cls {MERGE_WORKER} ({error})"
            ) from None

    async def send(self, recipe: Recipe | None, version: str, exchanged: Pairs) -> float:
        # A tied head that was packed for a CPU is packed anew only where it is in the file.
        merges = self._merger()
        is_left_out = merges.header.tied and not any(name.endswith(HEADS) for name in merges.names)
        delta_l1 = self._write(recipe, exchanged, "lm_head.weight" if is_left_out else "")
        await self._wire.reload(self._there)
        await self._wire.name_weights(version)
        return delta_l1

    async def versions(self) -> list[str | None]:
        name = await self._wire.named_weights()
        return [name if "-" in name else None]

    def _let_go(self) -> None:
        self._client.run(self._wire.name_weights("default"))


async def worker_versions(wire: VllmWire, run: str) -> list[str | None]:
    """The versions that the workers of our extension have; a sign of life of the search ``run``."""
    states = await wire.call_workers("mergefront_state", run=run)
    raise_first(states)
    return [state.get("version") for state in states]


def raise_first(answers: Sequence[Mapping[str, Any]]) -> None:
    """What the first worker that could not do its work says, as the error that it is."""
    for answer in answers:
        if not answer["ok"]:
            made: MergefrontError = (
                UserError(f"backend.vllm: {answer['error']}")
                if answer["kind"] == "user"
                else EvaluationError(str(answer["error"]), kind=str(answer["kind"]))
            )
            raise made


def _memory() -> Path | None:
    return _MEMORY if _MEMORY.is_dir() else None
