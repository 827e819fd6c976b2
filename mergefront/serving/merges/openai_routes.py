"""Routes that OpenAI's clients know: a session's merge as a model called by the session's id.

Decoding is greedy, so ``temperature`` has to be 0; ``logprobs`` come with ``echo``. What is not supported is
refused.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException, Request

from mergefront.adapters.language_model import Generation, GenerationRequest
from mergefront.optimizer.errors import UserError
from mergefront.serving.merges import wire
from mergefront.serving.merges.dependencies import Asker, Service
from mergefront.serving.merges.echo import Echo, echo
from mergefront.serving.merges.service import Question, UnknownSessionError

if TYPE_CHECKING:
    from mergefront.adapters.local.model import HuggingFaceModel

routes = APIRouter(prefix="/v1")


@dataclass(frozen=True)
class _Answered:
    """What was generated, the prompts' echoes (if asked for), and how many tokens the prompts have."""

    generations: list[Generation]
    echoes: list[Echo]
    read: int

    @property
    def generated(self) -> int:
        return sum(one.tokens or 0 for one in self.generations)


@routes.get("/models", summary="The client's sessions that have a merge, as models.")
async def models(service: Service, client: Asker) -> dict[str, Any]:
    found = [session for session in service.state.sessions(client.name) if session.recipe is not None]
    listed = [
        {"id": session.id, "object": "model", "created": int(session.created), "owned_by": service.file.pool}
        for session in found
    ]
    return {"object": "list", "data": listed}


@routes.post("/completions", summary="OpenAI's completions, answered by a session's merge.")
async def completions(body: wire.CompletionBody, request: Request, service: Service, client: Asker) -> dict[str, Any]:
    try:
        session = service.session(body.model, client)
    except UnknownSessionError:
        raise HTTPException(404, "there is no such model; use a session's id") from None
    if session.recipe is None:
        raise UserError("this session has no merge yet; choose one: PUT /v1/sessions/ID/merge")
    if body.logprobs is not None and not (body.echo and body.max_tokens <= 1):
        raise UserError("logprobs are given with echo, and max_tokens 0 or 1")
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if "" in stop:
        raise UserError("stop: an empty text would stop at once")
    wanted = [GenerationRequest(prompt, body.max_tokens, stop) for prompt in prompts]

    def work(model: HuggingFaceModel) -> _Answered:
        generations = model.generate(wanted) if body.max_tokens else [Generation("", 0, "length")] * len(wanted)
        echoes = [echo(model, prompt) for prompt in prompts] if body.logprobs is not None else []
        return _Answered(generations, echoes, sum(len(ids) for ids in model.tokenizer(prompts)["input_ids"]))

    question = Question(
        "completions",
        wire.RecipeBody.model_validate(session.recipe).to_recipe(),
        [*prompts, *stop],
        [body.max_tokens] * len(prompts),
        work,
        lambda answered: answered.generated + (answered.read if answered.echoes else 0),
    )
    answered = await service.ask(client, session, question, request.is_disconnected)
    choices = []
    for index, (prompt, generation) in enumerate(zip(prompts, answered.generations, strict=True)):
        choices.append(
            {
                "index": index,
                "text": prompt + generation.text if body.echo else generation.text,
                "finish_reason": generation.finish,
                "logprobs": _logprobs(answered.echoes[index]) if answered.echoes else None,
            }
        )
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": session.id,
        "choices": choices,
        "usage": {
            "prompt_tokens": answered.read,
            "completion_tokens": answered.generated,
            "total_tokens": answered.read + answered.generated,
        },
    }


def _logprobs(scored: Echo) -> dict[str, Any]:
    """The prompt's tokens; what is generated after them has no entry."""
    return {
        "tokens": scored.tokens,
        "token_logprobs": scored.logprobs,
        "text_offset": scored.offsets,
        "top_logprobs": [None if best is None else {best[0]: best[1]} for best in scored.best],
    }
