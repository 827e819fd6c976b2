"""The ``llama_server`` backend: llama.cpp's server holds the LoRAs, a recipe is their scales."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from mergefront.adapters.chat_templates import TemplateReader
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.remote.http.json_answers import field
from mergefront.adapters.remote.llama_server.canary import CanaryReport, run_canary
from mergefront.adapters.remote.llama_server.model import LlamaServerModel
from mergefront.adapters.remote.llama_server.wire import LlamaWire, Lora, last_part
from mergefront.adapters.remote.scales import densities, lora_scales
from mergefront.adapters.remote.server_backend import AppliedOnServer, Connected
from mergefront.adapters.remote.settings import LlamaServerSection
from mergefront.adapters.remote.tokenizer import ServerTokenizer
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.grouping import parameter_of
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace

_USUAL_SLOTS = 4
"""Slots of a server that does not say how many it has."""


class LlamaServerBackend(Connected[LlamaServerSection]):
    """Turns recipes into requests to one llama.cpp server.

    Connecting finds each model's LoRA on the server and runs the canary; raises ``UserError`` when the server is not
    there, lacks a LoRA or is dishonest about scales. ``canary`` has what the canary measured, ``loras`` the ids by
    model.
    """

    kind = "llama_server"

    def _connect(self, places: ModelPlaces) -> None:
        self.client = self._client(self.settings)
        self._wire = LlamaWire(self.client, per_request=self.settings.scales == "request")
        run = self.client.run
        props = run(self._wire.props())
        listed = run(self._wire.loras())
        self.loras = resolve_loras(listed, self.space.models, self.settings.loras)
        self._all_ids = [lora.id for lora in listed]
        self._copies = copies_by_density(listed, self.loras)
        self._context = int(field(props, "default_generation_settings", "n_ctx", kind=int))
        model = last_part(str(field(props, "model_path", kind=str)))
        identity = json.dumps(["llama_server", model, [lora.file for lora in listed]])
        self.client.identify(identity)
        slots = props.get("total_slots")
        slots = slots if isinstance(slots, int) and slots > 0 else _USUAL_SLOTS
        canary = run_canary(self._wire, self.loras, slots=slots, prompt_cache=self.settings.prompt_cache)
        self.canary: CanaryReport = run(canary)
        self.proved = (
            f"canary: each LoRA alone changes the answers. After changes of scales they are those of the scales sent "
            f"(within {self.canary.error:.1g} nats, where two merges differ by {self.canary.distance:.2g})"
        )
        seen = [{str(token): value for token, value in one.items()} for one in self.canary.fingerprint]
        found = self.recognition.identify("", identity, self.client.cache, lambda: list(seen), always=True)
        self.client.identify(f"{found.server} #{found.number}")
        tokenizer = self._tokenizer(props)
        self._tokenization = Tokenization(tokenizer, chats=TemplateReader(tokenizer))
        self._plain_token = run(self._wire.tokenize("a", False))[0]

    def problems(self, verbs: Sequence[Verb], counts_tokens: bool) -> list[str]:
        return densities_without_copies(self.space, self._copies)

    @property
    def reader(self) -> Reader:
        return Reader(self._tokenization, self._context - 1, is_remote=True)

    def _tokenizer(self, props: Mapping[str, Any]) -> ServerTokenizer:
        def id_of(text: object) -> int | None:
            if not isinstance(text, str) or not text:
                return None
            tokens = self.client.run(self._wire.tokenize(text, False))
            return tokens[0] if len(tokens) == 1 else None

        texts = {name: text for name, text in props.items() if isinstance(text, str) and text}
        return ServerTokenizer(
            self.client,
            self._wire.tokenize,
            bos_token=texts.get("bos_token"),
            bos_token_id=id_of(props.get("bos_token")),
            eos_token_id=id_of(props.get("eos_token")),
            eos_token=texts.get("eos_token"),
            chat_template=texts.get("chat_template"),
        )

    def apply(self, recipe: Recipe) -> AppliedOnServer:
        """See ``Backend``; raises ``UserError`` for a method that is no weighted sum of LoRAs."""
        by_name = lora_scales(recipe, self._copies)
        missing = [name for name in by_name if name not in self.loras]
        if missing:
            raise UserError(f"the server's LoRAs do not include {missing[0]!r} {did_you_mean(missing[0], self.loras)}")
        scales = dict.fromkeys(self._all_ids, 0.0)
        kept = densities(recipe)
        for name, scale in by_name.items():
            scales[self._copies[name][kept[name]]] += scale
        model = LlamaServerModel(
            self._wire,
            self._tokenization,
            scales,
            context=self._context,
            plain_token=self._plain_token,
            prompt_cache=self.settings.prompt_cache,
        )
        return AppliedOnServer(nullcontext(model) if self._wire.per_request else self._under_global_scales(model))

    @contextmanager
    def _under_global_scales(self, model: LlamaServerModel) -> Iterator[LanguageModel]:
        """Set on entry, and checked when the block ends without a fault."""
        self.client.run(self._wire.set_global(model.scales))
        yield model
        self.client.run(self._wire.check_global(model.scales))


def copies_by_density(listed: Sequence[Lora], loras: Mapping[str, int]) -> dict[str, dict[float, int]]:
    """The server's ids of each model's LoRA, by the density in the file's name (``NAME@0.5.gguf``; 1 is the LoRA)."""
    stems = {lora.id: lora.file.rpartition(".")[0] for lora in listed}
    found: dict[str, dict[float, int]] = {name: {1.0: whole} for name, whole in loras.items()}
    for name, whole in loras.items():
        for copy, stem in stems.items():
            owner, _, density = stem.rpartition("@")
            with suppress(ValueError):
                if owner == stems[whole]:
                    found[name][round(float(density), 9)] = copy
    return found


