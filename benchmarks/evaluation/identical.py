"""How often a study of identical experts claims a winner:  python -m benchmarks.evaluation.identical

The whole way that a user goes: checkpoints on disk, a study file, the search, the report. Base and experts are copies
of one small random network, so that every merge is that network again, but for rounding: a weighted mean of copies of
a weight is that weight up to its last bits, which moves every log-likelihood a little. Three objectives: the right one
of two choices, the loss of texts, the length of greedy answers. Any claim is false, as in ``noise``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import mergefront as mf
from benchmarks.evaluation.noise import Claims, claims_of, print_claims
from mergefront.optimizer.seeding import derive_seed
from mergefront.running.report_items import report

EXPERTS = ("one", "two", "three")
METHODS = ("linear", "task_arithmetic")
TASKS: dict[str, dict[str, Any]] = {
    "choices": {"type": "jsonl", "path": "choices.jsonl", "metric": "loglikelihood"},
    "loss": {"type": "jsonl", "path": "texts.jsonl", "metric": "loss"},
    "length": {
        "type": "jsonl",
        "path": "prompts.jsonl",
        "metric": "output_tokens",
        "max_new_tokens": 12,
        "stop": ["a"],
    },
}
ITEMS = 200
"""Items of a task, half of them search items."""
CANDIDATES = 30


def claims(seed: int, sampler: str, racing: bool, method: str) -> Claims:
    """What one study claims."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_models(folder, seed)
        _write_items(folder, random.Random(derive_seed(seed, "items")))
        content = {
            "study": "identical",
            "seed": seed,
            "merge": {
                "method": method,
                "base_model": "base",
                "models": {expert: expert for expert in EXPERTS},
                "space": {"weight": [0.01, 1]},
            },
            "backend": {"type": "local", "device": "cpu"},
            "tasks": TASKS,
            "objectives": list(TASKS),
            "racing": racing,
            "search": {"sampler": sampler, "evaluations": CANDIDATES},
        }
        path = folder / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        study = mf.run(path)
        report(study)
        said = claims_of(study)
        study.database.close()
    return said


def _write_models(folder: Path, seed: int) -> None:
    letters = string.ascii_lowercase + " "
    tokens = {token: number for number, token in enumerate(["<eos>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(derive_seed(seed, "network"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder / "base")
    for expert in EXPERTS:
        shutil.copytree(folder / "base", folder / expert)


def _write_items(folder: Path, rng: random.Random) -> None:
    def text(length: int) -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=length))

    made: dict[str, list[dict[str, Any]]] = {
        "choices": [
            {"prompt": f"{text(12)} ", "choices": [text(3), text(3)], "answer": rng.randrange(2)} for _ in range(ITEMS)
        ],
        "texts": [{"text": text(24)} for _ in range(ITEMS)],
        "prompts": [{"prompt": text(12), "answer": text(3)} for _ in range(ITEMS)],
    }
    for name, items in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation.identical", description=__doc__)
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    print_claims(parser, claims)


if __name__ == "__main__":
    main()
