"""Coefficients learned without labels: a merge that follows each expert on that expert's own prompts.

Expert Merging (arXiv 2509.25712): the merge is base + sum_k a_k tau_k with a coefficient a_k per expert and part of the
model (layer, block, kind of module). On a few prompts of expert k its hidden states should be those of k, and its next
tokens distributed as k's are; only the a are trained. The gradient of one is <dL/dW, tau_k> over the tensors W that it
moves. A weight's gradient is let go as soon as its products are taken, so that learning takes the memory of asking the
model one prompt, and one tensor more.

Chosen otherwise than in the paper, by what SmolLM2-135M's example gains: prompts go on with what the expert itself
answers, since that is where experts differ. Hidden states are divided by their root mean square, as the norm of the
next layer does, since a few of them are hundreds of times as large as all others. Each layer's squared error and the
divergence of the next tokens are in units of the base's: 1 is as far as the base is, 0 is the expert, so that experts
and layers count alike. And coefficients start at 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mergefront.adapters.language_model import GenerationRequest
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import CoefficientName
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace

MOST_TOKENS = 128
"""Of a prompt with its answer; the last ones count."""


@dataclass(frozen=True)
class AlignmentSettings:
    """``temperature`` is that of the next tokens; ``evenness`` the price of the mean distance of a coefficient from the
    mean of its expert's; ``rate`` is Adam's at the first step, and falls to 0 as a cosine."""

    steps: int = 50
    temperature: float = 1.0
    evenness: float = 0.1
    rate: float = 0.1
    start: float = 0.3


@dataclass(frozen=True)
class Read:
    """What a model makes of one text: hidden states (layers + 1 of ``tokens x width``), each of root mean square 1, and
    the log-probabilities of the next tokens at the temperature (``tokens x vocabulary``)."""

    hidden: tuple[torch.Tensor, ...]
    next_tokens: torch.Tensor


@dataclass(frozen=True)
class Lesson:
    """One expert's texts in tokens, what the expert makes of them, and how far the base is from that: the mean squared
    error of each layer, and the divergence of the next tokens."""

    texts: tuple[torch.Tensor, ...]
    targets: tuple[Read, ...]
    unit_hidden: tuple[float, ...]
    unit_next: float


def distance(read: Read, lesson: Lesson, text: int) -> torch.Tensor:
    """How far a model is from the expert on one of its texts: in the hidden states plus in the next tokens, each in
    units of the base's distance over all texts. Layers in which the two do not differ do not count."""
    parts = [
        error / unit
        for error, unit in zip(_errors(read, lesson.targets[text]), lesson.unit_hidden, strict=True)
        if unit > 0
    ]
    found = torch.stack(parts).mean() if parts else read.next_tokens.new_zeros(())
    if lesson.unit_next > 0:
        found = found + _divergence(read, lesson.targets[text]) / lesson.unit_next
    return found


def _scaled(states: torch.Tensor) -> torch.Tensor:
    """Hidden states of one text (``1 x tokens x width``) divided by their root mean square; zeros stay."""
    found = states[0].float()
    return found / found.square().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def _errors(read: Read, target: Read) -> list[torch.Tensor]:
    return [(a - b).square().mean() for a, b in zip(read.hidden, target.hidden, strict=True)]


def _divergence(read: Read, target: Read) -> torch.Tensor:
    """KL(target | read), the mean over tokens."""
    return (target.next_tokens.exp() * (target.next_tokens - read.next_tokens)).sum(-1).mean()


