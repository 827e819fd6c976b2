"""Small networks trained on the spot: a base that knows a little of every task, and one expert a task.

Two families: a residual network over vectors and an attention network over sequences of letters. Both answer with
one of ``CLASSES`` classes, so that one item gives a score (right or wrong) and a margin (log-probability of the right
class less that of the likeliest wrong one). Tensors are named as in a transformer checkpoint
(``model.layers.3.linear.weight``), so that layer groups work as they do on real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from mergefront.optimizer.seeding import derive_seed

Tensors = dict[str, torch.Tensor]

CLASSES = 6
FEATURES = 16
LETTERS = 6
LENGTH = 8
BATCH = 128


@dataclass(frozen=True)
class Family:
    """How a kind of network is made, run and taught; ``draw(task, count, generator)`` gives inputs and labels."""

    initial: Callable[[int, int, torch.Generator], Tensors]
    logits: Callable[[Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]
    draw: Callable[[int, int, int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Pool:
    """A base, its experts by name, and the items of every task."""

    family: Family
    base: Tensors
    experts: dict[str, Tensors]
    items: dict[str, tuple[torch.Tensor, torch.Tensor]]


def margins(pool: Pool, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Per task one margin an item; above 0 the answer is right."""
    lengths = [len(labels) for _, labels in pool.items.values()]
    inputs = torch.cat([inputs for inputs, _ in pool.items.values()])
    labels = torch.cat([labels for _, labels in pool.items.values()])
    with torch.no_grad():
        scores = functional.log_softmax(pool.family.logits(tensors, inputs), dim=1)
    right = scores.gather(1, labels[:, None])[:, 0]
    wrong = scores.scatter(1, labels[:, None], -torch.inf).max(1).values
    return dict(zip(pool.items, (right - wrong).split(lengths), strict=True))


@dataclass(frozen=True)
class PoolSpec:
    """What a pool is trained from; ``steps`` are those of the base and of the shortest expert."""

    family: str
    tasks: int
    layers: int
    items: int
    steps: tuple[int, int]
    seed: int = 0


def trained_pool(spec: PoolSpec, folder: Path) -> Pool:
    """The pool of that description, trained unless ``folder`` already holds it."""
    family, tasks, layers, items, seed = spec.family, spec.tasks, spec.layers, spec.items, spec.seed
    base_steps, expert_steps = spec.steps
    kind = FAMILIES[family]
    names = [f"task{task}" for task in range(tasks)]
    generator = torch.Generator().manual_seed(derive_seed(seed, family, "items"))
    held_out = {name: kind.draw(task, tasks, items, generator) for task, name in enumerate(names)}
    place = folder / f"{family}-{tasks}-{layers}-{base_steps}-{expert_steps}-{seed}.pt"
    if place.exists():
        stored = torch.load(place, weights_only=True)
        return Pool(kind, stored["base"], stored["experts"], held_out)
    base = kind.initial(tasks, layers, torch.Generator().manual_seed(derive_seed(seed, family, "weights")))
    generator = torch.Generator().manual_seed(derive_seed(seed, family, "base"))
    base = _train(kind, base, [1.0 / tasks] * tasks, base_steps, generator)
    experts = {}
    for task, name in enumerate(names):
        # Experts from different hands: other lengths of training, and a little of every other task kept.
        shares = [0.97 if other == task else 0.03 / max(tasks - 1, 1) for other in range(tasks)]
        generator = torch.Generator().manual_seed(derive_seed(seed, family, name))
        experts[name] = _train(kind, base, shares, expert_steps * (2 + task % 3) // 2, generator)
    folder.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    torch.save({"base": base, "experts": experts}, partial)
    partial.replace(place)
    return Pool(kind, base, experts, held_out)


def _train(kind: Family, start: Tensors, shares: list[float], steps: int, generator: torch.Generator) -> Tensors:
    parameters = {name: tensor.clone().requires_grad_(True) for name, tensor in start.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-3, weight_decay=0.0)
    weights = torch.tensor(shares)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 10) * (1 - 0.9 * step / steps)
        counts = torch.bincount(torch.multinomial(weights, BATCH, True, generator=generator), minlength=len(shares))
        drawn = [kind.draw(task, len(shares), int(count), generator) for task, count in enumerate(counts) if count]
        inputs, labels = (torch.cat(part) for part in zip(*drawn, strict=True))
        optimizer.zero_grad()
        functional.cross_entropy(kind.logits(parameters, inputs), labels).backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


# -- vectors ---------------------------------------------------------------------------------------

WIDTH = 48


def _mlp_initial(tasks: int, layers: int, generator: torch.Generator) -> Tensors:
    tensors = {"model.embed_tokens.weight": _normal(WIDTH, FEATURES + tasks, generator)}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.up.weight"] = _normal(WIDTH, WIDTH, generator)
        tensors[f"model.layers.{layer}.up.bias"] = torch.zeros(WIDTH)
        tensors[f"model.layers.{layer}.down.weight"] = _normal(WIDTH, WIDTH, generator) / layers**0.5
    tensors["lm_head.weight"] = _normal(CLASSES, WIDTH, generator)
    return tensors


