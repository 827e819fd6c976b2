"""Fewer experts inside two tiny mixtures that are trained here on the demo's skills: loss on items that they never saw.

python benchmarks/merge_experts.py mixtral      # about a minute on one core; or qwen3_moe
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from mergefront.demo.experts import _tokenizer
from mergefront.demo.skills import END, SKILLS, draw, prompt
from mergefront.results.export import merge_config

STEPS, BATCH, ITEMS, PROMPTS = 600, 64, 600, 150
SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True, "num_experts_per_tok": 2,
    "output_router_logits": True, "router_aux_loss_coef": 0.01, "pad_token_id": 0,
}  # fmt: skip
TRIED = ({"method": "most_used"}, {"method": "frequency"}, {"method": "subspace"}, {"method": "subspace", "rank": 0.5})


def new_model(kind: str, vocabulary: int) -> Any:
    torch.manual_seed(0)
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


def train(model: Any, tokenizer: Any) -> None:
    rng, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=2e-3)
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


def main(kind: str) -> None:
    torch.set_num_threads(1)
    tokenizer = _tokenizer()
    model = new_model(kind, len(tokenizer))
    train(model, tokenizer)
    held_out = batch(tokenizer, random.Random(1), ITEMS)
    rng = random.Random(2)
    texts = sorted({"".join(question(rng)) for _ in range(PROMPTS)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "mixture")
        tokenizer.save_pretrained(folder / "mixture")
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        print(f"{kind}, all 8 experts: {scores(model, *held_out)}", flush=True)
        for keep in (6, 4, 3):
            for number, method in enumerate(TRIED):
                experts = {**method, "keep": keep, "prompts": "prompts.jsonl"}
                content = {"merge_method": "merge_experts", "base_model": "mixture", "experts": experts}
                (folder / "merge.yaml").write_text(json.dumps(content))
                out = merge_config(folder / "merge.yaml", folder / f"{keep}-{number}")
                print(
                    f"{kind}, {keep}, {method}: {scores(AutoModelForCausalLM.from_pretrained(out), *held_out)}",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1])
