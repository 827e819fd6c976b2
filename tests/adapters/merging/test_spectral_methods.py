"""Merges by spectra: the formulas of the papers, computed another way, on every kind of tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mergefront.adapters.checkpoints.names import matrices_of
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.whole_models.spectral import leading_singular_vectors
from mergefront.optimizer.recipes.recipe import Recipe

METHODS = ("isotropic", "isotropic_cts", "subspace_boosting")
SHAPES = {
    "model.embed_tokens.weight": (10, 6),
    "model.layers.0.self_attn.q_proj.weight": (8, 6),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.mlp.experts.down_proj": (3, 6, 7),
    "model.layers.0.mlp.experts.down_proj_bias": (3, 7),
    "model.layers.0.conv1d.weight": (6, 1, 4),
    "lm_head.weight": (10, 6),
}
MATRIX = "model.layers.0.self_attn.q_proj.weight"
OTHER = "model.layers.0.self_attn.v_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.down_proj"


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def merged(method: str, experts: dict[str, dict[str, torch.Tensor]], **params: float) -> dict[str, torch.Tensor]:
    recipe = Recipe(method, {name: name for name in experts}, params, "base")
    return dict(MergeEngine(model(0), experts).iterate(recipe))


def polar(matrix: np.ndarray) -> np.ndarray:
    """U V^T of a matrix of full rank from the eigenvectors of its Gram matrix: X (X^T X)^(-1/2)."""
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    return matrix @ vectors @ np.diag(values**-0.5) @ vectors.T


def expected_isotropic(deltas: list[np.ndarray]) -> np.ndarray:
    total = sum(deltas)
    return np.linalg.norm(total, "nuc") / min(total.shape) * polar(total)


def expected_isotropic_cts(deltas: list[np.ndarray]) -> np.ndarray:
    """Eigenvectors of Gram matrices instead of an SVD, and of 6 directions for two experts 4 common and 1 each."""
    total, kept = sum(deltas), 4

    def leading(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, right = np.linalg.eigh(matrix.T @ matrix)
        order = np.argsort(-values)[:count]
        singular = np.sqrt(values[order])
        return matrix @ right[:, order] / singular, singular, right[:, order].T

    parts = [leading(total, kept)]
    outside = np.eye(total.shape[0]) - parts[0][0] @ parts[0][0].T
    parts += [leading(outside @ delta, 1) for delta in deltas]
    left, right = np.concatenate([part[0] for part in parts], axis=1), np.concatenate([part[2] for part in parts])
    return np.concatenate([part[1] for part in parts]).mean() * polar(left) @ polar(right)


def expected_boosting(deltas: list[np.ndarray], beta: float) -> np.ndarray:
    """What the sum lacks of the least singular value is added direction by direction."""
    total = sum(deltas)
    left, values, right = np.linalg.svd(total)
    so_far, least = 0.0, values[-1]
    for value in values:
        so_far += value
        if so_far >= beta * values.sum():
            least = value
            break
    return total + sum(
        max(least - value, 0) * np.outer(left[:, index], right[index]) for index, value in enumerate(values)
    )


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


@pytest.mark.parametrize("method", METHODS)
def test_matrices_are_merged_as_the_papers_say_and_experts_of_a_mixture_one_by_one(method: str) -> None:
    base, experts = model(0), {"a": model(1), "b": model(2)}
    made = merged(method, experts, **{"weight[b]": 0.5, "lambda": 0.7, **({"beta": 0.5} if "boost" in method else {})})

    def expected(name: str, index: int | None = None) -> np.ndarray:
        whole = [weight * numbers(experts[which][name] - base[name]) for which, weight in (("a", 1.0), ("b", 0.5))]
        deltas = whole if index is None else [delta[index] for delta in whole]
        if method == "isotropic":
            return expected_isotropic(deltas)
        return expected_isotropic_cts(deltas) if method == "isotropic_cts" else expected_boosting(deltas, 0.5)

    assert np.allclose(numbers(made[MATRIX] - base[MATRIX]), 0.7 * expected(MATRIX), atol=1e-4)
    for index in range(3):
        difference = numbers(made[EXPERTS] - base[EXPERTS])[index]
        assert np.allclose(difference, 0.7 * expected(EXPERTS, index), atol=1e-4), index


def descended(deltas: list[torch.Tensor], rank: int, steps: int) -> torch.Tensor:
    """OptMerge as its paper runs it: torch's SGD on the loss, every matrix cut by an SVD of its own."""
    deltas = [delta.double() for delta in deltas]
    found = (sum(deltas, torch.zeros(())) / len(deltas)).clone().requires_grad_()
    optimizer = torch.optim.SGD([found], lr=1e-4, momentum=0.9)
    for _ in range(steps):
        loss = torch.zeros((), dtype=torch.float64)
        for delta in deltas:
            left, values, right = (part[..., :rank] for part in torch.svd(delta))
            loss = loss + ((found - left * values @ right.T) @ (right * values)).square().sum() / delta.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found.detach()