def _mlp_logits(tensors: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    hidden = inputs @ tensors["model.embed_tokens.weight"].T
    layer = 0
    while (up := tensors.get(f"model.layers.{layer}.up.weight")) is not None:
        inner = torch.relu(
            torch.addmm(tensors[f"model.layers.{layer}.up.bias"], functional.layer_norm(hidden, (WIDTH,)), up.T)
        )
        hidden = hidden + inner @ tensors[f"model.layers.{layer}.down.weight"].T
        layer += 1
    return functional.layer_norm(hidden, (WIDTH,)) @ tensors["lm_head.weight"].T


def _mlp_draw(task: int, tasks: int, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and the class that the task's own fixed network gives them."""
    teacher = torch.Generator().manual_seed(derive_seed(0, "teacher", task))
    first, second = _normal(32, FEATURES, teacher), _normal(CLASSES, 32, teacher)
    points = torch.randn(count, FEATURES, generator=generator)
    labels = (torch.tanh(1.5 * points @ first.T) @ second.T).argmax(1)
    marker = torch.zeros(count, tasks)
    marker[:, task] = 1.0
    return torch.cat([points, marker], 1), labels


# -- sequences -------------------------------------------------------------------------------------

DEPTH = 32
HEADS = 4


def _attention_initial(tasks: int, layers: int, generator: torch.Generator) -> Tensors:
    tensors = {
        "model.embed_tokens.weight": _normal(LETTERS + tasks, DEPTH, generator),
        "model.positions.weight": _normal(LENGTH + 1, DEPTH, generator) * 0.5,
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = _normal(DEPTH, DEPTH, generator)
        tensors[f"{prefix}.mlp.up_proj.weight"] = _normal(2 * DEPTH, DEPTH, generator)
        tensors[f"{prefix}.mlp.down_proj.weight"] = _normal(DEPTH, 2 * DEPTH, generator)
    tensors["lm_head.weight"] = _normal(CLASSES, DEPTH, generator)
    return tensors


def _attention_logits(tensors: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    hidden = tensors["model.embed_tokens.weight"][inputs] + tensors["model.positions.weight"]
    count, length, _ = hidden.shape
    layer = 0
    while f"model.layers.{layer}.self_attn.q_proj.weight" in tensors:
        prefix = f"model.layers.{layer}"
        normed = functional.layer_norm(hidden, (DEPTH,))
        q, k, v = (
            (normed @ tensors[f"{prefix}.self_attn.{name}.weight"].T)
            .view(count, length, HEADS, DEPTH // HEADS)
            .transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, length, DEPTH)
        hidden = hidden + mixed @ tensors[f"{prefix}.self_attn.o_proj.weight"].T
        normed = functional.layer_norm(hidden, (DEPTH,))
        inner = functional.gelu(normed @ tensors[f"{prefix}.mlp.up_proj.weight"].T)
        hidden = hidden + inner @ tensors[f"{prefix}.mlp.down_proj.weight"].T
        layer += 1
    return functional.layer_norm(hidden[:, -1], (DEPTH,)) @ tensors["lm_head.weight"].T


def _attention_draw(task: int, tasks: int, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Letters, the task's own sign after them, and what the task asks of them."""
    letters = torch.randint(LETTERS, (count, LENGTH), generator=generator)
    question = QUESTIONS[task % len(QUESTIONS)]
    labels = (question(letters) + task // len(QUESTIONS)) % CLASSES
    return torch.cat([letters, torch.full((count, 1), LETTERS + task)], 1), labels


def _commonest(letters: torch.Tensor) -> torch.Tensor:
    return functional.one_hot(letters, LETTERS).sum(1).argmax(1)


def _largest_neighbour_of_zero(letters: torch.Tensor) -> torch.Tensor:
    after = torch.where(letters[:, :-1] == 0, letters[:, 1:], -1)
    return after.max(1).values.clamp(min=0)


def _distinct(letters: torch.Tensor) -> torch.Tensor:
    return (functional.one_hot(letters, LETTERS).sum(1) > 0).sum(1) - 1


def _first_position_of_one(letters: torch.Tensor) -> torch.Tensor:
    return torch.cat([letters == 1, torch.ones(len(letters), 1, dtype=torch.bool)], 1).int().argmax(1).clamp(max=5)


QUESTIONS = (_commonest, _largest_neighbour_of_zero, _distinct, _first_position_of_one)


def _normal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator) / columns**0.5


FAMILIES = {
    "residual": Family(_mlp_initial, _mlp_logits, _mlp_draw),
    "attention": Family(_attention_initial, _attention_logits, _attention_draw),
}
