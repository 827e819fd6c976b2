"""The ``ensemble`` backend: closed models side by side, whose answers a recipe's weights mix.

Nothing is merged: the weights decide a vote over normalised answers, or a mixture of the models' probabilities. The
answers do not depend on the weights, so every model is asked each item once, however long the search.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import (
    Chat,
    Generation,
    GenerationRequest,
    LanguageModel,
    LogLikelihood,
    ScoringRequest,
    Verb,
)
from mergefront.adapters.remote.ensemble.votes import mixture_shares, pooled_choices, pooled_text, weighted_vote
from mergefront.adapters.remote.openai.backend import OpenAIModel, endpoint_problems, endpoint_proof
from mergefront.adapters.remote.openai.echo import are_greedy
from mergefront.adapters.remote.scales import model_weights, not_a_sum
from mergefront.adapters.remote.server_backend import AppliedOnServer, Connected
from mergefront.adapters.remote.settings import EnsembleSection
from mergefront.adapters.starting.posterior import routed
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.recipe import Recipe


class EnsembleModel:
    """A ``LanguageModel``: a weighted mixture of others.

    Continuations of one context that are asked together count as choices of one question. With ``route_to`` the
    weights of a prompt are its posterior over so many members (Branch-Train-Merge, arXiv 2208.03306), from the
    likelihoods of what follows the prompt's first word, since endpoints give none of a first token.
    """

    def __init__(
        self, members: Mapping[str, LanguageModel], weights: Mapping[str, float], route_to: int | None = None
    ) -> None:
        self._members = members
        self._weights = weights
        self._route_to = route_to

    def _weights_of(self, prompts: Iterable[str | Chat]) -> dict[str | Chat, Mapping[str, float]]:
        """The members' weights for each prompt."""
        found: dict[str | Chat, Mapping[str, float]] = dict.fromkeys(prompts, self._weights)
        shares = mixture_shares(self._weights) if self._route_to is not None else None
        if self._route_to is None or shares is None:
            return found
        parts = {prompt: prompt.split(maxsplit=1) for prompt in found if isinstance(prompt, str)}
        asked = [prompt for prompt, words in parts.items() if len(words) > 1]
        requests = [ScoringRequest(prompt[: -len(parts[prompt][1])], parts[prompt][1]) for prompt in asked]
        told = {name: member.loglikelihood(requests) for name, member in self._members.items()} if requests else {}
        for place, prompt in enumerate(asked):
            logprobs = {name: answers[place].logprob for name, answers in told.items()}
            found[prompt] = routed(logprobs, shares, self._route_to)
        return found

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """Log-probabilities under the mixture of the models; see ``votes.pooled_choices``."""
        mixture_shares(self._weights)
        weights = self._weights_of(request.context for request in requests)
        asked = {name: member.loglikelihood(requests) for name, member in self._members.items()}
        questions: dict[str | Chat, list[int]] = {}
        for place, request in enumerate(requests):
            questions.setdefault(request.context, []).append(place)
        pooled: dict[int, float] = {}
        for context, places in questions.items():
            different = {requests[place].continuation for place in places}
            if len(different) > 1:
                values = {name: [answers[place].logprob for place in places] for name, answers in asked.items()}
                pooled.update(zip(places, pooled_choices(values, weights[context]), strict=True))
            else:
                for place in places:
                    one = {name: answers[place].logprob for name, answers in asked.items()}
                    pooled[place] = pooled_text(one, weights[context])
        first = next(iter(asked.values()))
        return [
            LogLikelihood(
                pooled[place],
                first[place].tokens,
                are_greedy(answers[place].is_greedy for name, answers in asked.items() if weights[context][name] > 0),
            )
            for place, context in enumerate(request.context for request in requests)
        ]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """The winners of a weighted vote over the models' answers; a model without a usable one does not vote."""
        asked = {name: member.generate(requests) for name, member in self._members.items()}
        weights = self._weights_of(request.prompt for request in requests)
        return [
            self._voted({name: answers[place] for name, answers in asked.items()}, weights[request.prompt])
            for place, request in enumerate(requests)
        ]

    @staticmethod
    def _voted(said: Mapping[str, Generation], weights: Mapping[str, float]) -> Generation:
        voting = {name: one for name, one in said.items() if weights[name] != 0}
        counts = [one.tokens for one in said.values()]
        known = [count for count in counts if count is not None]
        tokens = sum(known) if len(known) == len(counts) else None
        if voting and all(one.unanswered for one in voting.values()):
            return Generation("", tokens, "stop", unanswered=next(iter(voting.values())).unanswered)
        if voting and all(one.is_thought or one.unanswered for one in voting.values()):
            return Generation("", tokens, "length", is_thought=True)
        answers = {name: one.text for name, one in voting.items() if not one.unanswered and not one.is_thought}
        # Without a vote nothing was said and stopped, so that there is nothing to ask again.
        return Generation(weighted_vote(answers, weights), tokens, "stop" if voting else "length")


class EnsembleBackend(Connected[EnsembleSection]):
    """Closed models by the recipe's names, each at its own endpoint."""

    kind = "ensemble"

    def _connect(self, places: ModelPlaces) -> None:
        members, models = self.settings.members, self.space.models
        problems = [
            f"backend.members: {name!r} is no model of the recipe {did_you_mean(name, models)}"
            for name in members
            if name not in models
        ]
        problems += [f"backend.members: {name!r} is missing" for name in models if name not in members]
        if problems:
            raise UserError("\n".join(problems))
        self._members: dict[str, OpenAIModel] = {}
        for name in models:
            member = members[name]
            client = self._client(member, f"openai {member.url}")
            self._members[name] = OpenAIModel.served(client, member.model, member, places.root)

    def apply(self, recipe: Recipe) -> AppliedOnServer:
        """See ``Backend``; only the recipe's weights count."""
        problem = not_a_sum(recipe)
        if problem is not None:
            raise UserError(f"an ensemble needs one weight for each model: {problem}")
        members = {name: model.recognised(name, self.recognition) for name, model in self._members.items()}
        return AppliedOnServer(nullcontext(EnsembleModel(members, model_weights(recipe), self.settings.route_to)))

    @property
    def reader(self) -> Reader:
        is_chat = all(member.mode == "chat" for member in self.settings.members.values())
        return Reader(is_chat=is_chat, is_remote=True, refuses_chat=self._refusal)

    def _refusal(self, chat: Chat) -> str:
        if self.settings.route_to is not None:
            return "route_to needs log-probabilities of prompts, which are texts; leave chat out"
        refusals = ((name, model.refusal(chat)) for name, model in self._members.items())
        return next((f"members.{name}: {why}" for name, why in refusals if why), "")

    def problems(self, verbs: Sequence[Verb], counts_tokens: bool) -> list[str]:
        if self.settings.route_to is None:
            return endpoint_problems(self._members, self.recognition, verbs, counts_tokens)
        most = len(self._members)
        if self.settings.route_to > most:
            return [f"route_to is {self.settings.route_to}; there are {most} members"]
        asked: tuple[Verb, ...] = ("loglikelihood", *(verb for verb in verbs if verb != "loglikelihood"))
        return endpoint_problems(self._members, self.recognition, asked, counts_tokens)

    def proof(self, verbs: Sequence[Verb]) -> str:
        return endpoint_proof(self._members, verbs)