@pytest.mark.long
@pytest.mark.parametrize(("rank", "steps", "expected_rank"), [(0, 300, 2), (4, 300, 4), (64, 900, 6)])
def test_optmerge_is_where_gradient_descent_from_the_mean_gets(rank: int, steps: int, expected_rank: int) -> None:
    """Without a rank it is min(m, n) / k: 6 / 3; the descent has not ended after its steps, so that they count."""
    base, experts = model(0), {"a": model(1), "b": model(2), "c": model(3)}
    made = merged("optmerge", experts, rank=rank, steps=steps, **{"lambda": 0.7})
    for name, index in [(MATRIX, ...), *((EXPERTS, index) for index in range(3))]:
        deltas = [(expert[name] - base[name])[index] for expert in experts.values()]
        wanted, mean = descended(deltas, expected_rank, steps), sum(deltas) / 3
        assert torch.allclose((made[name] - base[name])[index].double(), 0.7 * wanted, atol=1e-5)
        assert float((wanted - mean).norm()) > 0.02 * float(mean.norm())
    mean = sum(expert["lm_head.weight"] - base["lm_head.weight"] for expert in experts.values()) / 3
    assert torch.allclose(made["lm_head.weight"] - base["lm_head.weight"], 0.7 * mean, atol=1e-5)


def expected_tsv_m(deltas: list[np.ndarray], kept: list[int], shares: list[float]) -> np.ndarray:
    """Cut by NumPy's decomposition, put together with the polar factors of what stands side by side."""
    parts = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = np.concatenate([u[:, :k] for (u, _, _), k in zip(parts, kept, strict=True)], axis=1)
    right = np.concatenate([v[:k] for (_, _, v), k in zip(parts, kept, strict=True)])
    values = np.concatenate([w * s[:k] for (_, s, _), k, w in zip(parts, kept, shares, strict=True)])
    return polar(left) @ np.diag(values) @ polar(right)


