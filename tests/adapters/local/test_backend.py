"""The live model holds exactly the merge that was asked for, and nothing that was left by the last one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import mergefront as mf
from mergefront.adapters.evaluator import out_of_memory
from mergefront.adapters.language_model import GenerationRequest, LanguageModel, ScoringRequest
from mergefront.adapters.local.backend import LocalBackend
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe

NAMES = {"first": "first", "second": "second"}
AVERAGE = Recipe("task_arithmetic", NAMES, {"weight[first]": 0.5, "weight[second]": 0.25}, "base")
TIES = Recipe(
    "ties", NAMES,
    {"weight[first]": 0.7, "weight[second]": 0.4, "density[first]": 0.5, "density[second]": 0.3}, "base",
)  # fmt: skip


def network() -> torch.nn.Module:
    """A plain module with integer and float buffers."""
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def states(make: Any, count: int) -> list[dict[str, torch.Tensor]]:
    """Different weights for copies of one model."""
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        model = make()
        made.append({
            name: value + 0.1 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        })  # fmt: skip
    return made


def test_any_module_is_merged_in_place() -> None:
    model = network()
    base, first, second = states(network, 3)
    backend = mf.LocalBackend(model, base, {"first": first, "second": second})
    expected = {
        name: base[name] + 0.5 * (first[name] - base[name]) + 0.25 * (second[name] - base[name])
        for name in base if base[name].is_floating_point()
    }  # fmt: skip
    applied = backend.apply(AVERAGE)
    with applied as merged:
        assert merged is model and not model.training
        for name, value in expected.items():
            torch.testing.assert_close(model.state_dict()[name], value)
        distance = sum(float((expected[name] - base[name]).abs().sum()) for name in expected)
        assert applied.delta_l1 == pytest.approx(distance, rel=1e-5)
        assert applied.seconds >= 0


def test_one_candidate_leaves_nothing_behind_for_the_next() -> None:
    model = network()
    base, first, second = states(network, 3)
    backend = LocalBackend(model, base, {"first": first, "second": second})
    with backend.apply(AVERAGE):
        expected = copy.deepcopy(model.state_dict())
    with backend.apply(TIES):
        assert not torch.equal(model.state_dict()["0.weight"], expected["0.weight"])
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[index]
    with backend.apply(AVERAGE):
        for name, value in expected.items():
            assert torch.equal(model.state_dict()[name], value), name


def test_the_models_own_state_dict_may_be_the_base() -> None:
    model = network()
    start = copy.deepcopy(model.state_dict())
    _, first, second = states(network, 3)
    backend = LocalBackend(model, model.state_dict(), {"first": first, "second": second})
    nothing = AVERAGE.with_params(**{"weight[first]": 0.0, "weight[second]": 0.0})
    for recipe in (AVERAGE, nothing):
        with backend.apply(recipe):
            pass
    for name, value in start.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_running_out_of_an_accelerators_memory_is_told_apart_from_other_faults() -> None:
    assert out_of_memory(torch.OutOfMemoryError("tried to allocate 20 GiB"))
    assert not out_of_memory(ZeroDivisionError("division by zero"))


def test_wrong_use_is_told_apart_from_a_bad_candidate() -> None:
    base, first, second = states(network, 3)
    backend = LocalBackend(network(), base, {"first": first, "second": second})
    other = Recipe("task_arithmetic", {"third": "third"}, {"weight[third]": 1.0}, "base")
    with pytest.raises(UserError, match="'third'"), backend.apply(other):
        pass
    with backend.apply(AVERAGE), pytest.raises(RuntimeError, match="applied already"):
        backend.apply(TIES).__enter__()
    with backend.apply(AVERAGE):  # the failed attempts left the backend usable
        pass
    with pytest.raises(UserError, match=r"0\.bias"):
        LocalBackend(network(), {"0.weight": base["0.weight"]}, {"first": {"0.weight": first["0.weight"]}})
    larger = torch.nn.Sequential(torch.nn.Linear(4, 8))
    with pytest.raises(UserError, match=r"no tensor '1\.weight'"):
        LocalBackend(larger, base, {"first": first})


# -- Hugging Face folders


@pytest.fixture
def checkpoints(tiny_llama: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """base, first and second: three folders of one architecture with tied embeddings."""
    for number, name in enumerate(("base", *NAMES)):
        model = copy.deepcopy(tiny_llama)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def backend_of(folder: Path) -> LocalBackend:
    return LocalBackend.from_checkpoints(folder / "base", {name: folder / name for name in NAMES}, device="cpu")


@pytest.mark.parametrize("recipe", [AVERAGE, TIES], ids=["task_arithmetic", "ties"])
def test_merged_in_place_equals_loaded_from_merged_weights(checkpoints: Path, tokenizer: Any, recipe: Recipe) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from mergefront.adapters.local.model import HuggingFaceModel

    backend = backend_of(checkpoints)
    target = checkpoints / "merged"
    target.mkdir()
    save_file(dict(backend.engine.iterate(recipe)), target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_bytes((checkpoints / "base" / "config.json").read_bytes())
    reloaded = HuggingFaceModel(AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32), tokenizer)
    scoring = [ScoringRequest("Sort 3 1 2:", " 1 2 3"), ScoringRequest("", "two plus two")]
    generating = [GenerationRequest("Write 425", 8), GenerationRequest("A", 8)]
    with backend.apply(recipe) as model:
        assert isinstance(model, LanguageModel)
        embedding, head = backend.model.get_input_embeddings(), backend.model.get_output_embeddings()
        assert embedding.weight.data_ptr() == head.weight.data_ptr()  # still tied
        for ours, theirs in zip(model.loglikelihood(scoring), reloaded.loglikelihood(scoring), strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        assert model.generate(generating) == reloaded.generate(generating)


def test_a_lora_folder_is_an_expert(checkpoints: Path, tokenizer: Any) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from mergefront.adapters.local.model import HuggingFaceModel

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(checkpoints / "base", dtype=torch.float32)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(base(), settings).save_pretrained(checkpoints / "lora")
    reference = HuggingFaceModel(PeftModel.from_pretrained(base(), checkpoints / "lora").merge_and_unload(), tokenizer)
    backend = LocalBackend.from_checkpoints(checkpoints / "base", {"lora": checkpoints / "lora"}, device="cpu")
    requests = [ScoringRequest("Sort 3 1 2:", " 1 2 3")]
    recipe = Recipe("task_arithmetic", {"lora": "lora"}, {"weight[lora]": 1.0}, "base")
    with backend.apply(recipe) as model:
        (ours,), (theirs,) = model.loglikelihood(requests), reference.loglikelihood(requests)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    with backend.apply(recipe.with_params(**{"weight[lora]": 0.0})) as model:
        (without,) = model.loglikelihood(requests)
    assert abs(without.logprob - theirs.logprob) > 1e-2


def test_what_memory_bounds_is_streamed_and_answers_alike(checkpoints: Path) -> None:
    """The live model counts first: a bound of its own size leaves nothing for what merges are made from."""
    held, folders = backend_of(checkpoints), {name: checkpoints / name for name in NAMES}
    live = sum(parameter.nbytes for parameter in held.model.parameters())
    bounded = LocalBackend.from_checkpoints(checkpoints / "base", folders, device="cpu", max_memory=live)
    assert held.engine.placement.streamed == 0
    assert bounded.engine.placement.streamed >= 3 * live // 2  # base and two experts, whatever they are stored in
    requests = [ScoringRequest("Sort 3 1 2:", " 1 2 3")]
    for recipe in (TIES, AVERAGE):
        with held.apply(recipe) as one, bounded.apply(recipe) as other:
            assert one.loglikelihood(requests) == other.loglikelihood(requests)


def test_a_merge_that_float16_cannot_hold_is_a_failed_evaluation(checkpoints: Path) -> None:
    """Infinite weights answer something, and their score would look like any other."""
    backend = LocalBackend.from_checkpoints(
        checkpoints / "base", {"first": checkpoints / "first"}, device="cpu", dtype="float16"
    )
    recipe = Recipe("task_arithmetic", {"first": "first"}, {"weight[first]": 1e8}, "base")
    with pytest.raises(EvaluationError, match="exceeds float16"), backend.apply(recipe):
        pass
    with backend.apply(recipe.with_params(**{"weight[first]": 0.5})):
        assert all(torch.equal(p, p.half().float()) for p in backend.model.parameters())


def test_folders_that_are_no_models_and_unknown_devices_are_user_errors(checkpoints: Path) -> None:
    (checkpoints / "empty").mkdir()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        LocalBackend.from_checkpoints(checkpoints / "empty", {"first": checkpoints / "first"})
    with pytest.raises(UserError, match="dtype 'float8'"):
        LocalBackend.from_checkpoints(checkpoints / "base", {"first": checkpoints / "first"}, dtype="float8")
    with pytest.raises(UserError, match="device 'gpu'"):
        LocalBackend.from_checkpoints(checkpoints / "base", {"first": checkpoints / "first"}, device="gpu")
    with pytest.raises(
        UserError, match=r"device 'cuda:99' cannot be used on this machine \(.+\); write one of auto, cpu"
    ):
        LocalBackend.from_checkpoints(checkpoints / "base", {"first": checkpoints / "first"}, device="cuda:99")
    with pytest.raises(UserError, match="no such file"):
        LocalBackend.from_checkpoints(checkpoints / "base", {"first": checkpoints / "absent"})
