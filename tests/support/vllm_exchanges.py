"""What a real vLLM server answered to a search of whole merges, recorded once and played back where there is none.

``python tests/support/vllm_exchanges.py PYTHON`` records it anew, with the vLLM of that Python's environment.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "fixtures" / "vllm_exchanges.json.gz"
EXPERTS = ("sums", "sorting", "french")


def make_models(folder: Path) -> None:
    """A tied base of two layers, and three experts that differ from it in every tensor, embeddings and norms too."""
    import torch
    from small_tokenizer import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=0,
        bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    for seed, name in enumerate(("base", *EXPERTS)):
        model = LlamaForCausalLM(config)
        model.load_state_dict(base.state_dict())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.08 if seed else 0))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def recipes() -> list[Any]:
    """The base, an expert, and merges by several methods."""
    from mergefront.optimizer.recipes.recipe import Recipe

    models = {name: name for name in EXPERTS}

    def made(method: str, weights: tuple[float, ...], **shared: float) -> Any:
        own = {f"weight[{name}]": weight for name, weight in zip(EXPERTS, weights, strict=True)}
        own |= {f"density[{name}]": 0.6 for name in EXPERTS} if method in ("ties", "dare_ties") else {}
        return Recipe(method, models, {**own, **shared}, "base", seed=1)

    return [
        made("task_arithmetic", (0, 0, 0)),
        made("task_arithmetic", (1, 0, 0)),
        made("task_arithmetic", (0.5, -0.5, 1.2)),
        made("ties", (0.7, 0.4, 0.2)),
        made("dare_ties", (0.3, 0.3, 0.9)),
        made("linear", (0.2, 0.3, 0.5)),
    ]


def questions() -> tuple[list[Any], list[Any]]:
    """What is scored, and what is written on: one prompt longer than vLLM's cached blocks, stops, a drawn answer."""
    from mergefront.adapters.language_model import GenerationRequest, ScoringRequest

    long = "Question: what is two plus two? Answer: four. " * 3
    scoring = [ScoringRequest(f"{long}{number} =", f" {number * 7}") for number in (3, 11)]
    scoring += [ScoringRequest("Is it A, B or C?", answer) for answer in (" A", " B", " It is C!")]
    scoring.append(ScoringRequest("", "The merge of two experts"))
    writing = [GenerationRequest(f"{long}{number} =", 8, ("?", ":")) for number in (3, 11)]
    writing += [GenerationRequest("Is it A, B or C?", 12, ()), GenerationRequest("Sort 23 43:", 6, ("<end>",))]
    return scoring, writing


@dataclass
class Exchanges:
    """Requests to a server of whole merges, and its answers by what they depend on: request and weights."""

    answers: dict[str, Any] = field(default_factory=dict)
    version: str | None = None
    """Of the weights that the server has."""
    weights: str = "as started"
    """What they were made of."""
    merges: int = -1
    """The number of the merge that they are, from 0."""

    def key(self, method: str, path: str, body: bytes) -> str:
        """A request without names that pass: versions, folders."""
        content = json.loads(body) if body else None
        if path == "/collective_rpc":
            arguments = content["kwargs"]
            if content["method"] == "mergefront_merge":
                self.version = arguments.pop("version")
                self.merges = int(self.version.partition("-")[2])
                self.weights = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:16]
            arguments.pop("models", None)
            arguments.pop("run", None)
        weights = self.weights if path == "/v1/completions" else ""
        return json.dumps([weights, method, path, content], sort_keys=True)

    def playing(self) -> Callable[[Any], Any]:
        """A handler for ``servers.serve``."""
        from servers import Answer, as_json

        def answer(request: Any) -> Any:
            key = self.key(request.method, request.path, request.body)
            if key not in self.answers:
                return Answer(404, b'{"error": "this was not recorded"}')
            status, content = self.answers[key]
            return as_json(self._named(content), status)

        return answer

    def recording(self, url: str) -> Callable[[Any], Any]:
        """A handler that passes everything on to ``url``, and remembers."""
        from servers import Answer

        def answer(request: Any) -> Any:
            key = self.key(request.method, request.path, request.body)
            headers = {"Content-Type": "application/json"} if request.body else {}
            asked = urllib.request.Request(url + request.path, request.body or None, headers, method=request.method)
            try:
                with urllib.request.urlopen(asked) as told:
                    status, body = told.status, told.read()
            except urllib.error.HTTPError as error:
                status, body = error.code, error.read()
            self.answers[key] = [status, self._nameless(json.loads(body or b"null"))]
            return Answer(status, body)

        return answer

    def save(self) -> None:
        with gzip.GzipFile(RECORDED, "wb", mtime=0) as file:
            file.write(json.dumps(self.answers, sort_keys=True).encode())

    @classmethod
    def load(cls) -> Exchanges:
        return cls(json.loads(gzip.decompress(RECORDED.read_bytes())))

    def _nameless(self, content: Any) -> Any:
        if isinstance(content, Mapping) and "vllm_config" in content:  # all else describes the machine
            model, parallel = (content["vllm_config"][key] for key in ("model_config", "parallel_config"))
            kept = {"model": "/not/here", "dtype": model["dtype"], "quantization": model["quantization"]}
            extension = {"worker_extension_cls": parallel["worker_extension_cls"]}
            return {"vllm_config": {"model_config": kept, "parallel_config": extension}}
        for one in content.get("results", ()) if isinstance(content, Mapping) else ():
            if isinstance(one, dict) and one.get("version"):
                one["version"] = "its own"
            if isinstance(one, dict) and "model" in one:
                one["model"] = "/not/here"
        return content

    def _named(self, content: Any) -> Any:
        made = json.loads(json.dumps(content))
        for one in made.get("results", ()) if isinstance(made, Mapping) else ():
            if isinstance(one, dict) and one.get("version"):
                one["version"] = self.version
        return made


def searched(url: str, models: Path, settings: Any = None, **more: Any) -> Any:
    """The backend of whole merges at a running server."""
    from mergefront.adapters.merging.checkpoint_merges import MergedModels
    from mergefront.adapters.remote.settings import VllmEngineSection
    from mergefront.adapters.remote.vllm.whole_merges import VllmMerges

    merged = MergedModels(str(models / "base"), {name: str(models / name) for name in EXPERTS})
    return VllmMerges(merged, models / "base", recipes()[1], settings or VllmEngineSection(url=url), "float32", **more)


def record(python: str) -> None:
    from servers import serve

    from mergefront.adapters.remote.vllm.process import VllmInstallation, VllmProcess

    exchanges = Exchanges()
    with tempfile.TemporaryDirectory() as name:
        models = Path(name)
        make_models(models)
        process = VllmProcess(VllmInstallation.found(python), models / "base", "float32", [], 600)
        try:
            with serve(exchanges.recording(process.url)) as served:
                backend = searched(served.url, models)
                print(backend.proof)
                scoring, writing = questions()
                for recipe in recipes():
                    with backend.apply(recipe) as merged:
                        merged.loglikelihood(scoring)
                        merged.generate(writing)
                backend.close()
        finally:
            process.close()
    exchanges.save()
    print(f"{len(exchanges.answers)} answers, {RECORDED.stat().st_size} bytes")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "adapters" / "remote" / "http"), str(Path(__file__).parent)]
    record(sys.argv[1])
