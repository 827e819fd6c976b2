"""A vLLM worker with our extension that keeps the weights that it is given, and the routes that lead to it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from mergefront.adapters.remote.vllm.worker import MergeWorker


class ParallelLMHead(torch.nn.Module):
    """As vLLM's on a CPU: packed, so that new embeddings reach it only when it is packed again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.times, self.cpu_linear = 0, None
        self.quant_method = SimpleNamespace(process_weights_after_loading=self._pack)

    def _pack(self, module: torch.nn.Module) -> None:
        assert module is self
        self.times += 1


class Worker(MergeWorker):
    """What the extension uses of vLLM's worker."""

    def __init__(self, served: Path) -> None:
        self.model_config = SimpleNamespace(model=str(served), dtype=torch.float32, quantization=None)
        self.head = ParallelLMHead()
        self.model_runner = SimpleNamespace(model=self.head, kv_caches=[[torch.ones(3)], torch.ones(2)])
        self.holds: dict[str, torch.Tensor] = {}
        self.named = "default"

    def reload_weights(self, weights_iterator: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.holds = dict(weights_iterator)

    def answer(self, path: str, body: Any) -> Any:
        """What a server of this one worker answers to a route of its development mode."""
        if path == "/update_weight_version":
            self.named = body["new_version"]
            return {"success": True, "new_version": self.named}
        if path == "/weight_info":
            return {"weight_version": self.named}
        assert path == "/collective_rpc"
        if body["method"] == "reload_weights":
            self.holds = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            return {"results": [None]}
        return {"results": [getattr(self, body["method"])(**body["kwargs"])]}