@pytest.mark.parametrize(
    ("outlier_aware", "adaptive_rank"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_tsv_m_weighs_experts_by_outliers_and_cuts_sparse_ones_where_it_is_told_to(
    outlier_aware: bool, adaptive_rank: bool
) -> None:
    """One engine for all: what is prepared for one setting is not taken for another."""
    base, dense = model(0), model(1)
    sparse = {name: tensor.clone() for name, tensor in base.items()}
    sparse[MATRIX][2, 3] += 5.0
    sparse[MATRIX][4, 1] += 0.5
    sparse[MATRIX][5, 5] += 0.3
    engine = MergeEngine(base, {"dense": dense, "sparse": sparse})
    params = {"outlier_aware": outlier_aware, "adaptive_rank": adaptive_rank}
    for others in ({}, params):
        recipe = Recipe("tsv_m", {"dense": "d", "sparse": "s"}, {**others, "weight[dense]": 0.5}, "base")
        made = dict(engine.iterate(recipe))[MATRIX]
    deltas = [numbers(expert[MATRIX] - base[MATRIX]) for expert in (dense, sparse)]
    sizes = [np.abs(delta) for delta in deltas]
    outliers = [size[size > size.mean() + 3 * size.std()].sum() for size in sizes]
    assert outliers == [pytest.approx(0.0), pytest.approx(5.0)]
    shares = [0.0, 2.0] if outlier_aware else [0.5, 1.0]
    # 3 of 6 directions each; pi / 2 (5.8 / 48)^2 / (25.3 / 48) is 0.04 of a normal matrix, so that 1 is left.
    expected = expected_tsv_m(deltas, [3, 1] if adaptive_rank else [3, 3], shares)
    assert np.allclose(numbers(made - base[MATRIX]), expected, atol=1e-4)


@pytest.mark.parametrize(("changed", "kept"), [(48, 12), (24, 6), (1, 1), (0, 0)])
def test_tsv_m_keeps_directions_by_how_many_entries_an_expert_changed(changed: int, kept: int) -> None:
    """A method that cuts a dense expert, or drops a sparse one, is not the one that was asked for."""
    entries = torch.randn(48 * 48, generator=torch.Generator().manual_seed(3)).view(48, 48)
    entries[changed:] = 0.0
    even = torch.ones(48, 48).triu() - torch.ones(48, 48).tril()
    deltas = [entries, torch.randn(48, 48, generator=torch.Generator().manual_seed(4)), even, entries.clone()]
    found = leading_singular_vectors(deltas, torch.Size((48, 48)), outlier_aware=False, adaptive_rank=True)
    # Entries of one size are denser than normal ones, by pi / 2, and get no more than their quarter.
    counts = [len(values) for values in found.values]
    assert abs(counts[0] - kept) <= kept // 6 and counts[1:3] == [12, 12] and counts[3] == counts[0]


def test_directions_that_no_expert_trained_count_in_tsv_m_by_their_expectation() -> None:
    """Any decomposition gives other ones, so that with those at hand two machines would score two merges."""
    draw, keep = np.random.default_rng(0), 24
    deltas = [draw.normal(size=(60, rank)) @ draw.normal(size=(rank, 48)) for rank in (2, 3)]
    deltas[1] += 0.5 * deltas[0]
    parts = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]

    def decorrelated(own: list[np.ndarray]) -> np.ndarray:
        """U by the inverse root of U U^T, the mean over ways to draw directions beside; what meets no other is kept."""
        second = np.zeros((len(own[0]), len(own[0])))
        for vectors in own:
            second += vectors @ vectors.T
            for _ in range(200):
                other = draw.normal(size=(len(vectors), keep - vectors.shape[1]))
                beside = np.linalg.qr(other - vectors @ vectors.T @ other)[0]
                second += beside @ beside.T / 200
        values, directions = np.linalg.eigh(second)
        shares = [(keep - one.shape[1]) / (len(one) - one.shape[1]) for one in own]
        alone = [one * (sum(shares) + 1 - share) ** 0.5 for one, share in zip(own, shares, strict=True)]
        return directions @ np.diag(values**-0.5) @ directions.T @ np.concatenate(alone, axis=1)

    left = decorrelated([u[:, :rank] for (u, _, _), rank in zip(parts, (2, 5), strict=True)])
    right = decorrelated([v[:rank].T for (_, _, v), rank in zip(parts, (2, 5), strict=True)])
    values = np.concatenate([s[:rank] for (_, s, _), rank in zip(parts, (2, 5), strict=True)])
    expected = left @ np.diag(values) @ right.T
    experts = {f"e{i}": {MATRIX: torch.from_numpy(delta).float()} for i, delta in enumerate(deltas)}
    engine = MergeEngine({MATRIX: torch.zeros(60, 48)}, experts)
    made = numbers(dict(engine.iterate(Recipe("tsv_m", dict.fromkeys(experts, "m"), {}, "base")))[MATRIX])
    assert np.linalg.norm(made - expected) < 0.03 * np.linalg.norm(expected)


def test_optmerge_prepares_a_pool_once_and_each_rank_is_its_own_merge() -> None:
    experts = {"a": model(1), "b": model(2)}
    engine = MergeEngine(model(0), experts)
    recipes = [Recipe("optmerge", {"a": "a", "b": "b"}, {"rank": rank}, "base") for rank in (1.0, 4.0, 1.0)]
    first, second, again = (dict(engine.iterate(recipe)) for recipe in recipes)
    fresh = dict(MergeEngine(model(0), experts).iterate(recipes[1]))
    assert not torch.allclose(first[MATRIX], second[MATRIX], atol=1e-4)
    assert all(torch.equal(first[name], again[name]) and torch.equal(second[name], fresh[name]) for name in SHAPES)


@pytest.mark.parametrize("method", ["tsv_m", "wudi", "widen"])
def test_experts_of_a_mixture_are_merged_as_matrices_of_their_own(method: str) -> None:
    """Not as vectors, whose mean or whose flattened columns nobody asked for."""
    experts = {"a": model(1), "b": model(2)}
    params = {"above_average_ratio": 1.5} if method == "widen" else {}
    recipe = Recipe(method, {"a": "a", "b": "b"}, params, "base")
    stacked = dict(MergeEngine(model(0), experts).iterate(recipe))[EXPERTS]
    for index in range(3):
        alone = [{MATRIX: one[EXPERTS][index].contiguous()} for one in (model(0), *experts.values())]
        single = dict(MergeEngine(alone[0], {"a": alone[1], "b": alone[2]}).iterate(recipe))[MATRIX]
        torch.testing.assert_close(stacked[index], single, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in SHAPES if name not in (MATRIX, EXPERTS)])
