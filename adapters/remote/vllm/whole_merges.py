"""Whole merges in a live vLLM: its workers hold base and experts, merge, and take the merge as their weights.

A few numbers travel and nothing is written. Around every change requests are held, cached prompts go, and the weights
get a version; answers count only while the workers still have it. Written against vLLM 0.32.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

from mergefront.adapters.chat_templates import TemplateReader
from mergefront.adapters.language_model import Generation, GenerationRequest, LogLikelihood, ScoringRequest
from mergefront.adapters.local.loading import tokenizer_and_ends
from mergefront.adapters.local.writing.generation_state import GenerationState
from mergefront.adapters.merging.checkpoint_merges import MergedModels
from mergefront.adapters.remote.drawing import drawing
from mergefront.adapters.remote.http.breaker import BreakerPolicy
from mergefront.adapters.remote.http.client import ClientPolicy, HttpClient, all_of
from mergefront.adapters.remote.http.retry import RetryPolicy
from mergefront.adapters.remote.identity import QUESTIONS
from mergefront.adapters.remote.settings import MERGE_WORKER, VllmEngineSection
from mergefront.adapters.remote.vllm.canary import Step, exchange
from mergefront.adapters.remote.vllm.process import VllmInstallation, VllmProcess
from mergefront.adapters.remote.vllm.ways import ByReload, FromFile, InWorkers, Pairs, Way, raise_first
from mergefront.adapters.remote.vllm.wire import VllmWire, check_room
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import EvaluationError, SearchStoppedError, UserError
from mergefront.optimizer.recipes.recipe import Recipe

T = TypeVar("T")

_NOISE_FLOOR: Mapping[str, float] = {"float32": 1e-3}
"""Nats by which two passes over one text may differ, by what a server computes in; others: ``_COARSE``."""
_COARSE = 0.3
_SHARE = 0.1
"""Of what two models differ by, how far one's answers may be off: far above noise, far below weights that stay."""
_TRIES = 3
"""How often an evaluation begins anew where the server lost its weights."""
_SIGN_EVERY, _SILENT = 10.0, 60.0
"""Seconds between signs of life of a search that waits for answers, and after which one without any has ended."""
_MISSING = re.compile(r"no such|there is no|not found|unknown|no folder", re.I)
"""What a worker says of models that are not there."""
_log = logging.getLogger(__name__)


