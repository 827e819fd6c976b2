"""The report of a study as one HTML page that needs nothing else.

``contents`` collects the data. The verdict comes from the report items where they were scored; otherwise the page says
that it uses the items that the search optimised on. Most of it is computed cell by cell, which templates (jinja2) would
say in a second language and in no fewer lines.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront import formatting
from mergefront.formatting import html_text
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import BASE, TASK_ARITHMETIC, UNIFORM
from mergefront.optimizer.scores.differences import LEVEL, score_interval
from mergefront.optimizer.scores.evaluation import RACED, Evaluation
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.scores.outcomes import (
    CUT,
    EMPTY,
    SHORTENED,
    UNANSWERED,
    agreement_text,
    outcome_text,
    reasons,
    total_outcomes,
)
from mergefront.optimizer.scores.power import POWER
from mergefront.results import verdict_text
from mergefront.results.coefficient_importance import importances
from mergefront.results.plots.front import checked_path, save_picture
from mergefront.results.plots.web_page import web_page
from mergefront.results.report.contents import Contents, contents
from mergefront.results.report.detectable import detectable_differences, measured_tasks
from mergefront.results.suggestion import export_command, suggestion_lines
from mergefront.results.throughput import budget_lines, spent
from mergefront.results.verdict import Compared

if TYPE_CHECKING:
    from mergefront.results.plots.picture import Picture
    from mergefront.study.stored_study import Candidate, Study

BASELINES = (UNIFORM, TASK_ARITHMETIC)
EXTRA = 'the report page needs the extra: pip install "mergefront[plots]"'


def checked_page(path: str | Path) -> Path:
    """A path that a page can be written to; raises ``UserError``, also where plotly is missing."""
    path = checked_path(path, "report", (".html", ".htm"))
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise UserError(EXTRA) from None
    return path


def write_report(study: Study, path: str | Path) -> Path:
    """Write the page and return its path. Raises ``UserError`` when there is nothing to report, or no plotly."""
    path = checked_page(path)
    path.write_text(page(contents(study)), encoding="utf-8")
    return path


def page(shown: Contents) -> str:
    study = shown.study
    sections = {
        "Result": _result(shown),
        **({"History": _history(study)} if study.has_one_objective else {"The front": _front(shown)}),
        "Scores": _scores(shown),
        "Against the baselines": _significance(shown),
        "What the items can tell": _detectable(shown),
        "Forgetting": _forgetting(shown),
        "Hypervolume over evaluations": "" if study.has_one_objective else _hypervolume(shown),
        "What decides the objectives": _importance(study),
        "Recipes": _recipes(shown),
        "What happened to items": _outcomes(study),
        "Cost": _cost(study),
    }
    written = {name: part for name, part in sections.items() if part}
    links = " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in written)
    parts = [f'<section id="{_anchor(name)}"><h2>{name}</h2>\n{part}\n</section>' for name, part in written.items()]
    body = "\n".join((f"<h1>{html_text(study.name)}</h1>\n<nav>{links}</nav>", *parts))
    return web_page(f"{study.name}: report", body)


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _result(shown: Contents) -> str:
    study, judged = shown.study, shown.judged
    parts = [f'<p class="warning">{html_text(text)}</p>' for text in shown.warnings]
    where = "report items, which the search never saw" if shown.split == "report" else "search items"
    if study.front():
        suggested = study.suggested()
        said = [verdict_text.best_line(study)] if study.has_one_objective else []
        said += suggestion_lines(study, suggested, judged)
        parts += [
            f'<p class="verdict {"tie" if suggested is None else "beats"}">{html_text(line)}</p>' for line in said
        ]
        if suggested is not None:
            parts.append(f"<p>Take it with <code>{html_text(export_command(study, suggested))}</code>.</p>")
    if judged is None:
        parts.append(f'<p class="verdict tie">{html_text(verdict_text.no_merge_on_front(study))}</p>')
    else:
        kind = "beats" if judged.beaten_by(judged.best_anchor) else "tie"
        for line in verdict_text.headline(judged, study.objectives):
            parts.append(f'<p class="verdict {kind}">{html_text(line)}</p>')
        parts.append(f"<p>Measured on the {where}. {html_text(verdict_text.basis(judged))}</p>")
        for anchor in judged.anchors:
            lost = sorted(match.merge for match in judged.beaten_by(anchor))
            by = f"beaten by {formatting.trials(lost)}" if lost else "not beaten"
            parts.append(f'<p class="line"><b>{html_text(anchor)}</b>: {html_text(by)}</p>')
    return "\n".join(parts)


def _front(shown: Contents) -> str:
    from mergefront.results.plots.picture import picture

    raced = ", estimated from the ones that were answered" if shown.study.racing is not None else ""
    where = "report items" if shown.split == "report" else f"search items{raced}"
    bars = "; bars are one standard error" if any(row.standard_errors for row in shown.rows.values()) else ""
    return f"<p>On the {where}{bars}.</p>" + _drawn(
        picture(shown.study, shown.rows if shown.split == "report" else None)
    )


def _history(study: Study) -> str:
    from mergefront.results.plots.picture import picture

    (objective,) = study.objectives
    steps = [
        [formatting.trial(one.number, one.anchor), formatting.number(one.scores[objective.name])]
        for one in study.history()
    ]
    note = "<p>On the search items: each trial that was better than all before it.</p>"
    return _drawn(picture(study)) + note + _table(["", formatting.heading(objective)], steps)


def _drawn(shown: Picture) -> str:
    """A picture to look around in, and the same as PNG, for papers and messages; without matplotlib the first alone."""
    from mergefront.results.plots.html import figures, html_of

    drawn = html_of(figures(shown), with_plotly=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "front.png"
            save_picture(shown, path)
            encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    except UserError:
        return drawn
    tall = 4.5 * max(len(shown.objectives) - 1, 2)
    return (
        f'<div class="screen">{drawn}</div><details class="picture"><summary>The same as a PNG, for paper</summary>'
        f'<img alt="the same as a picture" src="data:image/png;base64,{encoded}" style="--tall: {tall:g}cm"></details>'
    )


def _hypervolume(shown: Contents) -> str:
    from mergefront.results.plots.html import html_of, hypervolume_figure

    study = shown.study
    of_anchors = study.hypervolume(list(shown.anchors)) if shown.anchors else 0.0
    note = (
        f"<p>On the search items, by which the search went: {study.finished_count()} evaluations, {len(shown.front)} "
        f"merges on the front, hypervolume {formatting.hypervolume(study.measured_hypervolume())} (anchors alone "
        f"{formatting.number(of_anchors)}; objectives normalised by the anchors, reference point −0.1).</p>"
    )
    return note + html_of([hypervolume_figure(study)])


def _scores(shown: Contents) -> str:
    study = shown.study
    several = not study.has_one_objective
    headings = ["", *(formatting.heading(objective) for objective in study.objectives)]
    headings += ["mean, normalised", "weakest, normalised"] if several else []
    suggested = study.suggested()
    winner = None if suggested is None else suggested.number
    means = {number: sum(shares) / len(shares) for number, shares in shown.normalised.items()}
    rows = []
    for candidate, row in sorted(_rows(shown), key=lambda one: (one[0].number != winner, -means[one[0].number])):
        shares = shown.normalised[candidate.number]
        cells = [re.sub(r"(\(.*\))", r"<small>\1</small>", _score(row, one)) for one in study.objectives]
        cells += [formatting.number(means[candidate.number]), formatting.number(min(shares))] if several else []
        lengths = [*shares, means[candidate.number], min(shares)][: len(cells)]
        name = _who(candidate) + (" (suggested)" if candidate.number == winner else "")
        bars = "".join(
            f'<td class="share" style="--share: {min(max(share, 0.0), 1.0):.2f}">{cell}</td>'
            for share, cell in zip(lengths, cells, strict=True)
        )
        kind = ' class="winner"' if candidate.number == winner else ""
        rows.append(f"<tr{kind}><td>{html_text(name)}</td>{bars}</tr>")
    normalised = " Normalised: 0 is the worst anchor of an objective, 1 the best." if several else ""
    note = (
        f"<p>On the {shown.split} items: mean, and its 95 % confidence interval. The suggested merge comes first, then "
        f"the best mean. Bars go from the worst anchor to the best.{normalised}</p>"
    )
    return note + _framed(headings, rows)


def _rows(shown: Contents) -> list[tuple[Candidate, Evaluation]]:
    """The candidates that were scored, front first."""
    return [(one, shown.rows[one.number]) for one in (*shown.front, *shown.anchors) if one.number in shown.rows]


def _score(row: Evaluation, objective: Objective) -> str:
    """The mean and its 95 % interval; a number without noise has none."""
    return formatting.with_interval(float(row.scores[objective.name]), score_interval(objective, row))


def _significance(shown: Contents) -> str:
    judged = shown.judged
    if judged is None:
        return ""
    labels: dict[str, list[str]] = {judged.best_anchor: ["best anchor"]}
    if judged.best_expert is not None:
        labels.setdefault(judged.best_expert, []).append("best expert")
    wanted = [name for name in dict.fromkeys((*labels, *BASELINES)) if name in judged.anchors]
    headings = ["merge", "against", *(formatting.heading(objective) for objective in shown.study.objectives)]
    headings += [] if shown.study.has_one_objective else ["mean, normalised"]
    rows = []
    for merge in judged.merges:
        for anchor in wanted:
            match = judged.match(merge, anchor)
            label = f"{anchor} ({', '.join(labels[anchor])})" if anchor in labels else anchor
            cells = [_change(match.by_objective[one.name], one) for one in shown.study.objectives]
            rows.append(
                [f"trial {merge}", label, *cells, *([] if match.mean is None else [formatting.difference(match.mean)])]
            )
    how = "paired item by item" if judged.paired else "from standard errors"
    exact = ", by McNemar's exact test where items are right or wrong" if judged.exact else ""
    means = (
        ""
        if shown.study.has_one_objective
        else " The best anchor and the best expert have the best mean of the normalised objectives."
    )
    note = (
        f"<p>Difference to the baseline, {how}{exact}. Bold: better beyond noise; red: worse beyond noise (p &lt; "
        f"{LEVEL:g}). The p-value of a lead is Holm-corrected over all {judged.comparisons} comparisons, since merges "
        f"are picked from many; that of a loss is as it is.{means}</p>"
    )
    return note + _table(headings, rows, raw=True)


def _change(part: Compared, objective: Objective) -> str:
    said = html_text(formatting.difference(part.difference, objective))
    said += f" <small>p {html_text(formatting.p_value(part.p_value))}</small>"
    if part.is_better:
        return f"<b>{said}</b>"
    return f'<span class="worse">{said}</span>' if part.is_worse else said


def _detectable(shown: Contents) -> str:
    """The smallest difference that would be found, by task; empty where nothing is known of the noise."""
    judged = shown.judged
    found = [] if judged is None else detectable_differences(judged, measured_tasks(shown.study))
    if judged is None or not found:
        return ""
    rows = []
    for one in found:
        items = "" if one.items is None else f"{one.items:,}"
        discordant = "" if one.discordance is None else f"{100 * one.discordance:.0f} %"
        sizes = ("none" if size is None else formatting.number(size) for size in (one.alone, one.corrected))
        rows.append([one.task, items, discordant, *sizes])
    note = (
        f"<p>The smallest difference between a merge and an anchor that is found with {100 * POWER:.0f} % power at p "
        f"&lt; {LEVEL:g}, at this number of items: of one comparison by itself, and of the hardest of all "
        f"{judged.comparisons} Holm-corrected ones. Smaller ones are mostly missed; what is not significant is no "
        "proof of equality. Discordant: right in one and wrong in the other, the median over all comparisons.</p>"
    )
    return note + _table(["", "items", "discordant", "one comparison", "all comparisons"], rows)


def _forgetting(shown: Contents) -> str:
    """Side tasks against the base model; empty where there are none or they were not scored."""
    if not shown.side_tasks or shown.split != "report":
        return ""
    base = next((anchor for anchor in shown.anchors if anchor.anchor == BASE), None)
    if base is None or base.number not in shown.rows:
        return ""
    of_base = shown.rows[base.number]
    headings = ["", *(formatting.heading(task) for task in shown.side_tasks)]
    rows = []
    for candidate, row in _rows(shown):
        if any(task.name not in row.scores for task in shown.side_tasks):
            continue
        cells = []
        for task in shown.side_tasks:
            lost = task.sign * (float(of_base.scores[task.name]) - float(row.scores[task.name]))
            change = f"{'lost' if lost > 0 else 'gained'} {formatting.number(abs(lost))}" if lost else "unchanged"
            cells.append(_score(row, task) if candidate is base else f"{_score(row, task)}, {change}")
        rows.append(["base, the reference" if candidate is base else _who(candidate), *cells])
    if not rows:
        return ""
    return "<p>Tasks outside the search, and what is lost of them against the base model.</p>" + _table(headings, rows)


def _importance(study: Study) -> str:
    import plotly.graph_objects as go

    measured = importances(study)
    found = measured.shares
    if not found:
        return ""
    names = list(next(iter(found.values())))
    names = sorted(names, key=lambda name: sum(shares.get(name, 0.0) for shares in found.values()))
    figure = go.Figure()
    for objective, shares in found.items():
        figure.add_bar(y=names, x=[shares.get(name, 0.0) for name in names], name=html_text(objective), orientation="h")
    figure.update_xaxes(title="share of the objective's variation")
    note = f"<p>From {measured.basis}; where the search went decides it too, so read it as a hint.</p>"
    return note + _figure(figure, 200 + 34 * len(names))


def _recipes(shown: Contents) -> str:
    from mergefront.results.export import yaml_text
    from mergefront.study.evaluators import mergekit_config, written_dtype

    parts = []
    study = shown.study
    definition = study.definition
    space = definition.space
    suggested = study.suggested()  # an average that anybody can make is none of the front's own merges
    wanted = {one.number: one for one in (*shown.front, *([] if suggested is None else [suggested]))}.values()
    dtype = next((written_dtype(definition, one.recipe) for one in wanted), None)
    for candidate in wanted:
        config = yaml_text(mergekit_config(definition, candidate.recipe, dtype))
        said = formatting.coefficients(candidate.params, space.models, list(space.searched))
        title = html_text(f"{_who(candidate).capitalize()}: {candidate.recipe.method}, {said}")
        file = f"{study.name}-{candidate.number}.yaml".replace("/", "-")
        encoded = base64.b64encode(config.encode()).decode("ascii")
        parts.append(
            f"<details><summary>{title}</summary>"
            f'<a class="button" download="{html_text(file)}" href="data:text/yaml;base64,{encoded}">Download</a>'
            f"<pre>{html_text(config)}</pre></details>"
        )
    return "\n".join(parts)


def _outcomes(study: Study) -> str:
    """How many items of each task had no answer, an empty one, a cut one, or a cut prompt; nothing where none had."""
    rows, agreements = [], []
    reported = study.ledger.evaluations("report").values()
    for evaluations, name in ((study.own_evaluations(), "search items"), (reported, "report items")):
        for task, counts in total_outcomes(evaluations).items():
            if agreed := agreement_text(counts):
                agreements.append(f"<p>{html_text(f'{task}, {name}: {agreed}.')}</p>")
            if outcome_text(counts):
                why = reasons(counts)
                missing = f"{counts[UNANSWERED]}" + (f" ({html_text(why)})" if why else "")
                rest = [f"{counts[kind]}" for kind in (EMPTY, CUT, SHORTENED)]
                rows.append([html_text(task), name, f"{counts['asked']:,}", missing, *rest])
    if not rows:
        return "".join(agreements)
    return (
        "".join(agreements)
        + "<p>In all evaluations together.</p>"
        + _table(
            [
                "task",
                "",
                "asked",
                "no usable answer",
                "empty answers",
                "answers cut off",
                "prompts without their beginning",
            ],
            rows,
        )
    )


def _cost(study: Study) -> str:
    """What search and report have spent: items answered, of those of a full evaluation of every candidate, and more."""
    rows, reported = study.own_evaluations(), study.ledger.evaluations("report").values()
    took = (spent(rows), spent(reported)) if reported else (spent(rows),)
    failed = len(study.failures())
    counts = [f"{study.finished_count()}" + (f", {failed} of them failed" if failed else "")]
    counts += [f"{one.evaluations}" for one in took[1:]]
    table = [["evaluations", *counts]]
    asked = took[0].cost.get("items", 0)
    if asked:
        of = [sum(row.details.get(RACED, {}).get("of", {}).values()) or row.cost.get("items", 0) for row in rows]
        counts = [f"{asked:,.0f} of {sum(of):,.0f} ({100 * asked / sum(of):.0f} %)"]
        table.append(["items answered", *counts, *(f"{one.cost.get('items', 0):,.0f}" for one in took[1:])])
    for kind in sorted({kind for one in took for kind, value in one.cost.items() if value} - {"items"}):
        counted = (formatting.amount(kind, one.cost.get(kind, 0)).removesuffix(kind.replace("_", " ")) for one in took)
        table.append([kind.replace("_", " "), *counted])
    table += [["budget", line] for line in budget_lines(study.definition)]
    for phase in ("merge", "score", "total"):
        if phase in took[0].seconds:
            table.append([f"time, {phase}", *(formatting.duration(one.seconds.get(phase, 0.0)) for one in took)])
    return _table(["", "search", "report items"][: len(took) + 1], table)


def _who(candidate: Candidate) -> str:
    return candidate.anchor if candidate.anchor is not None else f"trial {candidate.number}"


def _figure(figure: Any, height: int) -> str:
    from mergefront.results.plots.html import html_of, styled

    # The legend is above: below, a figure of few rows has its axis title there.
    return html_of([styled(figure, height).update_layout(legend={"y": 1.0, "yanchor": "bottom"})])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], raw: bool = False) -> str:
    """A table; cells are text unless ``raw``, where all but the first two columns are HTML."""
    body = []
    for row in rows:
        cells = [cell if raw and index >= 2 else html_text(cell) for index, cell in enumerate(row)]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return _framed(headings, body)


def _framed(headings: Sequence[str], rows: Iterable[str]) -> str:
    """A table of rows that are HTML; on a narrow screen it scrolls by itself."""
    head = "".join(f"<th>{html_text(heading)}</th>" for heading in headings)
    top = f"<thead><tr>{head}</tr></thead>" if headings else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'
