"""An evaluator of the pool's merges on this machine that computes the upper blocks alone.

The LoRAs change blocks 18 to 29. What the blocks below make of an item is the same under every merge: it is computed
once. Items that begin alike share what is computed for their beginning: a split is one tree of tokens. Scores are those
of the whole model in float32 (`compare.py --agree 20` holds them against the server's).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergefront.adapters.local.linear_layers import fast_linear_layers
from mergefront.adapters.merging.loras.pool import merge_lora_recipe
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.adapters.tasks.task import SPLITS
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, ItemScores

LOSS, EXACT = "loss", "exact"


@dataclass(frozen=True)
class Items:
    """One split: what the lower blocks make of every node of the tree (`1 x nodes x hidden`), the tokens of answer and
    end mark, and the nodes that they follow. A node sees those above it (`1 x 1 x nodes x nodes`)."""

    ids: tuple[str, ...]
    states: torch.Tensor
    sees: torch.Tensor
    depths: torch.Tensor
    answers: list[list[int]]
    before: torch.Tensor


def tree(rows: Sequence[Sequence[int]]) -> tuple[list[int], list[int], torch.Tensor, list[list[int]]]:
    """Rows of tokens as one tree: each node's token and depth, which nodes each sees, and each row's nodes."""
    nodes: dict[tuple[int, ...], int] = {}
    paths = [[nodes.setdefault(tuple(row[:end]), len(nodes)) for end in range(1, len(row) + 1)] for row in rows]
    sees = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for path in paths:
        for depth, node in enumerate(path):
            sees[node, path[: depth + 1]] = True
    return [node[-1] for node in nodes], [len(node) - 1 for node in nodes], sees, paths


class UpperBlocks:
    """Loss (nats per token of the answer) and exact match of recipes; exact where every token is the likeliest one."""

    def __init__(self, base: Path, loras: Mapping[str, Path], task: JsonlTask, first_block: int) -> None:
        torch.set_num_threads(1)
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)
        self._items = {}
        for split in SPLITS:
            items = task.items(split)
            prompts = [tokenizer(item.prompt)["input_ids"] for item in items]
            answers = [
                [*tokenizer(" " + item.answers[0], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                for item in items
            ]
            tokens, depths, sees, paths = tree([p + a[:-1] for p, a in zip(prompts, answers, strict=True)])
            given = {"attention_mask": sees[None, None], "position_ids": torch.tensor([depths])}
            with torch.inference_mode(), fast_linear_layers(model):
                seen = model.model(torch.tensor([tokens]), **given, output_hidden_states=True, use_cache=False)
            before = [node for path, prompt in zip(paths, prompts, strict=True) for node in path[len(prompt) - 1 :]]
            self._items[split] = Items(
                tuple(item.id for item in items),
                seen.hidden_states[first_block].clone(),
                given["attention_mask"],
                given["position_ids"],
                answers,
                torch.tensor(before),
            )
        weights = dict(model.named_parameters())
        self._loras = dict(loras)
        whole = dict.fromkeys(loras, 1.0)
        everything = Recipe("lora_cat", {n: n for n in loras}, {f"weight[{n}]": w for n, w in whole.items()}, None)
        targets = merge_lora_recipe(everything, self._loras)
        self._weights = {name: (weights[name], weights[name].clone()) for name in targets}
        model.model.layers = model.model.layers[first_block:]
        self._model = model
        self._known: dict[tuple[str, str], Evaluation] = {}

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        key = (recipe.digest, request.split)
        if key not in self._known:
            self._known[key] = self._scored(recipe, request.split)
        found = self._known[key]
        return Evaluation(
            {name: found.items[name].mean for name in request.objectives}, items=found.items, cost=found.cost
        )

    @torch.inference_mode()
    def _scored(self, recipe: Recipe, split: str) -> Evaluation:
        started = time.process_time()
        merged = merge_lora_recipe(recipe, self._loras)
        for name, (weight, base) in self._weights.items():
            weight.copy_(base + merged[name].b @ merged[name].a if name in merged else base)
        items = self._items[split]
        with fast_linear_layers(self._model):
            hidden = self._model.model(
                inputs_embeds=items.states, attention_mask=items.sees, position_ids=items.depths, use_cache=False
            ).last_hidden_state
            # The head, the dearest matrix, is read once for all answers.
            logits = self._model.lm_head(hidden[0, items.before])
        losses, exact = [], []
        for logprobs, answer in zip(
            logits.log_softmax(-1).split([len(answer) for answer in items.answers]), items.answers, strict=True
        ):
            right = logprobs[torch.arange(len(answer)), torch.tensor(answer)][:-1]
            losses.append(-float(right.mean()))
            exact.append(float(logprobs.argmax(-1).tolist() == answer))
        scores = {LOSS: ItemScores(items.ids, tuple(losses)), EXACT: ItemScores(items.ids, tuple(exact))}
        return Evaluation({}, items=scores, cost={"processor seconds": time.process_time() - started})
