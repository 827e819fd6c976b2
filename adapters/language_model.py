"""What a task asks of a model: two verbs, the same for local weights and for every server.

The verbs are those of the LM evaluation harness: the log-likelihood of a continuation, and greedy
generation. Requests and answers are plain values; answers come back in the order of the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.errors import UserError

Tokens = tuple[int, ...]

Verb = Literal["loglikelihood", "generate", "classify", "embed", "python"]
"""What a task asks: a verb of a language model, one of a ``TextModel``, or a Python function over the live model."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is mostly "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation that an assistant's turn follows, as the model's chat template writes it.

    ``template`` is the text of another template, or the name of one of several that the model has; ``options`` are
    variables of the template as a JSON object, ``today`` the date that it writes (see ``chat_templates``).
    ``as_text`` is how the LM evaluation harness reads it: what the template writes is a text like any other, which a
    continuation follows as it is. ``optional_system``: a template that refuses a system message does without.
    """

    messages: tuple[Message, ...]
    template: str = ""
    options: str = "{}"
    today: str = ""
    as_text: bool = False
    optional_system: bool = False

    @property
    def is_begun(self) -> bool:
        """Whether the assistant's turn is begun: its last message goes on."""
        return self.messages[-1].role == "assistant"


BEGUN = (
    "the server's chat route begins the assistant's turn itself, and the task has (gen_prefix); leave the template out"
)
"""Why some servers cannot be put a conversation that ``is_begun``."""


@dataclass(frozen=True)
class ScoringRequest:
    """How likely is ``continuation`` after ``context``?

    Both are encoded together and split where the context's own tokens end, so that tokens which
    span the seam are those that the model would see in running text; spaces at the end of the
    context count to the continuation. An empty context stands for the start of a text. After a ``Chat`` the
    continuation is what the assistant says, as the template writes it in the assistant's turn.
    ``image`` is the path of a picture that is shown before the context.
    """

    context: str | Chat
    continuation: str
    image: str = ""


@dataclass(frozen=True)
class LogLikelihood:
    """``logprob`` is the sum over the continuation's ``tokens`` (nats, at most 0); ``is_greedy``
    says whether each of them is the model's most likely token (None where a server does not say); ``shortened``, that
    the context was longer than the model reads and lost its beginning."""

    logprob: float
    tokens: int
    is_greedy: bool | None
    shortened: bool = False


class Wanted(Protocol):
    """What is asked of an answer, where that can be known before its end; equal and hashed by its content."""

    @property
    def drafts(self) -> tuple[str, ...]:
        """Texts that the answer may well be, as they follow the prompt."""
        ...

    @property
    def ends(self) -> tuple[str, ...]:
        """Texts that end an answer behind its first character that is no white space."""
        ...

    def is_open(self, beginning: str) -> bool:
        """Whether it depends on what follows ``beginning``; an answer may be broken off where it does not."""
        ...


@dataclass(frozen=True)
class Thinking:
    """A model writes its thoughts before its answer, from ``start`` to ``end``, in ``most`` tokens at most."""

    start: str
    end: str
    most: int

    def is_open(self, text: str) -> bool:
        """Whether a text ends inside thoughts."""
        return text.rfind(self.start) > text.rfind(self.end)


@dataclass(frozen=True)
class GenerationRequest:
    """Continue ``prompt`` for at most ``max_new_tokens``, up to the first of the ``stop`` strings.

    Each token is the likeliest one or, at a ``temperature`` above 0, drawn by ``seed`` from the likeliest tokens that
    have the probability ``top_p`` together. With ``thinking`` the answer is what comes after the thoughts, which
    neither ``stop`` nor ``max_new_tokens`` bounds. ``image`` is the path of a picture that is shown before the prompt.
    A model need not write more of the likeliest answer than is ``wanted``.
    """

    prompt: str | Chat
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    image: str = ""
    wanted: Wanted | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    thinking: Thinking | None = None

    @property
    def most_tokens(self) -> int:
        """The most tokens that are written, thoughts included."""
        return self.max_new_tokens + (0 if self.thinking is None else self.thinking.most)


@dataclass(frozen=True)
class Margins:
    """How firmly an answer was written, in nats: the least ``lead`` of its tokens over the next likely ones.

    ``shortfall`` (at most 0) is by how much the likeliest token of a draft fell short where the answer left the last of
    its drafts; None where it did not, or has none.
    """

    lead: float
    shortfall: float | None


@dataclass(frozen=True)
class Generation:
    """The generated ``text`` without the prompt and without the stop string.

    ``tokens`` counts what was generated, stop included; None where a server does not say. ``finish`` is "length" when
    the model was cut off, "stop" when it ended by itself or at a stop string, and "settled" when what was wanted of the
    answer was known before its end. ``unanswered`` says why there is no
    usable text, which is empty then (such as "content filter"): an outcome of the item, no failure of the server.
    ``shortened``: the prompt was longer than the model reads and lost its beginning. ``is_thought``: it ended inside
    the model's thoughts, so that there is no answer; ``is_parted``: a server took the thoughts out of the text.
    ``margins`` are there where something was wanted of it and the model knows them.
    """

    text: str
    tokens: int | None
    finish: Literal["stop", "length", "settled"]
    unanswered: str = ""
    shortened: bool = False
    is_thought: bool = False
    is_parted: bool = False
    margins: Margins | None = None


@runtime_checkable
class LanguageModel(Protocol):
    """A model that can be asked. May raise ``EvaluationError`` when it answers with NaN."""

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]: ...


class TextModel(Protocol):
    """A model that is asked about whole texts, without generating. May raise ``EvaluationError`` for NaN."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its classes, in the order of their scores."""

    @property
    def similarity(self) -> str:
        """How its vectors are compared: "cosine", "dot", "euclidean" or "manhattan"."""

    def classify(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, ...]]:
        """The score of each class for each text, or pair of texts (an empty second one: no pair)."""

    def embed(self, texts: Sequence[str], role: str) -> Array:
        """The vectors of texts (``n x d``); ``role`` is "query", "document" or "" (neither)."""


def text_model(model: object) -> TextModel:
    """A model as one that is asked about whole texts; raises ``UserError`` for one that cannot be."""
    if not hasattr(type(model), "embed"):
        raise UserError("texts were put to a model that has neither classes nor vectors of them")
    return cast(TextModel, model)