def test_what_multiplies_no_activations_takes_the_scaled_mean(method: str, name: str) -> None:
    base, experts = model(0), {"a": model(1), "b": model(2)}
    made = merged(method, experts, **{"lambda": 0.5})[name]
    mean = (experts["a"][name] + experts["b"][name]) / 2 - base[name]
    assert torch.allclose(made, base[name] + 0.5 * mean, atol=1e-6)


@pytest.mark.parametrize("method", [*METHODS, "wudi"])
def test_low_rank_experts_are_merged_within_their_own_directions(method: str) -> None:
    """Vectors of zero singular values are arbitrary: raising them would add noise that no expert trained."""
    base, generator = model(0)[MATRIX], torch.Generator().manual_seed(5)
    left, right = torch.randn(8, 2, generator=generator), torch.randn(2, 6, generator=generator)
    deltas = [left[:, :1] @ right[:1], 0.01 * left[:, 1:] @ right[1:]]
    engine = MergeEngine({MATRIX: base}, {f"e{i}": {MATRIX: base + delta} for i, delta in enumerate(deltas)})
    made = dict(engine.iterate(Recipe(method, {"e0": "e0", "e1": "e1"}, {}, "base")))[MATRIX] - base
    outside_left = torch.eye(8) - left @ torch.linalg.pinv(left)
    outside_right = torch.eye(6) - torch.linalg.pinv(right) @ right
    assert float(made.norm()) > 0.1
    assert float((outside_left @ made).norm()) < 1e-3 and float((made @ outside_right).norm()) < 1e-3


