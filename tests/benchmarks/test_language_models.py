"""Read wrongly, or remembered wrongly, the language-model problems would rank samplers on merges that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.search.language_models.measured import Measured
from benchmarks.search.language_models.problems import SKILL_MERGES
from benchmarks.search.language_models.skills import SEARCH, SKILLS, items, search_items
from benchmarks.search.language_models.train_experts import KINDS, Base, Kind, Plan, train


@pytest.mark.parametrize("kind", ["Llama", "Gemma3"])
def test_upper_layers_read_what_whole_sequences_read(kind: str) -> None:
    import transformers

    from benchmarks.search.answer_margins import Reference, answer_margins
    from benchmarks.search.language_models.upper_layers import UpperLayers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {
            "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
        }  # fmt: skip
        if kind == "Gemma3":  # the layer that is changed sees everything, those around it a window
            layers = ["sliding_attention", "sliding_attention", "full_attention"]
            settings = transformers.Gemma3TextConfig(**sizes, head_dim=8, layer_types=layers)
        else:
            settings = transformers.LlamaConfig(**sizes)
        settings._attn_implementation = "eager"
        model = getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    skills = [
        [Reference((3, 7, 1, 9), (4, 5)), Reference((3, 7, 2), (6,)), Reference((3, 7, 1, 1, 8), (2, 2, 30))],
        [Reference((12, 4), (9,)), Reference((12, 4, 6), (1, 3))],
    ]
    upper = UpperLayers(model, 1, skills, [0, 11])
    with torch.no_grad():
        # What changes later lies in the upper layers alone.
        model.model.layers[2].mlp.down_proj.weight.mul_(1.7)
    margins, losses = upper.read()
    for own, asked, loss in zip(margins, skills, losses, strict=True):
        np.testing.assert_allclose(own, answer_margins(model, asked, [0, 11]), rtol=1e-4, atol=1e-5)
        one = asked[0]
        with torch.no_grad():
            likely = model(torch.tensor([one.prompt + one.answer])).logits[0].log_softmax(-1)
        steps = [likely[len(one.prompt) - 1 + i, token] for i, token in enumerate(one.answer)]
        assert loss[0] == pytest.approx(-float(np.mean(steps)), rel=1e-4)


def test_a_merge_is_measured_once_and_read_the_same_ever_after(tmp_path: Path) -> None:
    asked: list[str] = []

    def measure() -> tuple[list[float], list[float]]:
        asked.append("asked")
        return [0.123456789, -3.0], [1.23456789, 0.1]

    first = Measured("ab", tmp_path).read("one", measure)
    again = Measured("ab", tmp_path).read("one", measure)
    assert asked == ["asked"]
    assert first.margins.tolist() == again.margins.tolist() == [np.float16(0.123456789), -3.0]
    assert first.losses.tolist() == again.losses.tolist()
    Measured("ac", tmp_path).read("one", measure)
    assert len(asked) == 2


def test_search_items_are_the_generators_and_no_split_shares_one() -> None:
    for skill in SKILLS:
        made = items(skill)
        assert made["search"] == search_items(skill)
        prompts = [one["prompt"] for split in made.values() for one in split]
        assert len(set(prompts)) == len(prompts) > SEARCH


@pytest.mark.parametrize("name", [name for name, merges in SKILL_MERGES.items() if merges.grid])
def test_a_grid_scores_its_experts_best_at_their_own_skills(name: str, tmp_path: Path) -> None:
    problem = SKILL_MERGES[name].made(name, tmp_path)
    own = {anchor.name: problem.evaluate(anchor.recipe, 0, 0).true for anchor in problem.anchors}
    for place, skill in enumerate(SKILL_MERGES[name].skills):
        expert, base = own[f"expert {skill}"][place], own["base"][place]
        assert expert < base if SKILL_MERGES[name].measure == "loss" else expert > base


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_experts_differ_from_their_base_in_the_layers_that_are_read_alone(
    kind: Kind, tmp_path: Path, tokenizer: Any, random_model: Callable[..., Any]
) -> None:
    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.optimizer.recipes.space import MergeSpace

    base, skills = tmp_path / "base", ("camel", "clock")
    random_model(num_hidden_layers=3, max_position_embeddings=512).to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    plan = Plan(skills, together=2, apart=1, base=Base(base, "tiny", 1, torch.float32), kind=kind)
    with torch.random.fork_rng(devices=[]):
        train(plan, tmp_path)
    experts = {skill: tmp_path / skill for skill in skills}
    backend = LocalBackend.from_checkpoints(base, experts, device="cpu", dtype="float32")
    space = MergeSpace(list(skills), base_model="base", method="task_arithmetic", parameters={"weight": [0, 1]})
    merged = []
    for weights in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        recipe = space.recipe({f"weight[{skill}]": weight for skill, weight in zip(skills, weights, strict=True)})
        with backend.apply(recipe) as model:
            merged.append({name: tensor.clone() for name, tensor in model.model.state_dict().items()})
    of_base, *of_experts = merged
    for tensors in of_experts:
        changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, of_base[name])}
        assert {int(name.split("layers.")[1].split(".")[0]) for name in changed} == {1, 2}
    assert not torch.equal(*(tensors["model.layers.2.mlp.down_proj.weight"] for tensors in of_experts))
