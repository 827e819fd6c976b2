"""What crosses the wire, strictly typed: the source of the OpenAPI document.

Lengths are bounded here as far as they do not depend on the pool file's limits.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mergefront.adapters.language_model import Chat, Generation, GenerationRequest, LogLikelihood, Message, Thinking
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.sections import Section

MOST_LAYERS = 4096
Name = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class OpenSession(Section):
    """Begin a session on a pool, by the pool's name."""

    pool: str = Field(max_length=200)


class SessionOpened(Section):
    """``models`` are the names that recipes may use; ``pool_digest`` changes with the content of any file."""

    session_id: str
    models: list[str]
    pool_digest: str


class SessionFound(SessionOpened):
    """A session; ``recipe`` is the merge that the completions routes answer with."""

    recipe: dict[str, Any] | None


class RecipeBody(Section):
    """A merge: mergefront's recipe with names in place of paths. ``base_model`` has to be null."""

    method: Name
    models: dict[Name, Name] = Field(min_length=1, max_length=10_000)
    params: dict[Annotated[str, Field(max_length=500)], bool | Number | Annotated[str, Field(max_length=200)]]
    base_model: None = None
    layers: int = Field(default=0, ge=0, le=MOST_LAYERS)
    blocks: list[Annotated[int, Field(ge=0, le=MOST_LAYERS)]] = Field(default=[], max_length=MOST_LAYERS)
    split: list[Name] = Field(default=[], max_length=64)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def to_recipe(self) -> Recipe:
        """The recipe; raises ``UserError`` for one that does not exist."""
        return Recipe.from_json({**self.model_dump(), "models": {name: name for name in self.models}})


class SetMerge(Section):
    """Choose the merge that a session's completions routes answer with."""

    recipe: RecipeBody


class MessageBody(Section):
    """One turn of a conversation."""

    role: Name
    content: str


class ChatBody(Section):
    """A conversation, written by the pool's own chat template; ``options`` are its variables."""

    messages: list[MessageBody] = Field(min_length=1, max_length=1000)
    options: dict[str, Any] = Field(default_factory=dict)
    today: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    as_text: bool = False
    optional_system: bool = False

    @property
    def texts(self) -> list[str]:
        """What it holds."""
        return [*(message.content for message in self.messages), json.dumps(self.options)]

    def to_chat(self) -> Chat:
        messages = tuple(Message(one.role, one.content) for one in self.messages)
        text, optional = self.as_text, self.optional_system
        return Chat(messages, "", json.dumps(self.options), self.today, as_text=text, optional_system=optional)


class ScoringItem(Section):
    """How likely is ``continuation`` after ``context``?"""

    context: str | ChatBody
    continuation: str


class LogLikelihoodBody(Section):
    """Items to score with one merge."""

    recipe: RecipeBody
    requests: list[ScoringItem] = Field(min_length=1)


class LogLikelihoodAnswer(Section):
    """In the order of the requests."""

    answers: list[LogLikelihood]


class ThinkingBody(Section):
    """The marks around a model's thoughts, and the most tokens of them."""

    start: Annotated[str, Field(min_length=1, max_length=200)]
    end: Annotated[str, Field(min_length=1, max_length=200)]
    most: int = Field(ge=1)


class GenerationItem(Section):
    """Continue ``prompt`` up to the first of ``stop``: greedily, or drawn at a ``temperature`` by ``seed``. With
    ``thinking`` the answer is what comes behind the thoughts."""

    prompt: str | ChatBody
    max_new_tokens: int = Field(default=32, ge=1)
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[], max_length=16)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    thinking: ThinkingBody | None = None

    def to_request(self) -> GenerationRequest:
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt.to_chat()
        thinking = None if self.thinking is None else Thinking(**self.thinking.model_dump())
        return GenerationRequest(
            prompt,
            self.max_new_tokens,
            tuple(self.stop),
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            thinking=thinking,
        )


class GenerateBody(Section):
    """Prompts to continue with one merge."""

    recipe: RecipeBody
    requests: list[GenerationItem] = Field(min_length=1)


class GenerateAnswer(Section):
    """In the order of the requests."""

    answers: list[Generation]


class CompletionBody(BaseModel):
    """OpenAI's completions; ``model`` is a session's id. Decoding is greedy: ``temperature`` has to be 0.

    Fields that OpenAI knows and that change nothing here (``user``, ``seed``) are accepted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(max_length=200)
    prompt: str | Annotated[list[str], Field(min_length=1)]
    max_tokens: int = Field(default=16, ge=0)
    temperature: Literal[0]
    stop: str | list[Annotated[str, Field(min_length=1, max_length=200)]] | None = None
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=1)
    n: Literal[1] = 1
    stream: Literal[False] = False
    user: str | None = None
    seed: int | None = None