def lora_experts(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A base of two matrices, and LoRAs a and b of rank 5 in ``folder``, of which b adapts the first only."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(40, 30, generator=generator) for name in (MATRIX, OTHER)}
    deltas = {}
    for seed, name in enumerate(("a", "b")):
        generator.manual_seed(seed)
        factors = {"A": torch.randn(5, 30, generator=generator), "B": torch.randn(40, 5, generator=generator)}
        deltas[name] = 2 * factors["B"] @ factors["A"]
        modules = [target.removesuffix(".weight") for target in (MATRIX, OTHER)[: 2 if name == "a" else 1]]
        (folder / name).mkdir()
        save_file(
            {
                f"base_model.model.{module}.lora_{side}.weight": factor.clone()
                for module in modules
                for side, factor in factors.items()
            },
            folder / name / "adapter_model.safetensors",
        )
        config = {"peft_type": "LORA", "r": 5, "lora_alpha": 10, "target_modules": [m[-6:] for m in modules]}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return base, deltas


@pytest.mark.parametrize("method", [*METHODS, "optmerge", "tsv_m", "wudi"])
def test_loras_are_merged_as_the_models_that_they_make(tmp_path: Path, method: str) -> None:
    """By their factors, without their products; the rank of their sum is what its spectrum is over."""
    base, deltas = lora_experts(tmp_path)
    weights = {} if method in ("optmerge", "wudi") else {"weight[a]": 0.5}
    recipe = Recipe(method, {"a": "a", "b": "b"}, {**weights, "lambda": 0.8}, "base")
    made = dict(MergeEngine(base, {name: tmp_path / name for name in deltas}).iterate(recipe))
    whole = {name: {MATRIX: base[MATRIX] + delta, OTHER: base[OTHER]} for name, delta in deltas.items()}
    whole["a"][OTHER] = base[OTHER] + deltas["a"]
    expected = dict(MergeEngine(base, whole).iterate(recipe))
    for name in (MATRIX, OTHER):
        assert torch.allclose(made[name], expected[name], atol=1e-3), name
    values = torch.linalg.svdvals((made[MATRIX] - base[MATRIX]).double())
    assert float(values[9]) > 0.1 and float(values[10]) < 1e-4
    if method == "isotropic":
        wanted = torch.linalg.svdvals(0.5 * deltas["a"] + deltas["b"])[:10].mean()
        assert torch.allclose(values[:10].float(), 0.8 * wanted.expand(10), rtol=1e-4)


def test_boosting_everything_is_isotropic_at_the_largest_value_and_nothing_is_the_sum() -> None:
    base, experts = model(0), {"a": model(1), "b": model(2)}
    total = experts["a"][MATRIX] + experts["b"][MATRIX] - 2 * base[MATRIX]
    assert torch.allclose(merged("subspace_boosting", experts, beta=1.0)[MATRIX] - base[MATRIX], total, atol=1e-5)
    largest = torch.linalg.svdvals(merged("subspace_boosting", experts, beta=0.0)[MATRIX] - base[MATRIX])
    assert torch.allclose(largest, torch.linalg.matrix_norm(total, 2).expand(6), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_an_expert_of_weight_zero_is_none(method: str) -> None:
    experts = {"a": model(1), "b": model(2), "c": model(3)}
    with_it = merged(method, experts, **{"weight[c]": 0.0})
    assert torch.allclose(with_it[MATRIX], merged(method, {"a": model(1), "b": model(2)})[MATRIX], atol=1e-5)
    nothing = merged(method, experts, weight=0.0)
    assert all(torch.equal(tensor, model(0)[name]) for name, tensor in nothing.items())


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("transformer.h.0.attn.c_attn.weight", (4, 12), 1),
        ("transformer.wpe.weight", (16, 4), 0),
        ("gpt_neox.embed_in.weight", (16, 4), 0),
        ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 4), 0),
        ("model.layers.0.block_sparse_moe.experts.7.w1.weight", (8, 4), 1),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (5, 8, 4), 5),
        ("model.layers.0.mlp.gate.weight", (5, 4), 1),
        ("backbone.layers.0.mixer.A_log", (8, 4), 0),
        ("vision_model.embeddings.position_embedding.weight", (9, 4), 0),
    ],
)
def test_which_tensors_are_matrices(name: str, shape: tuple[int, ...], count: int) -> None:
    assert matrices_of(name, shape) == count
