"""What check says of a study is what becomes of it: sound studies run and export as they were scored, whatever the
architecture, the method, the experts and the coefficients; others are refused for a reason that is known here. What an
export writes as its configuration makes the same merge again.

Studies are drawn by their number. A handful is part of every run of the suite, many of ``make test-models``.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from architecture_row import CLOZE, PYTHON, SCORING, loaded
from safetensors.torch import load_file
from tiny_models import CAUSAL, IMAGE_TEXT, SEQ2SEQ, THINKER, TINY_MODELS, TinyModel, move

import mergefront as mf
from mergefront.optimizer.errors import StudyFileError
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.results.export import CONFIG, export_candidate, merge_config
from mergefront.results.export_check import check_export
from mergefront.study.check import check_study

ARCHITECTURES = {**TINY_MODELS, THINKER.model_type: THINKER}
LORAS_ALONE = [name for name in METHODS if METHODS[name].lora is not None]
REFUSED = (
    r"takes (at least )?\d+ models?, not \d+|needs at least \d+ models?",
    r"merges LoRAs, and this is a whole checkpoint",
    r"merges the factors of matrices, and this LoRA adapts .* which holds all experts",
    r"is in no tensor's name, or only where another kind comes first",
    r"the model has no stack",
    r"reads a text in both directions, so that no likelihoods of answers can be had",
    r"is searched with the method itself",
)
"""What a drawn study may be refused for."""
SOME = range(6)
MANY = range(len(SOME), 160)


def draw(number: int) -> tuple[str, list[str], dict[str, Any], dict[str, Any], str]:
    """Architecture, kinds of experts (whole, lora), merge section, backend section, and the dtype of the files."""
    chance = random.Random(f"drawn study {number}")
    name = chance.choice(sorted(ARCHITECTURES))
    experts = [chance.choice(("whole", "whole", "lora")) for _ in range(chance.choice((1, 2, 2, 2, 3)))]
    fitting = [method for method in METHODS if METHODS[method].refuses(len(experts)) is None or chance.random() < 0.1]
    methods = chance.sample(sorted(set(fitting) - set(LORAS_ALONE)), 1 if chance.random() < 0.7 else 2)
    if chance.random() < 0.15:
        methods, experts = [chance.choice(LORAS_ALONE)], chance.choice([["lora"] * 2, ["lora"] * 3, experts])
    by_stack = {SEQ2SEQ: {"encoder": 1, "decoder": 0}, IMAGE_TEXT: {"vision": 1}}
    stacks = by_stack.get(ARCHITECTURES[name].auto, {"language": 2}) if chance.random() < 0.8 else {"audio": 1}
    granularity = chance.choice(
        ("global", "global", "layers", {"blocks": 2}, {"blocks": 2, "boundaries": "importance"}, {"starts": [0, 1]},
         {"blocks": stacks}, {"blocks": stacks})
    )  # fmt: skip
    space: dict[str, Any] = {"granularity": granularity}
    if chance.random() < 0.5:
        space["split"] = chance.choice((["mlp"], ["self_attn"], ["att"], ["norm"], ["proj"], ["norm", "embed"], ["w"]))
    merge: dict[str, Any] = {"method": methods if len(methods) > 1 else methods[0], "space": space}
    if ARCHITECTURES[name].auto not in (CAUSAL, SEQ2SEQ) and chance.random() < 0.5:
        merge["scope"] = "language"
        if ARCHITECTURES[name].auto == IMAGE_TEXT or name == THINKER.model_type:
            merge["carry"] = {"vision": "expert_0"}
    backend = {"type": "local", "device": "cpu"}
    if chance.random() < 0.15:
        backend["compat"] = "mergekit"
    if chance.random() < 0.2:
        backend["dtype"] = chance.choice(("float32", "bfloat16"))
    return name, experts, merge, backend, chance.choice(("float32", "float32", "bfloat16"))


def study_in(folder: Path, tiny: TinyModel, tokenizer: Any, number: int) -> Path:
    from peft import LoraConfig, get_peft_model

    _, experts, merge, backend, dtype = draw(number)
    for seed, name in enumerate(("base", *(f"expert_{place}" for place in range(len(experts))))):
        model = tiny.make()
        move(model, seed)
        if seed and experts[seed - 1] == "lora":
            torch.manual_seed(seed)
            settings = LoraConfig(
                r=seed, target_modules="all-linear", exclude_modules=r".*(out_proj|conv1d)", init_lora_weights=False
            )
            get_peft_model(tiny.make(), settings).save_pretrained(folder / name)
        else:
            model.to(getattr(torch, dtype)).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    items = [{"prompt": f"Sort {n}:", "choices": [f" {n}", " 38 4"], "answer": 0} for n in (23, 43, 83, 44)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "scoring.py").write_text(SCORING)
    asked = tiny.auto in (CAUSAL, IMAGE_TEXT, SEQ2SEQ) or tiny is THINKER
    content = {
        "study": "drawn",
        "seed": number,
        "merge": {
            "base_model": "base", "models": {f"expert_{place}": f"expert_{place}" for place in range(len(experts))},
            **merge,
        },
        "backend": backend,
        "tasks": {"task": yaml.safe_load(CLOZE if asked else PYTHON)},
        "objectives": ["task"],
        "search": {"sampler": "random", "evaluations": len(experts) + 5},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "study.yaml"


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    "number", [*SOME, *(pytest.param(number, marks=pytest.mark.every_architecture) for number in MANY)]
)
def test_check_says_what_becomes_of_a_study(number: int, tmp_path: Path, tokenizer: Any) -> None:
    tiny = ARCHITECTURES[draw(number)[0]]
    path = study_in(tmp_path, tiny, tokenizer, number)
    report = check_study(path)
    if report.problems:
        unknown = [line for line in report.problems if not any(re.search(known, line) for known in REFUSED)]
        assert unknown == [], path.read_text()
        with pytest.raises(StudyFileError):
            mf.run(path)
        assert not (tmp_path / "mergefront.db").exists()
        return
    study = mf.run(path)
    assert [failure.reason for failure in study.failures()] == [], path.read_text()
    candidates = study.candidates()
    for place in (0, len(candidates) // 2, len(candidates) - 1):
        out = export_candidate(study, candidates[place], tmp_path / f"out{place}")
        told = check_export(study, candidates[place], out)
        assert "tensors equal the merge that was scored" in told, f"{told}\n{path.read_text()}"
        loaded(tiny, out)
    if not METHODS[candidates[-1].recipe.method].stochastic:
        merge_config(out / CONFIG, tmp_path / "again")
        written, again = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "again"))
        assert written.keys() == again.keys(), path.read_text()
        differing = [name for name, tensor in written.items() if not torch.equal(tensor, again[name])]
        assert differing == [], path.read_text()
