"""Fewer experts inside two tiny mixtures that are trained here on the demo's skills: loss on items that they never saw.

python benchmarks/merge_experts.py mixtral               # about a minute on one core; or qwen3_moe
python benchmarks/merge_experts.py mixtral --search 3    # a minute a seed: how many each layer keeps, searched
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import mergefront as mf
from mergefront.demo.experts import _tokenizer
from mergefront.demo.skills import END, SKILLS, draw, prompt
from mergefront.optimizer.scores.evaluation import EvaluationRequest
from mergefront.results.export import merge_config
from mergefront.study.evaluators import make_evaluator

STEPS, BATCH, ITEMS, PROMPTS = 600, 64, 600, 150
SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True, "num_experts_per_tok": 2,
    "output_router_logits": True, "router_aux_loss_coef": 0.01, "pad_token_id": 0,
}  # fmt: skip
TRIED = ({"method": "most_used"}, {"method": "frequency"}, {"method": "subspace"}, {"method": "subspace", "rank": 0.5})


def new_model(kind: str, vocabulary: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(vocab_size=vocabulary, num_local_experts=8, **SIZES))
    own = {"num_experts": 8, "moe_intermediate_size": 64, "head_dim": 12, "norm_topk_prob": True}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=vocabulary, **own, **SIZES))


def question(rng: random.Random) -> tuple[str, str]:
    skill = rng.choice(list(SKILLS))
    letters = draw(skill, rng)
    return prompt(skill, letters), f" {SKILLS[skill](letters)}"


def batch(tokenizer: Any, rng: random.Random, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels (-100 on prompts and padding), ``count x longest``."""
    asked = [question(rng) for _ in range(count)]
    ids = [tokenizer(text + answer + END)["input_ids"] for text, answer in asked]
    tokens = torch.zeros(count, max(map(len, ids)), dtype=torch.long)
    labels = torch.full_like(tokens, -100)
    for row, (own, (text, _)) in enumerate(zip(ids, asked, strict=True)):
        begun = len(tokenizer(text)["input_ids"])
        tokens[row, : len(own)] = torch.tensor(own)
        labels[row, begun : len(own)] = torch.tensor(own[begun:])
    return tokens, labels


def train(model: Any, tokenizer: Any, seed: int = 0) -> None:
    rng, optimizer = random.Random(seed), torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        tokens, labels = batch(tokenizer, rng, BATCH)
        optimizer.zero_grad()
        model(tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.config.output_router_logits = False


def scores(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> str:
    with torch.inference_mode():
        logits = model.eval()(tokens).logits[:, :-1]
    wanted = labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
    right = ((logits.argmax(-1) == wanted) | (wanted == -100)).all(dim=1).float().mean()
    return f"loss {float(loss):.3f}, right {float(right):.3f}, {model.num_parameters():,} parameters"


def study(method: str, granularity: str, evaluations: int) -> str:
    """A study file of how many experts are kept; JSON is YAML."""
    experts = {"method": method, "prompts": "prompts.jsonl", "space": {"keep": [2, 8], "granularity": granularity}}
    made = {
        "study": f"{method} {granularity}",
        "merge": {"method": "merge_experts", "base_model": "mixture", "experts": experts},
        "tasks": {"loss": {"type": "jsonl", "path": "search.jsonl", "report": "report.jsonl", "metric": "loss"}},
        "objectives": ["loss", "parameters"],
        "search": {"evaluations": evaluations},
    }
    return json.dumps(made)


def made(kind: str, seed: int, folder: Path) -> tuple[Any, Any]:
    """A trained mixture and its tokenizer; ``folder`` gets both, and prompts."""
    tokenizer = _tokenizer()
    model = new_model(kind, len(tokenizer), seed)
    train(model, tokenizer, seed)
    rng = random.Random(2)
    texts = sorted({"".join(question(rng)) for _ in range(PROMPTS)})
    model.save_pretrained(folder / "mixture")
    tokenizer.save_pretrained(folder / "mixture")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return model, tokenizer


def searched(kind: str, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """On new items, mixtures that keep as many experts in every layer, and the best that is no larger of a search."""
    made(kind, seed, folder)
    for split, count in (("search", 200), ("report", ITEMS)):
        rng, items = random.Random(split), dict[str, str]()
        while len(items) < count:
            text, answer = question(rng)
            items[text] = answer.strip()
        lines = [json.dumps({"prompt": text, "answer": answer}) + "\n" for text, answer in items.items()]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    for method in ("most_used", "frequency", "subspace"):
        found = {}
        for granularity, evaluations in (("global", 8), ("layers", 20)):
            path = folder / f"{method}-{granularity}.yaml"
            path.write_text(study(method, granularity, evaluations))
            found[granularity] = mf.run(path, progress=False)
        own = found["layers"]
        with make_evaluator(own.definition, lambda own=own: own.database) as evaluator:

            def on_new_items(one: Any, evaluator: Any = evaluator) -> float:
                return float(evaluator.evaluate(one.recipe, EvaluationRequest(("loss",), "report")).scores["loss"])

            for equal in found["global"].candidates():
                no_larger = [one for one in own.candidates() if one.scores["parameters"] <= equal.scores["parameters"]]
                best = min(no_larger, key=lambda one: one.scores["loss"])
                yield {
                    "kind": kind, "seed": seed, "method": method, "equal": int(equal.params.get("keep", 8)),
                    "parameters": equal.scores["parameters"], "equal loss": on_new_items(equal),
                    "searched loss": on_new_items(best), "searched parameters": best.scores["parameters"],
                    "keep": [int(value) for name, value in sorted(best.params.items()) if name.startswith("keep")],
                    "anchor": equal.anchor,
                }  # fmt: skip


def merged(kind: str, folder: Path) -> None:
    """Print losses of mixtures that keep 6, 4 and 3 experts in every layer."""
    model, tokenizer = made(kind, 0, folder)
    held_out = batch(tokenizer, random.Random(1), ITEMS)
    print(f"{kind}, all 8 experts: {scores(model, *held_out)}", flush=True)
    for keep in (6, 4, 3):
        for number, method in enumerate(TRIED):
            experts = {**method, "keep": keep, "prompts": "prompts.jsonl"}
            content = {"merge_method": "merge_experts", "base_model": "mixture", "experts": experts}
            (folder / "merge.yaml").write_text(json.dumps(content))
            out = merge_config(folder / "merge.yaml", folder / f"{keep}-{number}")
            result = scores(AutoModelForCausalLM.from_pretrained(out), *held_out)
            print(f"{kind}, {keep}, {method}: {result}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["mixtral", "qwen3_moe"])
    parser.add_argument(
        "--search", type=int, metavar="SEEDS", help="search the number of each layer, for trained seeds"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(given.search or 1):
        with tempfile.TemporaryDirectory() as name:
            if given.search is None:
                merged(given.kind, Path(name))
                continue
            for row in searched(given.kind, seed, Path(name)):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
