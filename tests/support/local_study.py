"""A study of two random experts of a tiny random base, scored in a moment; two of its tasks are no objective."""

from __future__ import annotations

from pathlib import Path

import yaml

TASKS = {
    "sorting": {"type": "jsonl", "path": "sorting.jsonl", "metric": "loss"},
    "side": {"type": "jsonl", "path": "side.jsonl", "metric": "loss"},
    "choices": {"type": "jsonl", "path": "side.jsonl", "metric": "loglikelihood"},
}


def write_local_study(folder: Path, name: str) -> Path:
    """Models, data (8 items a file, half of them for the report) and the study file, whose path it returns."""
    import torch

    from mergefront.demo.experts import _new_model, _tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, tokenizer = _new_model(), _tokenizer()
        for model_name in ("base", "one", "two"):
            model.save_pretrained(folder / model_name)
            tokenizer.save_pretrained(folder / model_name)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    letters = ["abcdefgh"[n:] + "abcdefgh"[:n] for n in range(8)]
    for task in ("sorting", "side"):
        lines = [f'{{"prompt": "{task[:4]} {a}:", "choices": ["{a}", "{a[::-1]}"], "answer": 0}}' for a in letters]
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
    content = {
        "study": name,
        "merge": {
            "method": "task_arithmetic",
            "base_model": "base",
            "models": {"one": "one", "two": "two"},
            "space": {"weight": [0, 1]},
        },
        "backend": {"type": "local", "device": "cpu"},
        "tasks": TASKS,
        "objectives": ["sorting", "delta_l1"],
        "search": {"sampler": "random", "evaluations": 7},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
