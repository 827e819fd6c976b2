"""Experts inside one mixture become fewer: those alike are found, aligned and averaged, and transformers loads them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from small_tokenizer import SENTENCES, make_tokenizer
from tiny_models import TINY_MODELS, move

from mergefront.adapters.local.mixture.groups import Expert, aligned, average, by_outputs, by_usage, in_subspace
from mergefront.cli.application import cli

KINDS = ["mixtral", "qwen3_moe", "deepseek_v3"]


def expert(seed: int, neurons: int = 4, width: int = 5) -> Expert:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((neurons, width), (neurons, width), (width, neurons))
    return Expert(*(torch.randn(shape, generator=generator) for shape in shapes))


def shuffled(one: Expert, order: list[int]) -> Expert:
    return Expert(one.gate[order], one.up[order], one.down[:, order])


def mixture(folder: Path, kind: str) -> Any:
    """A tiny mixture of four experts, of which the third and the fourth are the first and the second once more, their
    neurons in another order, and a router that cannot tell the copies apart; and prompts."""
    model = TINY_MODELS[kind].make()
    move(model, 1)
    for module in model.modules():
        if hasattr(module, "gate_up_proj") and hasattr(module, "down_proj") and module.down_proj.dim() == 3:
            inner = module.down_proj.shape[2]
            order = torch.arange(inner).flip(0)
            with torch.no_grad():
                module.gate_up_proj[2:] = module.gate_up_proj[:2, torch.cat([order, inner + order])]
                module.down_proj[2:] = module.down_proj[:2, :, order]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if ".gate." in name and len(tensor) == 4:
            with torch.no_grad():
                tensor[2:] = tensor[:2]
    model.save_pretrained(folder / "mixture")
    make_tokenizer().save_pretrained(folder / "mixture")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    return model


def merge(folder: Path, out: str, **experts: Any) -> Result:
    return CliRunner().invoke(cli, ["merge", _file(folder, experts), str(folder / out)])


def _file(folder: Path, experts: dict[str, Any]) -> str:
    content = {
        "merge_method": "merge_experts", "base_model": "mixture", "experts": {"prompts": "prompts.jsonl", **experts},
    }  # fmt: skip
    (folder / "merge.yaml").write_text(json.dumps(content))
    return str(folder / "merge.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_experts_become_one_again_and_the_model_loads(tmp_path: Path, kind: str) -> None:
    """Whatever their neurons' order is: two of four are left in every layer, and each is what its copies were."""
    from transformers import AutoModelForCausalLM

    before = mixture(tmp_path, kind).state_dict()
    result = merge(tmp_path, "merged", method="subspace", keep=2)
    assert result.exit_code == 0, result.output
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    after = loaded.state_dict()
    assert before.keys() == after.keys() and loaded.num_parameters() < sum(t.numel() for t in before.values())
    x = torch.randn(3, before["model.embed_tokens.weight"].shape[1], generator=torch.Generator().manual_seed(0))
    for name, tensor in before.items():
        if tensor.shape == after[name].shape:
            assert torch.equal(tensor, after[name]), name
            continue
        assert len(tensor) == 4 and len(after[name]) == 2, name
        if name.endswith("experts.down_proj"):
            up_name = name.replace("down_proj", "gate_up_proj")
            made, first = (_outputs(state, up_name, name, x) for state in (after, before))
            nearest = [min(range(2), key=lambda other: float((one - first[other]).norm())) for one in made]
            assert sorted(nearest) == [0, 1]
            for one, index in zip(made, nearest, strict=True):
                torch.testing.assert_close(one, first[index], rtol=1e-4, atol=1e-5)
                for router in ("gate.weight", "gate.e_score_correction_bias"):
                    row = f"{name.removesuffix('experts.down_proj')}{router}"
                    if row in before:
                        torch.testing.assert_close(after[row][nearest.index(index)], before[row][index])
    text = make_tokenizer()(SENTENCES[0], return_tensors="pt")["input_ids"]
    assert torch.isfinite(loaded(text).logits).all()
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def _outputs(state: dict[str, torch.Tensor], up: str, down: str, x: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for both, back in zip(state[up], state[down], strict=True):
        gate, grown = (x @ both.T).chunk(2, dim=-1)
        found.append((torch.nn.functional.silu(gate) * grown) @ back.T)
    return found


@pytest.mark.parametrize("method", ["frequency", "most_used"])
def test_groups_follow_what_the_models_own_routers_do_on_the_prompts(tmp_path: Path, method: str) -> None:
    """Counts and logits are those that transformers returns. Sums over neurons do not know their order."""
    from transformers import AutoModelForCausalLM

    model = TINY_MODELS["mixtral"].make()
    move(model, 1)
    model.save_pretrained(tmp_path / "mixture")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "mixture")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"text": SENTENCES[0]}) + "\n")
    assert merge(tmp_path, "merged", method=method, keep=2).exit_code == 0
    with torch.inference_mode():
        outputs = model(tokenizer(SENTENCES[0], return_tensors="pt")["input_ids"], output_router_logits=True)
    after, before = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict(), model.state_dict()
    for layer, logits in enumerate(outputs.router_logits):
        counts = torch.bincount(logits.topk(2, dim=-1).indices.flatten(), minlength=4).float()
        cores = counts.argsort(descending=True, stable=True)[:2].tolist()
        groups = {core: [core] for core in cores}
        for other in set(range(4)) - set(cores) if method == "frequency" else ():
            likeness = [float(torch.cosine_similarity(logits[:, other], logits[:, core], dim=0)) for core in cores]
            groups[cores[likeness.index(max(likeness))]].append(other)
        assert method == "most_used" or max(map(len, groups.values())) > 1
        for place, group in enumerate(groups.values()):
            weights = [float(counts[index] / counts[group].sum()) for index in group]
            for part, over in (("experts.gate_up_proj", None), ("experts.down_proj", -1), ("gate.weight", ())):
                name = f"model.layers.{layer}.mlp.{part}"

                def sums(tensor: torch.Tensor, over: Any = over) -> torch.Tensor:
                    if over is None:
                        return torch.stack([half.sum(0) for half in tensor.chunk(2)])
                    return tensor if over == () else tensor.sum(over)

                expected = sum(w * sums(before[name][index]) for w, index in zip(weights, group, strict=True))
                torch.testing.assert_close(sums(after[name][place]), expected, rtol=1e-4, atol=1e-5)
                if len(group) == 1:
                    assert torch.equal(after[name][place], before[name][group[0]])


