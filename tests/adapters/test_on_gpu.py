"""A GPU merges and answers as the CPU does. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.output.directory import merge_to_directory
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
FAMILY = [name for name, method in METHODS.items() if method.consensus is not None]
WEIGHTS = {"a": 0.7, "b": -0.3, "c": 0.5}
SHAPES = {"up": (96, 130), "norm": (33,), "one": (1,), "square": (40, 40), "long": (1 << 18,)}


def pool(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """A base and three experts on the CPU."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    experts = {
        expert: {n: (t + 0.1 * torch.randn(t.shape, generator=generator)).to(dtype) for n, t in base.items()}
        for expert in WEIGHTS
    }
    return {name: tensor.to(dtype) for name, tensor in base.items()}, experts


def recipe(method: str) -> Recipe:
    params: dict[str, float | bool] = {f"weight[{name}]": weight for name, weight in WEIGHTS.items()}
    if METHODS[method].parameter("density"):
        params["density"] = 0.4
    return Recipe(method, {name: name for name in WEIGHTS}, params, "base")


def merged(engine: MergeEngine, made: Recipe) -> tuple[dict[str, torch.Tensor], float]:
    live = {name: torch.full(shape, 7.0, device=engine.device) for name, shape in SHAPES.items()}
    report = engine.merge_into(made, live)
    return {name: tensor.cpu() for name, tensor in live.items()}, report.delta_l1


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("method", FAMILY)
def test_a_gpu_merges_as_the_cpu_does(method: str, compile: bool) -> None:
    """The entries that are dropped are the same ones, at random or by rank, so no entry is far off; but one whose
    weighted sum is zero to the last digit may be given the other sign by an elected one."""
    for dtype in (torch.float32, torch.bfloat16):
        base, experts = pool(dtype)
        there, norm = merged(MergeEngine(base, experts, device="cuda", resident=True, compile=compile), recipe(method))
        here, expected = merged(MergeEngine(base, experts), recipe(method))
        assert norm == pytest.approx(expected, rel=1e-5)
        for name, tensor in here.items():
            off = ~torch.isclose(there[name], tensor, rtol=1e-5, atol=1e-5)
            assert int(off.sum()) <= (2 if METHODS[method].consensus == "sign" else 0), name


@pytest.mark.parametrize("form", ["int8", 4])
def test_compressed_task_vectors_on_a_gpu(form: Any) -> None:
    base, experts = pool(torch.bfloat16)
    there, _ = merged(MergeEngine(base, experts, device="cuda", task_vectors=form), recipe("ties"))
    here, _ = merged(MergeEngine(base, experts, task_vectors=form), recipe("ties"))
    for name in SHAPES:
        # Singular vectors differ in the last digits, so a few ties of magnitude may fall the other way.
        assert float((there[name] - here[name]).norm()) <= 2e-2 * float(here[name].norm()), name


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_from_files_resident_or_streamed(resident: bool) -> None:
    made = Recipe.from_mergekit((GOLDENS / "configs" / "ties.yaml").read_text())
    experts = {name: GOLDENS / path for name, path in made.models.items()}
    base = GOLDENS / (made.base_model or "models/base")
    engine = MergeEngine(base, experts, device="cuda", resident=resident)
    expected = load_file(GOLDENS / "expected" / "ties.safetensors")
    for name, tensor in engine.iterate(made):
        assert float((tensor.cpu() - expected[name]).norm()) <= 1e-5 * float(expected[name].norm()), name


@pytest.mark.parametrize("config", sorted((GOLDENS / "configs").glob("*.yaml")), ids=lambda config: config.stem)
def test_merge_directory_on_a_gpu_writes_mergekits_tensors(config: Path, tmp_path: Path) -> None:
    made = load_file(merge_to_directory(config, tmp_path / "out", root=GOLDENS, device="cuda") / "model.safetensors")
    expected = load_file(GOLDENS / "expected" / f"{config.stem}.safetensors")
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((made[name].float() - tensor.float()).norm()) <= 2e-5 * float(tensor.float().norm()), name


def test_a_model_on_a_gpu_gives_the_answers_and_likelihoods_of_the_cpu(
    tokenizer: Any, random_model: Callable[..., Any]
) -> None:
    prompts = ["Question: what is two plus two? Answer:", "Is it A, B", "Sort 23 43 83:"]
    asked = [GenerationRequest(prompt, max_new_tokens=12) for prompt in prompts]
    choices = [ScoringRequest(prompt, choice) for prompt in prompts for choice in (" four", " it B!", " 38 43")]
    models = [HuggingFaceModel(random_model().to(device).eval(), tokenizer) for device in ("cpu", "cuda")]
    here, there = (model.generate(asked) for model in models)
    assert here == there
    for mine, theirs in zip(*(model.loglikelihood(choices) for model in models), strict=True):
        assert theirs.logprob == pytest.approx(mine.logprob, rel=1e-3, abs=1e-3)
        assert (theirs.tokens, theirs.is_greedy) == (mine.tokens, mine.is_greedy)


def test_a_local_backend_merges_and_answers_on_the_gpu_it_finds(
    tokenizer: Any, random_model: Callable[..., Any], tmp_path: Path
) -> None:
    base = random_model()
    for name, factor in (("base", 1.0), ("x", 1.1), ("y", 0.9)):
        model = random_model()
        for parameter, origin in zip(model.parameters(), base.parameters(), strict=True):
            parameter.data = origin.data * factor
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    made = Recipe("task_arithmetic", {"x": "x", "y": "y"}, {"weight[x]": 0.5, "weight[y]": 0.25}, "base")
    answers = []
    for device in ("auto", "cpu"):
        backend = LocalBackend.from_checkpoints(
            tmp_path / "base", {name: tmp_path / name for name in ("x", "y")}, device=device, dtype="float32"
        )
        with backend.apply(made) as model:
            assert device == "cpu" or model.model.device.type == "cuda"
            answers.append([g.text for g in model.generate([GenerationRequest("Is it A,", max_new_tokens=10)])])
    assert answers[0] == answers[1]
