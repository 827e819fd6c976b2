"""The demo's models: a small Llama, and three experts fine-tuned from it.

The base learns a little of every skill. Each expert continues from the base with one skill and a few items of the
others. It still loses much of the others, which makes merging worth searching.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from mergefront.demo.skills import END, LENGTH, SKILLS, VOCABULARY, draw, prompt
from mergefront.demo.threads import one_thread
from mergefront.optimizer.seeding import derive_seed

_IGNORED = -100  # the label that the loss of transformers leaves out
_BATCH = 64
_WARM_UP = 20
_LONGEST = 2 * LENGTH + 5  # skill, space, letters, colon, space, letters, end


BASE_LEARNT = {"reverse": 0.1, "sort": 0.5, "most": 0.6}
"""Share of each skill's items that the base gets right; unequal, as real bases are."""

BASE_MOST_STEPS = 500
EXPERT_STEPS = 300
EXPERT_RATES = {"reverse": 6e-4, "sort": 1e-3, "most": 2.5e-3}
"""Learning rates; experts from different hands lie at different distances from their base, so that
equal weights are rarely the best."""

OTHER_SKILLS = 0.01  # share of each other skill in an expert's training


def train_models(directory: Path, held_out: Container[str], seed: int, progress: Callable[[str], None]) -> None:
    """Write ``directory/base`` and one folder for each expert: Hugging Face models with their tokenizer.

    ``held_out`` holds strings of letters that no model may see while training.
    """
    tokenizer = _tokenizer()
    with one_thread(), _no_progress_bars(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "demo", "initial weights"))
        base = _new_model()
        progress("training the base model on all skills")
        _train_base(base, held_out, random.Random(derive_seed(seed, "demo", "base")))
        _save(base, tokenizer, directory / "base")
        for skill in SKILLS:
            progress(f"training the expert {skill!r} from the base")
            expert = copy.deepcopy(base)
            _train_expert(expert, skill, held_out, random.Random(derive_seed(seed, "demo", skill)))
            _save(expert, tokenizer, directory / skill)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps transformers quiet about the files it writes."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _tokenizer() -> Any:
    """A fast tokenizer whose tokens are ``VOCABULARY``."""
    tokens = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<eos>"))
    words = Regex("|".join([*SKILLS, "[\\s\\S]"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


def _new_model() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=VOCABULARY.index("<eos>"),
            pad_token_id=VOCABULARY.index("<pad>"),
        )
    )


def _train_base(model: Any, held_out: Container[str], rng: random.Random) -> None:
    """Until the model gets ``BASE_LEARNT`` of the skills right; the weaker a skill, the more of it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    shares = dict.fromkeys(SKILLS, 1.0)
    for step in range(BASE_MOST_STEPS):
        if step % 10 == 0:
            learnt = {skill: _fraction_right(model, skill, held_out, rng) for skill in SKILLS}
            if all(learnt[skill] >= BASE_LEARNT[skill] for skill in SKILLS):
                break
            shares = {skill: max(0.02, BASE_LEARNT[skill] + 0.1 - learnt[skill]) for skill in SKILLS}
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / _WARM_UP)
        _step(model, optimizer, *_batch(shares, held_out, rng))


def _train_expert(model: Any, skill: str, held_out: Container[str], rng: random.Random) -> None:
    """From the base on, nearly all on one skill, with a warm-up and a linear decay."""
    shares = {other: 1 - OTHER_SKILLS * (len(SKILLS) - 1) if other == skill else OTHER_SKILLS for other in SKILLS}
    optimizer = torch.optim.AdamW(model.parameters(), lr=EXPERT_RATES[skill], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARM_UP, 1 - 0.9 * step / EXPERT_STEPS)
    )
    for _ in range(EXPERT_STEPS):
        _step(model, optimizer, *_batch(shares, held_out, rng))
        schedule.step()


def _step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(input_ids=tokens, labels=labels).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _fraction_right(model: Any, skill: str, held_out: Container[str], rng: random.Random) -> float:
    """How many of a batch's answers the model gets wholly right, token by token."""
    tokens, labels = _batch({skill: 1.0}, held_out, rng)
    with torch.no_grad():
        guessed = model(input_ids=tokens).logits[:, :-1].argmax(-1)
    right = (guessed == labels[:, 1:]) | (labels[:, 1:] == _IGNORED)
    return float(right.all(1).float().mean())


def _batch(
    shares: Mapping[str, float], held_out: Container[str], rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels, ``batch x length``; ``shares`` says how often each skill comes up."""
    number = {token: index for index, token in enumerate(VOCABULARY)}
    tokens, labels = [], []
    for skill in rng.choices(list(shares), list(shares.values()), k=_BATCH):
        letters = draw(skill, rng)
        while letters in held_out:
            letters = draw(skill, rng)
        asked = prompt(skill, letters).removeprefix(skill)
        question = [number[skill], *(number[letter] for letter in asked)]
        answer = [number[letter] for letter in f" {SKILLS[skill](letters)}{END}"]
        padding = [number["<pad>"]] * (_LONGEST - len(question) - len(answer))
        tokens.append(question + answer + padding)
        labels.append([_IGNORED] * len(question) + answer + [_IGNORED] * len(padding))
    return torch.tensor(tokens), torch.tensor(labels)


def _save(model: Any, tokenizer: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