class VllmMerges:
    """A ``Backend``: recipes become the weights of one vLLM server.

    ``frame`` is the folder of a model like all merges, with its tokenizer; a server that is started begins with it.
    ``single`` is a recipe of one expert alone, by which the canary sees that weights change. ``dtype`` is what merges
    are rounded to; a started server computes in it, on a CPU in float32. ``merges_here``: some methods are known to
    this process alone. Raises ``UserError`` where the server cannot be used: before anything is scored.
    """

    def __init__(
        self,
        models: MergedModels,
        frame: Path,
        single: Recipe,
        settings: VllmEngineSection,
        dtype: str,
        *,
        merges_here: bool = False,
    ) -> None:
        self._models, self._dtype, self._settings = models, dtype, settings
        self._merges_here = merges_here
        self._process: VllmProcess | None = None
        self._way: Way | None = None
        self._client: HttpClient | None = None
        self._lock = threading.Lock()
        self._run, self._numbers = token_hex(4), count()
        self.delta_l1 = float("nan")
        try:
            tokenizer, ends = tokenizer_and_ends(frame)
            self._tokenizer, self._ends = tokenizer, ends
            self._tokenization = Tokenization(tokenizer, chats=TemplateReader(tokenizer))
            url = settings.url or self._started(frame, settings)
            self._client = HttpClient(url, _policy(settings))
            self._wire = VllmWire(self._client)
            self._model, self._context = self._served()
            self.proof = self._prove(single)
        except (EvaluationError, SearchStoppedError) as error:
            self.close()
            raise UserError(f"backend.vllm: {error}") from None
        except BaseException:
            self.close()
            raise

    def apply(self, recipe: Recipe) -> VllmMerge:
        """See ``Backend``."""
        return VllmMerge(self, recipe)

    def close(self) -> None:
        """Let the server go, and end one that was started."""
        if self._way is not None:
            with suppress(EvaluationError, SearchStoppedError):
                self._way.close()
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._process.close()

    @property
    def process_id(self) -> int | None:
        """Of a server that was started here."""
        return None if self._process is None else self._process.process_id

    def scored(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """What the weights that are there say of continuations, all at once."""
        pairs = self._tokenization.pairs([(request.context, request.continuation) for request in requests])
        said = self._ask(all_of(self._scored(context, tokens) for context, tokens in pairs))
        return [
            replace(one, shortened=one.shortened and bool(asked.context))
            for one, asked in zip(said, requests, strict=True)
        ]

    def written(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """What the weights that are there write, read token by token as a model of this process reads its own."""
        prompts = self._tokenization.texts([request.prompt for request in requests])
        return self._ask(all_of(self._written(one, request) for one, request in zip(prompts, requests, strict=True)))

    def enter(self, recipe: Recipe) -> str:
        """Make a merge the server's weights, until ``leave``; returns its version."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("a merge is applied already; leave its block before applying the next one")
        try:
            return self.send(recipe)
        except BaseException:
            self._lock.release()
            raise

    def leave(self) -> None:
        """The end of ``enter``."""
        self._lock.release()

    def send(self, recipe: Recipe | None, exchanged: Pairs = ()) -> str:
        """Make a merge (None: the base) the server's weights; returns its version.

        Raises ``EvaluationError`` for a merge that no model is.
        """
        version, way = f"{self._run}-{next(self._numbers)}", self._way
        assert way is not None

        async def change() -> float:
            async with self._wire.held():
                return await way.send(recipe, version, exchanged)

        self.delta_l1 = self._ask(change())
        # A number that overflows on its way is no answer; texts would be empty and say nothing of it.
        self._answers()
        return version

    def settled(self, version: str, recipe: Recipe, work: Callable[[], T]) -> tuple[T, str]:
        """What ``work`` answers while the server has this version, and the version that it has then.

        Where the server was started again meanwhile, it gets its weights anew and ``work`` is done again. Raises
        ``UserError`` where somebody else gives it weights.
        """
        for _ in range(_TRIES):
            try:
                with self._signs():
                    answer = work()
                if self._has(version):
                    return answer, version
            except (EvaluationError, SearchStoppedError):
                if self._process is None or not self._process.has_ended:
                    raise
                _log.warning("vLLM ended and is started again:\n%s", self._process.last_words())
                self._process.start()
            _log.warning("vLLM lost the weights of a merge; they are sent again, and what it answered is left out")
            assert self._way is not None
            self._way.open()
            version = self.send(recipe)
        raise EvaluationError(f"vLLM lost a merge's weights {_TRIES} times while it was scored", kind="weights lost")

    @contextmanager
    def _signs(self) -> Iterator[None]:
        """Let the server hear of this search while it waits for long answers."""
        is_over = threading.Event()

        def give() -> None:
            while not is_over.wait(_SIGN_EVERY):
                with suppress(EvaluationError, SearchStoppedError, UserError):
                    if self._way is not None:
                        self._ask(self._way.versions())

        signs = threading.Thread(target=give, daemon=True)
        signs.start()
        try:
            yield
        finally:
            is_over.set()
            signs.join()

    def _started(self, frame: Path, settings: VllmEngineSection) -> str:
        found = VllmInstallation.found(settings.python)
        dtype = self._dtype if found.has_accelerator else "float32"
        self._process = VllmProcess(found, frame, dtype, settings.arguments, settings.start_timeout)
        return self._process.url

    def _served(self) -> tuple[str, int]:
        """The served model's name and the most tokens that it reads; its workers have the models open then."""
        [(name, longest), *_] = self._ask(self._wire.models()) or [("", None)]
        self._ask(self._wire.refuse_unusable())
        self._state = self._take()
        if self._state["quantization"] is not None:
            raise UserError(
                f"backend.vllm: the server's model is quantised ({self._state['quantization']}), which takes no "
                "merged weights; start it without"
            )
        coarse = {"float32": ("bfloat16", "float16"), "bfloat16": ("float16",), "float16": ("bfloat16",)}
        if self._state["dtype"] in coarse.get(self._dtype, ()):
            raise UserError(
                f"backend.vllm: merges are {self._dtype}, and the server computes in {self._state['dtype']}, which "
                f"would round them in silence; start it with --dtype {self._dtype} (or float32)"
            )
        return name, longest if longest is not None else 2048

    def _take(self) -> Mapping[str, Any]:
        """Choose the way by which merges come to the server, and make it ready; returns what the server is."""
        wanted, client = self._settings.weights, self._client
        assert client is not None
        if wanted == "merge" and self._merges_here:
            raise UserError("backend.vllm: methods of your own are merged here; use weights: auto, file or reload")
        folder = None if self._settings.folder is None else Path(self._settings.folder)
        files = (client, self._models, self._run, folder, self._settings.server_folder)
        described = self._ask(self._wire.described())
        if wanted == "reload" or (wanted == "auto" and not described["has_merge_worker"]):
            self._way = ByReload(*files)
            self._way.open()
            return described
        if not described["has_merge_worker"]:
            raise UserError(
                f"backend.vllm: the server has no worker that merges; start it with --worker-extension-cls "
                f"{MERGE_WORKER}, or set weights: reload"
            )
        state = self._wait_for_others()
        if wanted != "file" and not self._merges_here:
            self._way = InWorkers(client, self._models, self._run)
            try:
                self._way.open()
                return state
            except UserError as error:
                if wanted == "merge" or not _MISSING.search(str(error)):
                    raise
                _log.warning("%s; merges are made here and read there from a file", error)
        self._way = FromFile(*files)
        self._way.open()
        return state

    def _wait_for_others(self) -> Mapping[str, Any]:
        """Wait for a search that has ended without a word. Raises ``UserError`` for one that lives."""
        before = -1.0
        while True:
            states = self._ask(self._wire.call_workers("mergefront_state"))
            raise_first(states)
            [state, *_] = states
            if state["version"] is None or (silent := float(state["silent"])) >= _SILENT:
                return state
            if silent < before:
                raise UserError(
                    "backend.vllm: another search uses this server; wait for its end, or give each study a server of "
                    "its own"
                )
            if before < 0:
                _log.warning("a search used this server %.0f seconds ago; waiting to see whether it lives", silent)
            before = silent
            time.sleep(1.0)

    def _prove(self, single: Recipe) -> str:
        """See that weights change, whole, and change back; returns what was seen. Raises ``UserError``."""
        begun = self._answers()
        self.send(None)
        base, again = self._answers(), self._answers()
        noise = max(5 * _furthest(base, again), _NOISE_FLOOR.get(self._state["dtype"], _COARSE))
        if self._process is not None and _furthest(begun, base) > noise:
            raise UserError(
                f"canary: the base's weights answer {_furthest(begun, base):.3g} nats otherwise once they are sent to "
                f"vLLM than as it reads them from their folder; this vLLM does not take this model's weights"
            )
        exchanged = self._exchange_tokens(noise)
        self.send(single)
        changed = _furthest(base, self._answers())
        if changed <= noise:
            _log.warning("canary: %s alone answers as the base does (within %.2g nats)", _only(single), noise)
        self.send(None)
        back = _furthest(base, self._answers())
        if back > noise:
            raise UserError(
                f"canary: after an expert's weights the base's answer {back:.3g} nats otherwise than before; this vLLM "
                "keeps something of the weights before"
            )
        return (
            f"vLLM in {self._state['dtype']}: the base's weights come back to {back:.1g} nats, an expert's differ by "
            f"{changed:.2g}, and {exchanged}"
        )

    def _exchange_tokens(self, noise: float) -> str:
        """Exchange tokens' rows in embeddings and head: all answers must be exchanged as well. Raises ``UserError``."""
        tried = exchange(self._tokenization.texts(QUESTIONS), len(self._tokenizer), self._context)
        here, there = self._forced(tried.asked), self._forced(tried.exchanged)
        distance = _furthest(here, there)
        self.send(None, tried.pairs)
        # Both are prompts by now that the server read under the weights before.
        off = max(_furthest(here, self._forced(tried.exchanged)), _furthest(there, self._forced(tried.asked)))
        if off > max(noise, _SHARE * distance):
            raise UserError(
                f"canary: where tokens' embeddings are exchanged the answers are not (off by {off:.3g} nats; they "
                f"differ by {distance:.3g}): this vLLM keeps the embeddings, the output head or the prompts of the "
                "weights before"
            )
        return f"exchanged embeddings exchange the answers (off by {off:.1g}, where old ones are by {distance:.2g})"

    def _forced(self, steps: Sequence[Step]) -> list[float]:
        """The log-probability of each step's token; unlike those of whole texts they use cached prompts."""
        asked = all_of(self._wire.force(self._model, known, token, "", cached=False) for known, token in steps)
        return [one.logprob for one in self._ask(asked)]

    def _answers(self) -> list[float]:
        """Log-probabilities of a few texts; raises ``EvaluationError`` where they are no numbers."""
        texts = self._tokenization.texts(QUESTIONS)
        return [one.logprob for one in self._ask(all_of(self._scored(text[:1], text[1:]) for text in texts))]

    def _has(self, version: str) -> bool:
        """Whether every worker has this version. Raises ``UserError`` where it has that of another search."""
        assert self._way is not None
        versions = self._ask(self._way.versions())
        if any(one is not None and not one.startswith(f"{self._run}-") for one in versions):
            raise UserError(
                "backend.vllm: another search gives this server weights; give each study a server of its own"
            )
        return all(one == version for one in versions)

    async def _scored(self, context: Sequence[int], tokens: Sequence[int]) -> LogLikelihood:
        """A continuation that is longer than the server reads is scored window by window, as everywhere."""
        # One token more is written.
        longest, text = self._context - 2, (*context, *tokens)
        parts = []
        for start in range(0, len(tokens), longest):
            count_here = min(longest, len(tokens) - start)
            seam = len(context) + start
            known = text[max(0, seam + count_here - 1 - longest) : seam]
            parts.append(self._wire.scored(self._model, known, text[seam : seam + count_here]))
        said = await all_of(parts)
        logprob, is_greedy = sum(one.logprob for one in said), all(one.is_greedy for one in said)
        return LogLikelihood(logprob, len(tokens), is_greedy, shortened=len(text) - 1 > longest)

    async def _written(self, prompt: Sequence[int], request: GenerationRequest) -> Generation:
        check_room(self._context, request.most_tokens)
        known = prompt[-(self._context - request.most_tokens) :]
        more = dict(drawing(request))
        if request.stop and request.thinking is None:
            more["stop"] = list(request.stop)
        tokens = await self._wire.continued(self._model, known, request.most_tokens, sorted(self._ends), more)
        is_open = self._tokenization.opens_thoughts(request)
        state = GenerationState(request, self._tokenizer, self._tokenization, self._ends, is_open)
        for token in tokens:
            if state.done:
                break
            state.append(token)
        said = state.generation()
        return replace(said, shortened=len(known) < len(prompt))

    def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._client is not None
        return self._client.run(work)


class VllmMerge:
    """A recipe applied to ``VllmMerges`` (see ``AppliedMerge``); it yields itself, a ``LanguageModel``."""

    def __init__(self, engine: VllmMerges, recipe: Recipe) -> None:
        self._engine, self._recipe = engine, recipe
        self._version = ""
        self.delta_l1: float | None = None
        self.seconds = 0.0

    def __enter__(self) -> VllmMerge:
        started = time.perf_counter()
        self._version = self._engine.enter(self._recipe)
        self.seconds, self.delta_l1 = time.perf_counter() - started, self._engine.delta_l1
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.leave()

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        return self._settled(lambda: self._engine.scored(requests))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return self._settled(lambda: self._engine.written(requests))

    def _settled(self, work: Callable[[], T]) -> T:
        answer, self._version = self._engine.settled(self._version, self._recipe, work)
        return answer


def engine_there(settings: VllmEngineSection) -> str:
    """Which vLLM there is, without starting one or changing its weights. Raises ``UserError`` where none serves."""
    if settings.url is None:
        found = VllmInstallation.found(settings.python)
        where = "an accelerator" if found.has_accelerator else "the CPU"
        return (
            f"engine: vLLM {found.version} on {where}, of {found.python}; it is started and tried (canary) when the "
            "search begins"
        )
    with closing(HttpClient(settings.url, _policy(settings))) as client:
        wire = VllmWire(client)
        try:
            client.run(wire.refuse_unusable())
            described = client.run(wire.described())
        except (EvaluationError, SearchStoppedError) as error:
            raise UserError(f"backend.vllm: {error}") from None
    how = "its workers merge" if described["has_merge_worker"] else "it reads what is merged here"
    return f"engine: vLLM at {settings.url} serves {described['model']} in {described['dtype']}; {how}"


def _policy(settings: VllmEngineSection) -> ClientPolicy:
    return ClientPolicy(
        settings.concurrency,
        settings.timeout,
        longest_response=2**28,
        retry=RetryPolicy(4),
        breaker=BreakerPolicy(give_up=60.0),
        where="backend.vllm",
    )


def _only(recipe: Recipe) -> str:
    return ", ".join(name for name in recipe.models if recipe.params.get(f"weight[{name}]"))


def _furthest(one: Sequence[float], two: Sequence[float]) -> float:
    return max((abs(first - second) for first, second in zip(one, two, strict=True)), default=0.0)
