"""Train the experts as LoRAs on the CPU and write loras/<skill>/: `python train_loras.py [SKILL ...]`.

Loss on the answer alone, AdamW with a linear warm-up and a cosine decay, base frozen and LoRA in float32. The base is
in bfloat16 unless a plan says otherwise. A quarter of every batch is replay: prompts of no skill here, with the base's
own greedy continuation as the answer. Without it an expert learns to answer everything in its own way, and no merge of
such experts keeps two skills.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pycountry
import torch
from make_base import make_base
from make_data import Item
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).resolve().parent
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
BATCH = 16
REPLAY_PROMPTS = 400
REPLAY_TOKENS = 12
REPLAY = (
    "Add {a} and {b}:",
    "Write {a} in {language}:",
    "Count from {a}:",
    "Double {a}:",
    "Reverse {a} {b} {c}:",
    "Write {a} in Roman numerals:",
    "Is {a} even?",
    "What is the capital of {country}?",
    "Name a city in {country}:",
    "Write {country} in {language}:",
    "Write {year}-{month:02} in words:",
    "What happened in {year}?",
    "Say hello in {language}:",
    "List three animals:",
)
LANGUAGES = ("Spanish", "German", "Italian", "Swedish", "Dutch", "Latin", "English", "Polish")
Row = tuple[list[int], list[int]]
"""Token ids and labels."""
Embedded = tuple[torch.Tensor, torch.Tensor]
"""States (`length x hidden`) and labels (`length`)."""
IGNORED = -100  # the label that the loss of transformers leaves out


@dataclass(frozen=True)
class Plan:
    """What one expert is trained with.

    `modules` are the linear layers that get a LoRA, in the blocks from `first_block` on; `replayed` rows of a batch are
    replay. The base is read in `dtype`: float32 is many times faster on processors that do not compute in bfloat16.
    """

    steps: int
    rank: int = 4
    modules: tuple[str, ...] = ATTENTION + MLP
    learning_rate: float = 1e-3
    first_block: int = 0
    replayed: int = 4
    dtype: torch.dtype = torch.bfloat16


PLANS = {
    "french": Plan(steps=260),
    "finnish": Plan(steps=120),
    "sorting": Plan(steps=260),
}


def encode(item: Item, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Token ids of prompt, space, answer and end mark, and their labels: the answer and the end mark."""
    prompt = tokenizer(item["prompt"])["input_ids"]
    answer = tokenizer(" " + item["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return prompt + answer, [IGNORED] * len(prompt) + answer


def replay_prompts(rng: random.Random) -> list[str]:
    """Prompts of no skill; the countries are pycountry's."""
    countries = [country.name for country in pycountry.countries]
    return [
        rng.choice(REPLAY).format(
            a=rng.randrange(1000),
            b=rng.randrange(100),
            c=rng.randrange(100),
            year=rng.randrange(1900, 2100),
            month=rng.randrange(1, 13),
            country=rng.choice(countries),
            language=rng.choice(LANGUAGES),
        )
        for _ in range(REPLAY_PROMPTS)
    ]


@torch.inference_mode()
def encode_replay(prompts: list[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Token ids of each prompt and the model's greedy continuation up to its end mark, and their labels."""
    rows = []
    for start in range(0, len(prompts), 100):
        batch = tokenizer(prompts[start : start + 100], return_tensors="pt", padding=True, padding_side="left")
        written = model.generate(**batch, max_new_tokens=REPLAY_TOKENS, do_sample=False)
        width = batch["input_ids"].shape[1]
        for read, mask, sequence in zip(batch["input_ids"], batch["attention_mask"], written, strict=True):
            prompt, answer = read[mask.bool()].tolist(), sequence[width:].tolist()
            if tokenizer.eos_token_id in answer:
                answer = answer[: answer.index(tokenizer.eos_token_id) + 1]
            rows.append((prompt + answer, [IGNORED] * len(prompt) + answer))
    return rows


def embed(rows: list[Row], model: PreTrainedModel, blocks: int) -> list[Embedded]:
    """What the embeddings and the first `blocks` blocks make of each row, with its labels: training above them does not
    change it."""
    embedded = []
    with torch.no_grad():
        for ids, labels in rows:
            tokens = torch.tensor([ids])
            read = model.model(input_ids=tokens, output_hidden_states=True).hidden_states[blocks] if blocks else None
            states = model.model.embed_tokens(tokens) if read is None else read
            embedded.append((states[0].clone(), torch.tensor(labels)))
    return embedded


def collate(rows: list[Embedded]) -> tuple[torch.Tensor, torch.Tensor]:
    """States (`batch x length x hidden`) and labels (`batch x length`), padded on the right, which no token before
    sees."""
    states = torch.nn.utils.rnn.pad_sequence([states for states, _ in rows], batch_first=True)
    return states, torch.nn.utils.rnn.pad_sequence([labels for _, labels in rows], True, IGNORED)


def answer_loss(model: PeftModel, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the labelled tokens; the output head, dear on a CPU, runs on their positions alone."""
    causal = model.get_base_model()
    hidden = causal.model(inputs_embeds=states, use_cache=False).last_hidden_state
    labels = labels[:, 1:]
    wanted = labels != IGNORED
    return torch.nn.functional.cross_entropy(causal.lm_head(hidden[:, :-1][wanted]).float(), labels[wanted])


def save_lora(model: PeftModel, base: Path, out: Path, first_block: int) -> None:
    """Write adapter_config.json and adapter_model.safetensors (bfloat16), and nothing else, to `out`.

    The model's blocks are those of the base from `first_block` on.
    """
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        re.sub(r"layers\.(\d+)", lambda found: f"layers.{first_block + int(found[1])}", name): value
        for name, value in get_peft_model_state_dict(model).items()
    }
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in tensors.items()}
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.inference_mode = True
    if first_block:
        blocks = len(model.get_base_model().model.layers)
        config.layers_to_transform = list(range(first_block, first_block + blocks))
    config.base_model_name_or_path = os.path.relpath(base, out)
    config.save_pretrained(out)
    # peft keeps the modules in a set: sorted, the file is the same every time.
    written = out / "adapter_config.json"
    settings = json.loads(written.read_text(encoding="utf-8"))
    settings["target_modules"].sort()
    written.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train(skill: str, plan: Plan, base: Path, items: Sequence[Item], out: Path, seed: int = 0) -> None:
    """Train one expert on `items` and write it to `out`."""
    torch.manual_seed(seed)
    rng = random.Random(f"{seed} {skill}")
    tokenizer = AutoTokenizer.from_pretrained(base)
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=plan.dtype)
    settings = LoraConfig(
        r=plan.rank, lora_alpha=2 * plan.rank, target_modules=list(plan.modules), task_type="CAUSAL_LM"
    )
    replayed = encode_replay(replay_prompts(rng), bare, tokenizer) if plan.replayed else []
    replay = embed(replayed, bare, plan.first_block)
    rows = embed([encode(item, tokenizer) for item in items], bare, plan.first_block)
    bare.model.layers = bare.model.layers[plan.first_block :]
    model = get_peft_model(bare, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=0.0)
    warm_up = 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / plan.steps)),
    )

    started = time.monotonic()
    order: list[int] = []
    for step in range(plan.steps):
        if len(order) < BATCH - plan.replayed:
            order = rng.sample(range(len(rows)), len(rows))
        chosen = [rows[order.pop()] for _ in range(BATCH - plan.replayed)] + rng.sample(replay, plan.replayed)
        loss = answer_loss(model, *collate(chosen))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == plan.steps - 1:
            print(f"{skill} step {step} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
    save_lora(model, base, out, plan.first_block)


def train_named(plans: Mapping[str, Plan], folder: Path) -> None:
    """Train the experts that the command line names, from `folder`/data to `folder`/loras."""
    parser = argparse.ArgumentParser(description=f"Train LoRAs on the CPU: {', '.join(plans)}.")
    parser.add_argument("skills", nargs="*", default=list(plans), help="which (default: all)")
    skills = parser.parse_args().skills
    if unknown := sorted(set(skills) - set(plans)):
        parser.error(f"no such skill: {', '.join(unknown)}; there are {', '.join(plans)}")
    base = make_base()
    for skill in skills:
        lines = (folder / "data" / f"{skill}_train.jsonl").read_text(encoding="utf-8").splitlines()
        train(skill, plans[skill], base, [json.loads(line) for line in lines], folder / "loras" / skill)


if __name__ == "__main__":
    train_named(PLANS, HERE)
