"""Train the experts, on the last third of the layers: ``python -m benchmarks.search.language_models.train_experts
[SET ...]``; two to ten minutes of one core a set. ``make_gemma`` writes Gemma before. Loss on answer and end, AdamW.

Experts are LoRAs of rank 4, or those layers whole, which are written as models of their own. Those of a set begin as
one that was shown all skills of the set in turn, and then learn their own skill alone. So they help each other as far
as they have that beginning in common, and exclude each other as far as they left it. The plans were chosen by what the
uniform average keeps of each expert's score: 30 to 80% in `written` and in `whole`; in `ordered` a skill is lost, one
half kept and one kept. In the set of eight each begins from the base.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.search.answer_margins import Reference
from benchmarks.search.language_models.make_gemma import GEMMA
from benchmarks.search.language_models.skills import FOLDER, SKILLS, items
from benchmarks.search.language_models.upper_layers import laid_out, run_layers, shared_length

BASE = Path("examples/smollm/base")
RANK = 4
BATCH = 12
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Base:
    """A model that experts are trained from: its folder, its name for people, the first layer that they change, and
    what it is trained in (products with a large vocabulary are slow in bfloat16)."""

    folder: Path
    name: str
    first_layer: int
    dtype: torch.dtype


SMOLLM = Base(BASE, "SmolLM2-135M-Instruct (GGUF Q4_1, dequantised)", 20, torch.bfloat16)
SMOLLM_FLOAT32 = replace(SMOLLM, dtype=torch.float32)
"""A processor without instructions for bfloat16 trains in it twenty times as slowly."""
GEMMA_270M = Base(GEMMA, "Gemma 3 270M (GGUF Q4_K_M, dequantised)", 12, torch.float32)


@dataclass(frozen=True)
class Kind:
    """Of experts. ``prepared`` has just their parameters learn, in place. ``saved`` writes what they have become to a
    folder, ``last`` at the end."""

    name: str
    prepared: Callable[[Any, list[int]], Any]
    saved: Callable[[Any, Path, Base], None]
    last: str


def _with_lora(causal: Any, layers: list[int]) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        causal, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=MODULES, layers_to_transform=layers)
    )


def _whole_layers(causal: Any, layers: list[int]) -> Any:
    causal.requires_grad_(False)
    for layer in layers:
        causal.model.layers[layer].requires_grad_(True)
    return causal


def _save_lora(model: Any, out: Path, base: Base) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    rounded = {name: value.to(torch.bfloat16).contiguous() for name, value in get_peft_model_state_dict(model).items()}
    save_file(rounded, out / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": MODULES,
        "layers_to_transform": model.peft_config["default"].layers_to_transform,
        "base_model_name_or_path": os.path.relpath(base.folder, out),
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _save_whole(model: Any, out: Path, base: Base) -> None:
    """As a model is published: in bfloat16, with its tokenizer."""
    from transformers import AutoTokenizer

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(base.folder).save_pretrained(out)


LORA = Kind("LoRAs", _with_lora, _save_lora, "adapter_config.json")
WHOLE = Kind("fine-tunes", _whole_layers, _save_whole, "tokenizer_config.json")
KINDS = (LORA, WHOLE)


@dataclass(frozen=True)
class Plan:
    """What the experts of a set are trained with: steps on all its skills together, then on each one's own."""

    skills: tuple[str, ...]
    together: int
    apart: int
    learning_rate: float = 2e-3
    base: Base = SMOLLM
    kind: Kind = LORA


PLANS: Mapping[str, Plan] = {
    "written": Plan(("spanish", "swedish", "clock"), together=75, apart=40),
    "ordered": Plan(("descending", "ordinal", "camel"), together=24, apart=45),
    "gemma": Plan(("german", "constant", "swedish"), together=18, apart=45, base=GEMMA_270M),
    "eight": Plan(tuple(SKILLS), together=0, apart=80, learning_rate=4e-3, base=SMOLLM_FLOAT32),
    "whole": Plan(
        ("spanish", "clock", "descending"),
        together=72,
        apart=60,
        learning_rate=1e-4,
        base=SMOLLM_FLOAT32,
        kind=WHOLE,
    ),
}
"""Each set by its name, that of its folder."""