def densities_without_copies(space: MergeSpace, copies: Mapping[str, Mapping[float, int]]) -> list[str]:
    """The coefficients of a space, where its method could use copies, that reach densities of which there are none."""
    if not any(method.name == "lora_cat" for method in space.methods):
        return []
    held = set[float].intersection(*(set(one) for one in copies.values()))
    points = {
        **{name: searched.points() for name, searched in space.searched.items()},
        **{name: [value] for name, value in space.fixed.items()},
    }
    shown = ", ".join(f"{density:g}" for density in sorted(held))
    return [
        f"{name} is also where the server holds no copies of the LoRAs; it holds those of density {shown}: give "
        "density steps or choices of these (mergefront gguf --density)"
        for name, reached in points.items()
        if parameter_of(name) == "density" and not (reached is not None and set(reached) <= held)
    ]


def resolve_loras(
    listed: Sequence[Lora], models: Mapping[str, str], given: Mapping[str, str | int] | None
) -> dict[str, int]:
    """The server's id of each model's LoRA; raises ``UserError`` naming every model without one.

    ``given`` maps models to ids or file names. Otherwise a model is the LoRA whose file is called like the
    model, or like the last part of its reference, with or without its ending.
    """
    ids = {lora.id for lora in listed}
    found: dict[str, int] = {}
    problems = []
    for name in given or {}:
        if name not in models:
            problems.append(f"backend.loras: {name!r} is no model of the recipe {did_you_mean(name, models)}")
    for name, reference in models.items():
        wanted = (given or {}).get(name)
        if isinstance(wanted, int):
            if wanted in ids:
                found[name] = wanted
            else:
                problems.append(f"backend.loras.{name}: the server has no LoRA with id {wanted}")
            continue
        words = [wanted] if wanted is not None else [name, last_part(reference.rstrip("/"))]
        matches = _matching(listed, words)
        if len(matches) == 1:
            found[name] = matches[0].id
        else:
            files = ", ".join(lora.file for lora in listed) or "none"
            several = "has several LoRAs" if matches else "has no LoRA"
            problems.append(f"the server {several} called {words[0]!r} (its LoRAs: {files}); name it in backend.loras")
    twice = [name for name, lora in found.items() if list(found.values()).count(lora) > 1]
    if twice:
        problems.append(f"backend.loras: {' and '.join(twice)} are the same LoRA on the server")
    if problems:
        raise UserError("\n".join(problems))
    return found


def _matching(listed: Sequence[Lora], words: Sequence[str]) -> list[Lora]:
    for word in words:
        matches = [lora for lora in listed if word in (lora.file, lora.file.rpartition(".")[0])]
        if matches:
            return matches
    return []