class Aligner:
    """Learns the weights of a space's experts on a backend.

    Raises ``UserError`` where the live model is no causal language model, and where a tensor that experts change is no
    view of a parameter, so that its gradient is not known.
    """

    def __init__(self, backend: LocalBackend, space: MergeSpace, settings: AlignmentSettings) -> None:
        if not isinstance(backend.live, HuggingFaceModel):
            raise UserError(
                f"it reads the hidden states of a causal language model, and {type(backend.model).__name__} is none"
            )
        self._backend = backend
        self._space = space
        self._settings = settings
        self._model: Any = backend.model
        self._owners = {
            str(CoefficientName("weight", expert, *scope)): expert
            for expert in space.models
            for scope in space.grouping.scopes()
        }
        self.names = tuple(self._owners)
        """Of the coefficients that are learned."""
        self._parts = self._parts_of_parameters()

    def lesson(self, expert: str, requests: Sequence[GenerationRequest]) -> Lesson:
        """An expert's prompts, each with what the expert answers, as what the merge should follow."""
        weights = {name: float(owner == expert) for name, owner in self._owners.items()}
        with self._backend.apply(self.recipe(weights)) as model:
            answers = model.generate(requests)
            pairs = [(one.prompt, said.text) for one, said in zip(requests, answers, strict=True)]
            read = [tokens[-MOST_TOKENS:] for tokens in model.tokens(pairs)]
            texts = tuple(torch.tensor([tokens], device=self._model.device) for tokens in read)
            with torch.no_grad():
                targets = tuple(map(self.read, texts))
        with self._backend.apply(self.recipe(dict.fromkeys(self.names, 0.0))), torch.no_grad():
            reads = [self.read(text) for text in texts]
        errors = [_errors(read, target) for read, target in zip(reads, targets, strict=True)]
        apart = [float(_divergence(read, target)) for read, target in zip(reads, targets, strict=True)]
        units = tuple(sum(map(float, of_layer)) / len(texts) for of_layer in zip(*errors, strict=True))
        return Lesson(texts, targets, units, sum(apart) / len(apart))

    def read(self, text: torch.Tensor) -> Read:
        """What the live model makes of a text (``1 x tokens``)."""
        output = self._model(input_ids=text, output_hidden_states=True, use_cache=False)
        next_tokens = torch.log_softmax(output.logits[0].float() / self._settings.temperature, -1)
        return Read(tuple(map(_scaled, output.hidden_states)), next_tokens)

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The sum of whole task vectors with these weights."""
        return self._space.make("task_arithmetic", weights)

    def gradient(
        self, weights: Mapping[str, float], lessons: Sequence[Lesson], step: int
    ) -> tuple[float, dict[str, float]]:
        """The mean distance from each expert on one of its texts, which ``step`` says, and its gradient."""
        found, total = dict.fromkeys(self.names, 0.0), 0.0
        with self._backend.apply(self.recipe(weights)), self._gradients_into(found):
            for lesson in lessons:
                text = step % len(lesson.texts)
                loss = distance(self.read(lesson.texts[text]), lesson, text) / len(lessons)
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        return total, found

    def learn(
        self, lessons: Sequence[Lesson], on_step: Callable[[int, float], None] = lambda step, loss: None
    ) -> dict[str, float]:
        """The weights after all steps; ``on_step`` gets each step's number and distance."""
        settings = self._settings
        raw = torch.full((len(self.names),), math.log(settings.start / (1 - settings.start)), requires_grad=True)
        optimiser = torch.optim.Adam([raw], lr=settings.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
        for step in range(settings.steps):
            weights = torch.sigmoid(raw)
            named = dict(zip(self.names, weights.tolist(), strict=True))
            loss, slopes = self.gradient(named, lessons, step)
            of_experts = weights.view(len(self._space.models), -1)
            uneven = (of_experts - of_experts.mean(1, keepdim=True)).abs().mean()
            optimiser.zero_grad()
            (weights @ torch.tensor([slopes[name] for name in self.names]) + settings.evenness * uneven).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            on_step(step, loss)
        return dict(zip(self.names, torch.sigmoid(raw).tolist(), strict=True))

    @contextmanager
    def _gradients_into(self, found: dict[str, float]) -> Iterator[None]:
        """Within the block each backward pass adds the gradient of every coefficient to ``found``."""
        grouping, engine, handles = self._space.grouping, self._backend.engine, []

        def take(parameter: torch.Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            for name, part in self._parts[parameter]:
                slope = part(gradient).float()
                for expert in self._space.models:
                    vector = engine.task_vector(name, expert)
                    if vector is not None:
                        where = (grouping.module_of(name), grouping.position_of(name))
                        found[str(CoefficientName("weight", expert, *where))] += float(
                            (slope * vector.to(slope.device)).sum()
                        )

        try:
            for parameter in self._parts:
                parameter.requires_grad_(True)
                hooked: Any = parameter  # torch has no types for its hooks
                handles.append(hooked.register_post_accumulate_grad_hook(take))
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in self._parts:
                parameter.requires_grad_(False)
                parameter.grad = None

    def _parts_of_parameters(self) -> dict[torch.Tensor, list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]]:
        """The parameters that experts change: the stored tensors in each, and what takes their part of its gradient."""
        by_memory = {one.untyped_storage().data_ptr(): one for one in self._model.parameters()}
        found: dict[torch.Tensor, list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]] = {}
        known: set[tuple[int, int]] = set()
        for name, view in self._backend.stored.items():
            if not any(self._backend.engine.task_vector(name, expert) is not None for expert in self._space.models):
                continue
            parameter = by_memory.get(view.untyped_storage().data_ptr())
            if parameter is None:
                raise UserError(f"{name} is no part of a live parameter, so that its gradient is not known")
            place = (view.data_ptr(), view.numel())
            if place in known:
                continue  # a tied tensor is merged once
            known.add(place)
            found.setdefault(parameter, []).append((name, _part(view, parameter)))
        return found


def _part(view: torch.Tensor, parameter: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What takes the entries of a gradient that belong to a view of the parameter."""
    shape, stride, offset = view.shape, view.stride(), view.storage_offset() - parameter.storage_offset()
    if shape == parameter.shape and stride == parameter.stride():
        return lambda gradient: gradient
    return lambda gradient: gradient.contiguous().as_strided(shape, stride, offset)