def tokens_of(tokenizer: Any, pairs: Sequence[Mapping[str, str]], end: bool = False) -> list[Reference]:
    """Items as tokens; with ``end`` the answer has the end token, as it is learned."""
    from mergefront.adapters.tokenization import Tokenization

    found = Tokenization(tokenizer).pairs([(pair["prompt"], " " + pair["answer"]) for pair in pairs])
    return [Reference(prompt, (*answer, *([tokenizer.eos_token_id] if end else []))) for prompt, answer in found]


class _Lessons:
    """Batches of a skill, and the loss of a model's upper layers on them."""

    def __init__(self, skill: str, tokenizer: Any, seed: int, first_layer: int) -> None:
        self.first_layer = first_layer
        self.asked = tokens_of(tokenizer, items(skill)["train"], end=True)
        self.shared = shared_length(self.asked)
        self.rng = random.Random(f"{seed} {skill}")

    def loss(self, causal: Any) -> torch.Tensor:
        layout = laid_out(self.rng.sample(self.asked, BATCH), self.shared)
        body = causal.model
        with torch.no_grad():
            below = run_layers(body, body.layers[: self.first_layer], body.embed_tokens(layout.tokens), layout)
        hidden = run_layers(body, body.layers[self.first_layer :], below, layout)
        # A place before an answer's token learns that token; the last one has nothing after it.
        at = torch.tensor([place for places in layout.places for place in places[:-1]])
        return torch.nn.functional.cross_entropy(causal.lm_head(body.norm(hidden[at])).float(), layout.tokens[at + 1])


def _learn(causal: Any, lessons: Sequence[_Lessons], steps: int, rate: float, label: str) -> None:
    """One skill a step, in turn."""
    learned = [parameter for parameter in causal.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 10, (steps - step) / steps))
    started = time.process_time()
    for step in range(steps):
        loss = lessons[step % len(lessons)].loss(causal)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 15 == 0 or step == steps - 1:
            print(f"{label} step {step} loss {loss.item():.4f} {time.process_time() - started:.0f} s", flush=True)


def train(plan: Plan, out: Path, seed: int = 0) -> None:
    """Train a set's experts and write each to a folder of its name in ``out``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    base = plan.base
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    causal = AutoModelForCausalLM.from_pretrained(base.folder, dtype=base.dtype, attn_implementation="eager")
    model = plan.kind.prepared(causal, list(range(base.first_layer, causal.config.num_hidden_layers)))
    learned = {name: parameter for name, parameter in causal.named_parameters() if parameter.requires_grad}
    lessons = {skill: _Lessons(skill, tokenizer, seed, base.first_layer) for skill in plan.skills}
    if plan.together:
        _learn(causal, list(lessons.values()), plan.together, plan.learning_rate, "all")
    common = {name: parameter.detach().clone() for name, parameter in learned.items()}
    for skill in plan.skills:
        with torch.no_grad():
            for name, parameter in learned.items():
                parameter.copy_(common[name])
        _learn(causal, [lessons[skill]], plan.apart, plan.learning_rate / 2, skill)
        plan.kind.saved(model, out / skill, base)


def trained(name: str) -> Path:
    """The folder of a set's experts, which are trained where one is missing, as after training that was stopped."""
    out, plan = FOLDER / "experts" / name, PLANS[name]
    if not all((out / skill / plan.kind.last).exists() for skill in plan.skills):
        train(plan, out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search.language_models.train_experts", description=__doc__
    )
    parser.add_argument("sets", nargs="*", default=[name for name, plan in PLANS.items() if plan.base.folder == BASE])
    torch.set_num_threads(1)
    for name in parser.parse_args().sets:
        train(PLANS[name], FOLDER / "experts" / name)


if __name__ == "__main__":
    main()
