"""A study's definition: one typed object from the study file to the database and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.optimizer.racing.race import RacingSettings
from mergefront.optimizer.recipes.anchors import DEFAULT_ANCHORS
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.recipes.stacks import Modalities
from mergefront.optimizer.scores.constraints import Constraint, constraints_from
from mergefront.optimizer.scores.objectives import Objective, objectives_from
from mergefront.optimizer.search.stopping import NEVER, StopRule
from mergefront.study.rules import SCORING, completed


@dataclass(frozen=True)
class EvaluatorDefinition:
    """How recipes are scored, as data from which the evaluator is made again.

    ``type``: "local" (weights on this machine), "server" (a backend over HTTP), "function" (``call`` names a user's
    ``package.module:name``), "python" (``call`` names a function given to ``search``, which no other process can
    make) or "external" (an outside harness asks for recipes and tells their scores). ``backend`` and ``tasks`` are
    sections of the study file with every default filled in; ``content`` has hashes of the files that scores depend on,
    by their path in the study file, and the commits of models on the Hub by their names there.
    """

    type: Literal["local", "server", "function", "python", "external"]
    call: str = ""
    backend: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    content: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    judges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Sections of the models that judge answers, without what only says how they are reached."""

    @property
    def asks_models(self) -> bool:
        """Whether it asks models about tasks; otherwise a function of the user's or an outside harness scores."""
        return self.type in ("local", "server")

    def to_json(self) -> dict[str, Any]:
        """What is stored."""
        if self.type == "external":
            return {"type": self.type}
        if not self.asks_models:
            return {"type": self.type, "function" if self.type == "python" else "call": self.call}
        return {
            "type": self.type,
            "backend": dict(self.backend),
            "seed": self.seed,
            "tasks": {name: dict(task) for name, task in self.tasks.items()},
            "content": dict(self.content),
            **({"judges": {name: dict(one) for name, one in self.judges.items()}} if self.judges else {}),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> EvaluatorDefinition:
        """Read what ``to_json`` wrote."""
        rest = dict(stored)
        call = rest.pop("function", rest.pop("call", ""))
        return cls(call=call, **rest)


@dataclass(frozen=True)
class StudyDefinition:
    """What a study file or a call of ``search`` says, with every default filled in.

    ``root`` is the folder that relative paths start from; ``runtime`` says where the evaluator runs ("device",
    "url"); ``method_files`` are the user's own merge methods, content hashes by path; ``allow`` names differences
    between the models that are harmless (``compare_models``); ``scoring`` is the version of the rules by which scores
    are computed (``mergefront.study.rules``). Name, storage, root, runtime, stop rule, evaluations and ``allow`` may
    change between runs of one study; the rest stays what the study was started with.

    ``left_out`` has the paths in ``to_json`` that the user did not write: in a study that exists they take the
    stored values.
    """

    name: str
    space: MergeSpace
    objectives: tuple[Objective, ...]
    evaluator: EvaluatorDefinition
    sampler: str
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    sampler_version: int = 1
    seed: int = 0
    evaluations: int | None = None
    """The whole budget, anchors included; None where the user left it to the study."""
    storage: str = ""
    root: Path = Path(".")
    runtime: Mapping[str, Any] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    stop: StopRule = NEVER
    warm_start: tuple[Mapping[str, str], ...] = ()
    racing: RacingSettings | None = None
    method_files: Mapping[str, str] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    tokenizer_source: str | Mapping[str, Any] | None = None
    """Whose tokens the merges have, as the study file says it; None: all models have the same."""
    modalities: Modalities = field(default_factory=Modalities)
    """Which stacks are merged, and whose towers the merges have."""
    scoring: int = SCORING
    served: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What tells the models behind a server apart from others of their names (see ``Recognition``)."""
    anchors: tuple[str, ...] = (DEFAULT_ANCHORS,)
    """What is evaluated before the sampler proposes: the anchors, and start points by their names."""
    aligned: Mapping[str, Any] = field(default_factory=dict)
    """How weights are learned from prompts, where they are."""
    centres: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Start points around which a new study searches, and the widths, by the names that the file has for weights; the
    space of a study that is stored has the ranges."""
    learned: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The weights of start points, by their names: found once, when the study began."""
    compares: bool = False
    """Whether it compares given merges instead of searching (see ``mergefront.running.compare``)."""
    left_out: frozenset[tuple[str, ...]] = frozenset()

    @property
    def places(self) -> ModelPlaces:
        """Where its models lie; names on the Hub stand for the commits that the study was begun with."""
        return ModelPlaces(self.root, self.evaluator.content)

    def to_json(self) -> dict[str, Any]:
        """What is stored of it beside name, root and budget."""
        made: dict[str, Any] = {
            "space": self.space.to_json(),
            "objectives": [asdict(objective) for objective in self.objectives],
            "constraints": [str(constraint) for constraint in self.constraints],
            "stop": self.stop.model_dump(),
            "warm_start": [dict(entry) for entry in self.warm_start],
            "evaluator": self.evaluator.to_json(),
            "sampler": {
                "name": self.sampler,
                "options": dict(self.sampler_options),
                "version": self.sampler_version,
            },
            "seed": self.seed,
            "runtime": dict(self.runtime),
            "racing": None if self.racing is None else self.racing.model_dump(),
            "scoring": self.scoring,
            "anchors": list(self.anchors),
        }
        # Keys of later versions are stored where they say something, so that older studies have the same definition.
        if self.method_files:
            made["method_files"] = dict(self.method_files)
        if self.allow:
            made["allow"] = list(self.allow)
        if self.tokenizer_source is not None:
            made["tokenizer_source"] = self.tokenizer_source
        if self.modalities.scope is not None:
            made |= {"scope": self.modalities.scope, "carry": dict(self.modalities.carry)}
        if self.served:
            made["served"] = {name: dict(one) for name, one in self.served.items()}
        if self.aligned:
            made["aligned"] = dict(self.aligned)
        if self.learned:
            made["learned"] = {name: dict(weights) for name, weights in self.learned.items()}
        if self.compares:
            made["compares"] = True
        return made

    @classmethod
    def from_json(
        cls, stored: Mapping[str, Any], *, name: str, storage: str, root: Path, evaluations: int
    ) -> StudyDefinition:
        """Read what ``to_json`` wrote, in this version or an earlier one.

        The merge methods of its ``method_files`` must be known by now. Numbers of rules that are not stored are 1.
        """
        stored = completed(stored)
        return cls(
            name=name,
            space=MergeSpace.from_json(stored["space"]),
            objectives=objectives_from(
                [
                    Objective(entry["name"], entry["direction"], tuple(entry["range"]) if entry.get("range") else None)
                    for entry in stored["objectives"]
                ]
            ),
            evaluator=EvaluatorDefinition.from_json(stored["evaluator"]),
            sampler=stored["sampler"]["name"],
            sampler_options=stored["sampler"]["options"],
            sampler_version=stored["sampler"].get("version", 1),
            seed=stored["seed"],
            evaluations=evaluations,
            storage=storage,
            root=root,
            runtime=stored["runtime"],
            constraints=constraints_from(stored["constraints"]),
            stop=StopRule.read(stored["stop"]),
            warm_start=tuple(stored["warm_start"]),
            racing=RacingSettings.read(stored["racing"]),
            method_files=stored.get("method_files", {}),
            allow=tuple(stored.get("allow", ())),
            tokenizer_source=stored.get("tokenizer_source"),
            modalities=Modalities.read(stored.get("scope"), stored.get("carry")),
            scoring=stored.get("scoring", 1),
            served=stored.get("served", {}),
            anchors=tuple(stored["anchors"]),
            aligned=stored.get("aligned", {}),
            learned=stored.get("learned", {}),
            compares=stored.get("compares", False),
        )
