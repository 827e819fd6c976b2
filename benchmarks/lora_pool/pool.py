"""A pool of LoRAs on a tiny Llama, trained here in a minute, and a target task that needs several of them.

Text is drawn from Markov chains over a small alphabet. The base model learns a common chain; a dialect replaces
some of its habits. The target is a mixture of several dialects. Half of the pool has to do with the target:
LoRAs trained on one target dialect each (mixed with an unrelated one, for different lengths of time, with different
ranks and alphas), and one trained on a contradiction of a target dialect, which is of use with a negative weight. The
other half are distractors: LoRAs of unrelated dialects, and random ones of the same size as trained ones.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

SYMBOLS = 24
LENGTH = 20
SUCCESSORS = 3
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PoolPlan:
    """What a pool is made of. ``per_dialect`` LoRAs know each target dialect; ``size`` is the whole pool."""

    seed: int
    size: int = 20
    target_dialects: int = 3
    per_dialect: int = 3
    noise: int = 4
    base_steps: int = 500
    lora_steps: int = 120
    search_items: int = 64
    report_items: int = 384

    @property
    def relevant(self) -> int:
        """LoRAs that have to do with the target, the contradicting one included."""
        return self.target_dialects * self.per_dialect + 1


@dataclass(frozen=True)
class Lora:
    """Factors per module: A (``rank x in``) and B (``out x rank``), with scaling alpha / rank."""

    name: str
    scaling: float
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Pool:
    """A base model, the LoRAs, and the target's items (``items x LENGTH`` symbols)."""

    model: LlamaForCausalLM
    loras: tuple[Lora, ...]
    search_items: torch.Tensor
    report_items: torch.Tensor