def test_neurons_are_put_in_the_order_that_agrees_best() -> None:
    core, other = expert(0), expert(1)
    best = max(
        (shuffled(other, list(order)) for order in itertools.permutations(range(4))),
        key=lambda one: sum(float((a * b).sum()) for a, b in zip(one, core, strict=True)),
    )
    assert all(torch.equal(a, b) for a, b in zip(aligned(other, core), best, strict=True))


def test_a_group_is_averaged_by_its_tokens_and_a_subspace_of_all_directions_is_that_average() -> None:
    members, weights = [expert(seed) for seed in range(3)], torch.tensor([0.5, 0.3, 0.2]).double()
    whole = average(members, weights)
    for index in range(3):
        by_hand = 0.5 * members[0][index] + 0.3 * members[1][index] + 0.2 * members[2][index]
        torch.testing.assert_close(whole[index], by_hand)
        torch.testing.assert_close(in_subspace(members, weights, 1.0)[index], by_hand, rtol=1e-4, atol=1e-5)
    cut = in_subspace(members, weights, 0.5)
    vectors = torch.linalg.eigh(sum(one.down @ one.down.T for one in members)).eigenvectors[:, -2:]
    torch.testing.assert_close(cut.down, vectors @ vectors.T @ whole.down, rtol=1e-4, atol=1e-5)


def test_experts_join_the_core_that_the_router_takes_them_for() -> None:
    usage = torch.tensor([5.0, 1.0, 9.0, 0.0])
    logits = torch.tensor([[1.0, 2.0, 0.0, 0.1], [0.0, 0.0, 1.0, 0.9], [1.0, 2.1, 0.0, 0.0]])
    assert by_usage(usage, logits, 2) == ((2, 3), (0, 1))


def test_clusters_of_outputs_are_by_direction_and_none_is_empty() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 0.5], [0.1, 0.3], [-1.0, 0.0]])
    usage = torch.tensor([1.0, 2.0, 7.0, 3.0, 0.0])
    assert {frozenset(group) for group in by_outputs(usage, outputs, 3)} == {
        frozenset({0, 2}), frozenset({1, 3}), frozenset({4})
    }  # fmt: skip
    assert (2, 0) in by_outputs(usage, outputs, 3), "the most used is the core"
    alike = by_outputs(torch.ones(4), torch.ones(4, 2), 3)
    assert len(alike) == 3 and sorted(one for group in alike for one in group) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({"method": "frequency", "keep": 1}, "keep 2 to 4"),
        ({"method": "frequency", "keep": 5}, "keep 2 to 4"),
        ({"method": "frequencies", "keep": 2}, "frequency"),
        ({"method": "frequency", "kept": 2}, "keep"),
        ({"method": "frequency", "keep": 2, "prompts": "none.jsonl"}, "no such file"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, experts: dict[str, Any], message: str) -> None:
    mixture(tmp_path, "mixtral")
    with_allow = CliRunner().invoke(cli, ["merge", _file(tmp_path, experts), str(tmp_path / "out"), "--allow", "x"])
    assert with_allow.exit_code == 2 and "--allow has no meaning" in with_allow.output
    refused = merge(tmp_path, "out", **experts)
    assert refused.exit_code == 2 and message in refused.output, refused.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "message"), [("gpt_oss", "experts of GptOssExperts"), ("llama", "needs a mixture")])
def test_other_kinds_of_model_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    TINY_MODELS[kind].make().save_pretrained(tmp_path / "mixture")
    make_tokenizer().save_pretrained(tmp_path / "mixture")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"text": "Sort"}) + "\n")
    refused = merge(tmp_path, "out", method="frequency", keep=2)
    assert refused.exit_code == 2 and message in refused.output, refused.output
