"""A model larger than its device lies in several places, and is merged and asked there as if it lay in one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.local.backend import LocalBackend, planned_pool
from mergefront.adapters.local.devices.spread import device_of, place_of
from mergefront.adapters.local.devices.usable import Devices, usable_devices
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

SCORED = [ScoringRequest(f"Sort {number} 7 2:", f" 2 {number} 7") for number in range(3, 6)]
WRITTEN = [GenerationRequest(f"Write {number}:", 4) for number in range(420, 424)]


@pytest.fixture
def folder(tiny_llama: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """A base and an expert."""
    for number, name in enumerate(("base", "a")):
        model = copy.deepcopy(tiny_llama)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * number * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def recipe(method: str, weight: float) -> Recipe:
    return Recipe(method, {"a": "a"}, {"weight[a]": weight}, "base")


def backend(folder: Path, **options: Any) -> LocalBackend:
    return LocalBackend.from_checkpoints(folder / "base", {"a": folder / "a"}, device="cpu", **options)


def on_disk(model: torch.nn.Module) -> set[str]:
    return {name for name, one in model.named_parameters() if one.untyped_storage().filename is not None}


@pytest.mark.parametrize("room", ["nothing", "half"])
def test_layers_on_disk_are_merged_there_and_answer_alike(folder: Path, room: str) -> None:
    plain = backend(folder)
    weights = sum(parameter.nbytes for parameter in plain.model.parameters())
    spread = backend(folder, device_map="auto", max_memory={"cpu": 0 if room == "nothing" else weights})
    held = {name for name, _ in spread.model.named_parameters()} - on_disk(spread.model)
    assert on_disk(spread.model) and bool(held) == (room == "half")
    for one in (recipe("ties", 0.7), recipe("linear", 0.4), recipe("ties", 0.2)):
        with plain.apply(one) as whole, spread.apply(one) as parts:
            for name, tensor in plain.model.state_dict().items():
                assert torch.equal(tensor, spread.model.state_dict()[name]), name
            assert parts.loglikelihood(SCORED) == whole.loglikelihood(SCORED)
            assert parts.generate(WRITTEN) == whole.generate(WRITTEN)
    embedding, head = spread.model.get_input_embeddings(), spread.model.get_output_embeddings()
    assert (embedding.weight is head.weight) == spread.model.config.tie_word_embeddings


def test_a_check_knows_beforehand_what_lies_where(folder: Path) -> None:
    plain = backend(folder)
    weights = sum(parameter.nbytes for parameter in plain.model.parameters())
    told = {"device": "cpu", "device_map": "auto", "max_memory": {"cpu": weights}}
    _, live = planned_pool(folder / "base", {"a": folder / "a"}, **told)
    spread = backend(folder, device_map="auto", max_memory={"cpu": weights})
    parameters = dict(spread.model.named_parameters())
    assert live["disk"] == sum(parameters[name].nbytes for name in on_disk(spread.model))
    assert live["cpu"] + live["disk"] == weights


def test_layers_are_found_by_the_longest_name_that_the_map_has() -> None:
    layers = {
        "model.embed_tokens": 0,
        "model.layers.1": 1,
        "model.layers.10": "cpu",
        "model.norm": "disk",
        "lm_head": 0,
    }
    names = ["model.layers.1.mlp.up_proj.weight", "model.layers.10.mlp.up_proj.weight", "model.norm.weight"]
    assert [place_of(name, layers) for name in names] == [1, "cpu", "disk"]
    assert place_of("anything", {"": 1}) == 1
    cards = Devices((torch.device("cuda:0"), torch.device("cuda:1")), True)
    assert [str(device_of(place, cards)) for place in (1, "cpu", "disk")] == ["cuda:1", "cpu", "cpu"]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:0,cuda:0", "names one device twice"),
        ("cpu,cuda:0", "each is an accelerator's number, as in cuda:0,cuda:1"),
        ("cuda:98,cuda:99", "'cuda:98' cannot be used on this machine"),
    ],
)
def test_devices_that_cannot_be_are_named(device: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        usable_devices(device)


def test_new_rows_of_embeddings_in_several_places_are_refused_in_a_line(
    folder: Path, tiny_llama: Any, tokenizer: Any
) -> None:
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<one more>"])
    tiny_llama.resize_token_embeddings(len(more) + 1, mean_resizing=False)
    tiny_llama.save_pretrained(folder / "a")
    more.save_pretrained(folder / "a")
    with pytest.raises(UserError, match="embeddings of other rows lie on one device; leave device_map out"):
        backend(folder, device_map="auto", tokenizer_source="union")


def test_weights_that_wait_for_an_accelerator_are_merged_where_they_wait(
    folder: Path, tiny_llama: Any, tokenizer: Any
) -> None:
    """As accelerate runs what a card cannot hold: the model's own tensors are empty, and copies are made for a pass."""
    from accelerate import cpu_offload

    plain = backend(folder)
    model = copy.deepcopy(tiny_llama)
    block = model.model.layers[1]
    waiting = {name: tensor.detach().clone() for name, tensor in block.state_dict().items()}
    cpu_offload(block, execution_device=torch.device("cpu"), state_dict=waiting)
    named = {f"model.layers.1.{name}": tensor for name, tensor in waiting.items()}
    assert all(parameter.device.type == "meta" for parameter in block.parameters())
    offloaded = LocalBackend(model, folder / "base", {"a": folder / "a"}, tokenizer=tokenizer, waiting=named)
    for one in (recipe("ties", 0.7), recipe("task_arithmetic", 0.4)):
        with plain.apply(one) as whole, offloaded.apply(one) as parts:
            assert parts.loglikelihood(SCORED) == whole.loglikelihood(SCORED)
            assert parts.generate(WRITTEN) == whole.generate(WRITTEN)