def load_pool(plan: PoolPlan, cache: Path) -> Pool:
    """The pool of a plan, from ``cache`` when it was trained before."""
    digest = hashlib.sha256((json.dumps(asdict(plan)) + Path(__file__).read_text()).encode()).hexdigest()[:16]
    folder = cache / f"pool-{plan.seed}-{plan.size}-{digest}"
    if not (folder / "scalings.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _train(plan, folder)
    model = _blank_model(plan)
    model.load_state_dict(load_file(folder / "base.safetensors"))
    model.eval().requires_grad_(False)
    scalings = json.loads((folder / "scalings.json").read_text())
    loras = []
    for name, scaling in scalings.items():
        tensors = load_file(folder / f"{name}.safetensors")
        modules = sorted({key[:-2] for key in tensors})
        loras.append(Lora(name, scaling, {m: (tensors[f"{m}.A"], tensors[f"{m}.B"]) for m in modules}))
    language = _Language(plan)
    return Pool(
        model,
        tuple(loras),
        language.target(plan.search_items, "search items"),
        language.target(plan.report_items, "report items"),
    )


class _Language:
    """The common chain and the dialects of a plan."""

    def __init__(self, plan: PoolPlan) -> None:
        self.plan = plan
        rng = self._rng("language")
        self.common = rng.dirichlet(np.full(SYMBOLS, 0.3), size=SYMBOLS)
        unrelated = plan.size
        self.dialects = [self._dialect(rng) for _ in range(plan.target_dialects + unrelated)]

    def target(self, items: int, purpose: str) -> torch.Tensor:
        """Items of the target: each in one of its dialects, which only its symbols tell."""
        rng = self._rng(purpose)
        k = self.plan.target_dialects
        return self.sample([self.dialects[i] for i in range(k)], items, rng)

    def sample(self, chains: list[NDArray[np.float64]], items: int, rng: np.random.Generator) -> torch.Tensor:
        """Each item follows one of the chains, drawn at random; ``items x LENGTH``."""
        which = rng.integers(len(chains), size=items)
        cumulative = np.stack(chains).cumsum(axis=2)
        drawn = np.empty((items, LENGTH), dtype=np.int64)
        drawn[:, 0] = rng.integers(SYMBOLS, size=items)
        for t in range(1, LENGTH):
            rows = cumulative[which, drawn[:, t - 1]]
            drawn[:, t] = np.minimum((rng.random((items, 1)) > rows).sum(axis=1), SYMBOLS - 1)
        return torch.from_numpy(drawn)

    def contradiction(self, dialect: int) -> NDArray[np.float64]:
        """The dialect with its habits handed to other symbols."""
        order = self._rng("contradiction").permutation(SYMBOLS)
        return self.dialects[dialect][:, order]

    def _dialect(self, rng: np.random.Generator) -> NDArray[np.float64]:
        chain = self.common.copy()
        for symbol in rng.choice(SYMBOLS, size=SYMBOLS // 2, replace=False):
            habits = rng.choice(SYMBOLS, size=SUCCESSORS, replace=False)
            chain[symbol] *= 0.15
            chain[symbol, habits] += 0.85 * rng.dirichlet(np.full(SUCCESSORS, 2.0))
        return np.asarray(chain)

    def _rng(self, purpose: str) -> np.random.Generator:
        content = hashlib.sha256(f"{self.plan.seed} {purpose}".encode()).digest()
        return np.random.default_rng(int.from_bytes(content[:8], "little"))


def _blank_model(plan: PoolPlan) -> LlamaForCausalLM:
    torch.manual_seed(plan.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SYMBOLS,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=LENGTH,
            attn_implementation="sdpa",
        )
    )


def _train(plan: PoolPlan, folder: Path) -> None:
    language = _Language(plan)
    model = _blank_model(plan)
    _fit(model, language, [language.common], plan.base_steps, 3e-3, language._rng("base text"))
    save_file(model.state_dict(), folder / "base.safetensors")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scalings: dict[str, float] = {}
    for name, chains, steps, rank, alpha in _lessons(plan, language):
        model = _blank_model(plan)
        model.load_state_dict(state)
        torch.manual_seed(int(hashlib.sha256(f"{plan.seed} {name}".encode()).hexdigest()[:8], 16))
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(MODULES), task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        if chains:
            _fit(adapted, language, chains, steps, 4e-3, language._rng(name))
        tensors = _factors(adapted)
        if not chains:
            _randomise(tensors, folder, list(scalings))
        save_file(tensors, folder / f"{name}.safetensors")
        scalings[name] = alpha / rank
    (folder / "scalings.json").write_text(json.dumps(scalings))


def _lessons(plan: PoolPlan, language: _Language) -> list[tuple[str, list[NDArray[np.float64]], int, int, int]]:
    """(name, chains to train on, steps, rank, alpha) of every LoRA; no chains means a random LoRA."""
    lessons: list[tuple[str, list[NDArray[np.float64]], int, int, int]] = []
    unrelated = iter(language.dialects[plan.target_dialects :])
    shapes = ((4, 8), (8, 8), (4, 4))
    for copy in range(plan.per_dialect):
        for dialect in range(plan.target_dialects):
            chains = [language.dialects[dialect]] * (1 + copy % 2) + [next(unrelated)]
            rank, alpha = shapes[(copy + dialect) % 3]
            steps = plan.lora_steps // (1 + copy % 3)
            lessons.append((f"target{dialect}{'abcdefgh'[copy]}", chains, steps, rank, alpha))
    lessons.append(("contrary", [language.contradiction(0)], plan.lora_steps, 4, 8))
    for i in range(plan.size - plan.relevant - plan.noise):
        rank, alpha = shapes[i % 3]
        lessons.append((f"other{i}", [next(unrelated)], plan.lora_steps, rank, alpha))
    for i in range(plan.noise):
        lessons.append((f"noise{i}", [], 0, 4, 8))
    return lessons


def _fit(
    model: torch.nn.Module,
    language: _Language,
    chains: list[NDArray[np.float64]],
    steps: int,
    rate: float,
    rng: np.random.Generator,
) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1)
    model.train()
    for _ in range(steps):
        items = language.sample(chains, 32, rng)
        loss = model(input_ids=items, labels=items).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _factors(adapted: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in adapted.state_dict().items():
        for side in "AB":
            ending = f".lora_{side}.default.weight"
            if name.endswith(ending):
                module = name.removeprefix("base_model.model.").removesuffix(ending)
                tensors[f"{module}.{side}"] = tensor.detach().clone()
    return tensors


def _randomise(tensors: dict[str, torch.Tensor], folder: Path, trained: list[str]) -> None:
    """Gives a LoRA random factors as large as the first trained one's."""
    model = load_file(folder / f"{trained[0]}.safetensors")
    for name, tensor in tensors.items():
        tensor.copy_(torch.randn_like(tensor) * (2.0 * model[name].std()))
