"""The model card of an exported merge: what it is, what it scores, how it was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mergefront import formatting
from mergefront.optimizer.foreign_text import visible
from mergefront.optimizer.recipes.mergekit.configuration import OF_MERGEKIT
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.results.card_metadata import front_matter, stated_licenses
from mergefront.results.loading_lines import loading_lines
from mergefront.results.suggestion import suggestion_lines, warnings
from mergefront.results.verdict import Verdict, verdict
from mergefront.study.stored_study import Candidate, Study
from mergefront.versions import versions

_LONGEST_TABLE = 60
_CARD = """{metadata}
# Merge {candidate.number} of {study}

A `{candidate.recipe.method}` merge of {models}, found by mergefront.

## Loading

{loading}

## Scores

Mean ± standard error. This is {who}; it {place}.{suggested}

{scores}

## Coefficients

{coefficients}

## How it was found

{history}

## Configuration

{reader} (`recipe.json` holds the exact recipe, with the seed of random masks):

```yaml
{config}
```
"""


def model_card(
    study: Study,
    candidate: Candidate,
    config: Mapping[str, Any],
    base_models: Sequence[str],
    folder: Path,
    parents: Mapping[str, str],
) -> str:
    """The card of what lies in ``folder``, as Markdown with YAML metadata.

    ``config`` is what mergekit reads, ``base_models`` are hub names to link, ``parents`` says where the models lie, the
    base by ``""``.
    """
    licenses = stated_licenses(parents)
    report = verdict(study, "report")
    judged = report if report is not None and candidate.number in report.rows else verdict(study, "search")
    models = _plain(", ".join(candidate.recipe.models))
    called = study.space.base_model
    if candidate.recipe.method in OF_MERGEKIT and not {"compat", "recipe"} & config.keys():
        reader, command = "As mergekit reads it", "mergekit-yaml mergekit_config.yml merged"
    else:
        reader, command = "As `mergefront merge` reads it", "mergefront merge mergekit_config.yml merged"
    card = _CARD.format(
        metadata=front_matter(
            study,
            f"{study.name}, trial {candidate.number}",
            base_models,
            licenses,
            "peft" if (folder / "adapter_config.json").exists() else "transformers",
            study.evaluations_on("report", [candidate]).get(candidate.number),
        ),
        loading=loading_lines(folder, parents.get("", ""), command),
        reader=reader,
        candidate=candidate,
        study=_plain(study.name),
        models=f"{models} on {_plain(called.rstrip('/').rsplit('/', 1)[-1])}" if called else models,
        who=formatting.trial(candidate.number, candidate.anchor),
        place=_place(study, candidate),
        suggested=_suggested(study, candidate, judged),
        scores="\n".join(_measured(study, candidate, judged)),
        coefficients="\n".join(_coefficients(candidate.params)),
        history="\n".join(f"- {line}" for line in [*_history(study), *_licenses(licenses, study)]),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip(),
    )
    return visible(card)


def _place(study: Study, candidate: Candidate) -> str:
    if candidate.number in {member.number for member in study.front()}:
        return "is the best" if study.has_one_objective else "is on the front"
    where = "the best" if study.has_one_objective else "on the front"
    if not candidate.feasible:
        return f"is not {where}: it violates a constraint"
    rival = "another candidate is better" if study.has_one_objective else "another candidate is as good in everything"
    return f"is not {where}: {rival}"


def _suggested(study: Study, candidate: Candidate, judged: Verdict | None) -> str:
    """Whether the study suggests this merge, and what it gives up; or nothing."""
    suggested = study.suggested()
    if suggested is not None and suggested.number == candidate.number:
        return f" {_plain(' '.join(suggestion_lines(study, suggested, judged)))}"
    return "".join(f" {_plain(line)}" for line in warnings(study, candidate))


def _measured(study: Study, candidate: Candidate, judged: Verdict | None) -> list[str]:
    """The scores on the report items, where there are some, and on the search items; and which anchors it beats."""
    lines = []
    if judged is not None and judged.split == "report":
        rows = _scores(study, candidate, judged.rows)
        lines += ["On the report items, which the search never saw:", "", *rows, ""]
        lines += ["On the items that the search optimised on:", ""]
    lines += _scores(study, candidate, None)
    if judged is not None and candidate.number in judged.merges:
        beaten = [match.anchor for match in judged.matches if match.merge == candidate.number and match.beats]
        sentence = (
            f"Better somewhere and worse nowhere, beyond noise, than: {', '.join(beaten)}."
            if beaten
            else "It is better somewhere and worse nowhere, beyond noise, than none of these."
        )
        lines += ["", _plain(sentence)]
    return lines


def _licenses(stated: Mapping[str, str], study: Study) -> list[str]:
    """The parents' licenses, which a merge of them is under."""
    called = (f"{_plain(name or str(study.space.base_model))}: {_plain(license)}" for name, license in stated.items())
    return [f"licenses that the models state: {', '.join(called)}"] if stated else []


def _scores(study: Study, candidate: Candidate, rows: Mapping[int, Evaluation] | None) -> list[str]:
    shown = [candidate, *(anchor for anchor in study.anchors() if anchor.number != candidate.number)]
    headings = [formatting.heading(objective) for objective in study.objectives]
    lines = [f"| | {' | '.join(_cell(heading) for heading in headings)} |", f"| --- |{' --- |' * len(headings)}"]
    for member in shown:
        row = member.evaluation if rows is None else rows.get(member.number)
        if row is None:
            continue
        scores = [
            formatting.score(float(row.scores[objective.name]), row.standard_errors.get(objective.name))
            for objective in study.objectives
        ]
        name = "**this merge**" if member is candidate else _cell(str(member.anchor))
        lines.append(f"| {name} | {' | '.join(scores)} |")
    return lines


def _coefficients(params: Mapping[str, Any]) -> list[str]:
    lines = ["| coefficient | value |", "| --- | --- |"]
    for name, value in list(params.items())[:_LONGEST_TABLE]:
        shown = f"{value:.6g}" if isinstance(value, float) else str(value).lower()
        lines.append(f"| `{_cell(name)}` | {_cell(shown)} |")
    if len(params) > _LONGEST_TABLE:
        lines += ["", f"and {len(params) - _LONGEST_TABLE} more, see `recipe.json`."]
    return lines


def _history(study: Study) -> list[str]:
    definition = study.definition
    options = ", ".join(f"{key}={value}" for key, value in definition.sampler_options.items())
    objectives = ", ".join(f"{objective.name} ({objective.direction})" for objective in study.objectives)
    found = versions()
    unit = "objectives normalised by the anchors, reference point -0.1"
    hypervolume = f"; hypervolume of the front {formatting.hypervolume(study.measured_hypervolume())} ({unit})"
    return [
        f"objectives: {_plain(objectives)}",
        f"sampler: {definition.sampler}{f' ({options})' if options else ''}, seed {definition.seed}, "
        f"{study.space.dimension} coefficients searched",
        f"{study.finished_count()} evaluations, {len(study.failures())} failed"
        + ("" if study.has_one_objective else hypervolume),
        f"study {_plain(study.name)}, {study.record.uuid}, created {study.record.created_at:%Y-%m-%d} UTC",
        "software: " + ", ".join(f"{name} {version}" for name, version in found.items()),
    ]


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Names as text, not as markup of the card."""
    return text.replace("<", "&lt;").replace("\n", " ")
