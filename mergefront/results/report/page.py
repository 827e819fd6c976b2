"""The report of a study as one HTML page that needs nothing else.

``contents`` collects the data. The verdict comes from the report items where they were scored; otherwise the page says
that it uses the items that the search optimised on.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront import formatting
from mergefront.formatting import html_text
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import BASE, TASK_ARITHMETIC, UNIFORM, expert_anchor
from mergefront.optimizer.scores.comparison import Difference, mean_interval
from mergefront.optimizer.scores.differences import LEVEL, oriented_items
from mergefront.optimizer.scores.evaluation import RACED, Evaluation
from mergefront.optimizer.scores.objectives import Objective
from mergefront.results import verdict_text
from mergefront.results.coefficient_importance import importances
from mergefront.results.plots.front import checked_path, save_front
from mergefront.results.report.contents import Contents, contents
from mergefront.results.throughput import spent
from mergefront.results.verdict import Match, Verdict

if TYPE_CHECKING:
    from mergefront.study.stored_study import Candidate, Study

BASELINES = (UNIFORM, TASK_ARITHMETIC)
EXTRA = 'the report page needs the extra: pip install "mergefront[plots]"'


def write_report(study: Study, path: str | Path) -> Path:
    """Write the page and return its path. Raises ``UserError`` when there is nothing to report, or no plotly."""
    path = checked_path(path, "report", (".html", ".htm"))
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise UserError(EXTRA) from None
    path.write_text(page(contents(study)), encoding="utf-8")
    return path


def page(shown: Contents) -> str:
    from mergefront.results.plots.html import hypervolume_figure

    study = shown.study
    sections = {
        "Result": _result(shown),
        "The front": _front(shown),
        "Scores": _scores(shown),
        "Against the baselines": _significance(shown),
        "Forgetting": _forgetting(shown),
        "Hypervolume over evaluations": _figure(hypervolume_figure(study), 380),
        "What decides the objectives": _importance(study),
        "Recipes": _recipes(shown),
        "Cost": _cost(study),
    }
    body = "\n".join(f"<section><h2>{name}</h2>\n{part}\n</section>" for name, part in sections.items() if part)
    return _PAGE.format(title=html_text(f"{study.name}: report"), heading=html_text(study.name), body=body)


def _result(shown: Contents) -> str:
    study, judged = shown.study, shown.judged
    parts = [f'<p class="warning">{html_text(text)}</p>' for text in shown.warnings]
    if judged is None:
        parts.append(f'<p class="verdict tie">{html_text(verdict_text.no_merge_on_front(study))}</p>')
    else:
        kind = "beats" if judged.overall.beats else "tie"
        for line in verdict_text.overall_lines(judged, study.objectives):
            parts.append(f'<p class="verdict {kind}">{html_text(line)}</p>')
        where = "report items, which the search never saw" if judged.split == "report" else "search items"
        parts.append(f"<p>Measured on the {where}. {html_text(verdict_text.basis(judged))}</p>")
        for anchor in judged.anchors:
            lost = sorted(match.merge for match in judged.beaten_by(anchor))
            said = f"beaten by {formatting.trials(lost)}" if lost else "not beaten"
            parts.append(f'<p class="line"><b>{html_text(anchor)}</b>: {html_text(said)}</p>')
    of_anchors = study.hypervolume(list(shown.anchors)) if shown.anchors else 0.0
    parts.append(
        f"<p>{study.finished_count()} evaluations, {len(shown.front)} merges on the front, hypervolume "
        f"{formatting.number(study.hypervolume())} (anchors alone {formatting.number(of_anchors)}; "
        "objectives normalised by the anchors, reference point −0.1).</p>"
    )
    return "\n".join(parts)


def _front(shown: Contents) -> str:
    from mergefront.results.plots.html import figures, html_of
    from mergefront.results.plots.picture import picture

    raced = "" if shown.study.racing is None else ", estimated from those that were asked"
    caption = f"<p>On the search items{raced}; bars are one standard error.</p>"
    return caption + html_of(figures(picture(shown.study)), with_plotly=True) + _picture(shown.study)


def _picture(study: Study) -> str:
    """The same front as PNG, for papers and messages; nothing without matplotlib."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = save_front(study, Path(folder) / "front.png").read_bytes()
    except UserError:
        return ""
    encoded = base64.b64encode(data).decode("ascii")
    return (
        "<details><summary>The same as a PNG</summary>"
        f'<img alt="front" src="data:image/png;base64,{encoded}" style="max-width:100%"></details>'
    )


def _scores(shown: Contents) -> str:
    study = shown.study
    headings = ["", *(formatting.heading(objective) for objective in study.objectives), "mean, normalised by experts"]
    own = _expert_scores(shown)
    table = []
    for candidate, row in _rows(shown):
        cells = [_score(row, objective) for objective in study.objectives]
        shares = [
            _share(objective, row, own[objective.name]) for objective in study.objectives if objective.name in own
        ]
        table.append([_who(candidate), *cells, f"{sum(shares) / len(shares):.3f}" if shares else "–"])
    normalised = (
        " Normalised by experts: 1 is the score of the task's own expert, as far as objectives are named after experts."
    )
    note = f"<p>On the {shown.split} items: mean, and its 95 % confidence interval.{normalised if own else ''}</p>"
    return note + _table(headings, table)


def _rows(shown: Contents) -> list[tuple[Candidate, Evaluation]]:
    """The candidates that were scored, front first."""
    return [(one, shown.rows[one.number]) for one in (*shown.front, *shown.anchors) if one.number in shown.rows]


def _expert_scores(shown: Contents) -> dict[str, float]:
    """Each objective's score of the expert that it is named after, where that is above 0."""
    rows = {one.anchor: shown.rows[one.number] for one in shown.anchors if one.number in shown.rows}
    named = {one.name: rows.get(expert_anchor(one.name)) for one in shown.study.objectives}
    scores = {name: float(row.scores[name]) for name, row in named.items() if row is not None}
    return {name: score for name, score in scores.items() if score > 0}


def _share(objective: Objective, row: Evaluation, expert: float) -> float:
    score = float(row.scores[objective.name])
    return score / expert if objective.direction == "maximize" else expert / score if score > 0 else 0.0


def _score(row: Evaluation, objective: Objective) -> str:
    """The mean and its 95 % interval from the items, or from the standard error; a number without noise has none."""
    value = float(row.scores[objective.name])
    items = oriented_items(row, objective)
    error = row.standard_errors.get(objective.name)
    if items and RACED not in row.details:
        low, high = mean_interval([objective.sign * score for score in items.values()])
    elif error:
        low, high = value - 1.96 * error, value + 1.96 * error
    else:
        return formatting.number(value)
    return f"{formatting.number(value)} ({formatting.number(low)} to {formatting.number(high)})"


def _significance(shown: Contents) -> str:
    judged = shown.judged
    if judged is None:
        return ""
    best = _best_expert(shown, judged)
    wanted = [name for name in (best, *BASELINES) if name is not None and name in judged.anchors]
    headings = ["merge", "against", *(formatting.heading(objective) for objective in shown.study.objectives), "overall"]
    rows = []
    for merge in judged.merges:
        for anchor in wanted:
            match = next(one for one in judged.matches if one.merge == merge and one.anchor == anchor)
            label = f"{anchor} (best expert)" if anchor == best else anchor
            cells = [_change(match, objective) for objective in shown.study.objectives]
            rows.append([f"trial {merge}", label, *cells, _difference(match.overall, match.overall.p_value)])
    how = "paired item by item" if judged.paired else "from standard errors"
    note = (
        f"<p>Difference to the baseline, {how}, with p-values after Holm's correction over all comparisons of the "
        f"front. Bold: better beyond noise (p &lt; {LEVEL:g}); red: worse (p &lt; {LEVEL:g}, uncorrected). "
        "Overall: the mean of the normalised objectives, p not corrected.</p>"
    )
    return note + _table(headings, rows, raw=True)


def _best_expert(shown: Contents, judged: Verdict) -> str | None:
    """The expert anchor with the best mean normalised score."""
    experts = {expert_anchor(name) for name in shown.study.space.models}
    candidates = [anchor for anchor in shown.anchors if anchor.anchor in experts and anchor.number in judged.rows]
    if not candidates:
        return None
    normaliser = shown.study.normaliser()

    def mean(anchor: Candidate) -> float:
        row = judged.rows[anchor.number]
        return sum(normaliser.normalise([float(row.scores[one.name]) for one in shown.study.objectives]))

    return str(max(candidates, key=mean).anchor)


def _change(match: Match, objective: Objective) -> str:
    said = _difference(match.by_objective[objective.name], match.corrected[objective.name], objective)
    if objective.name in match.better:
        return f"<b>{said}</b>"
    return f'<span class="worse">{said}</span>' if objective.name in match.worse else said


def _difference(part: Difference, p_value: float, objective: Objective | None = None) -> str:
    said = html_text(formatting.difference(part, objective))
    return f"{said} <small>p {html_text(formatting.p_value(p_value))}</small>"


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

    found = importances(study)
    if not found:
        return ""
    names = list(next(iter(found.values())))
    names = sorted(names, key=lambda name: sum(shares.get(name, 0.0) for shares in found.values()))
    figure = go.Figure()
    for objective, shares in found.items():
        figure.add_bar(y=names, x=[shares.get(name, 0.0) for name in names], name=html_text(objective), orientation="h")
    figure.update_xaxes(title="share of the objective's variation")
    note = "<p>From the trials inside the space; where the search went decides it too, so read it as a hint.</p>"
    return note + _figure(figure, 200 + 34 * len(names))


def _recipes(shown: Contents) -> str:
    from mergefront.results.export import yaml_text
    from mergefront.study.evaluators import mergekit_config, written_dtype

    parts = []
    definition = shown.study.definition
    space = definition.space
    dtype = written_dtype(definition, shown.front[0].recipe) if shown.front else None
    for candidate in shown.front:
        config = yaml_text(mergekit_config(definition, candidate.recipe, dtype))
        said = formatting.coefficients(candidate.params, space.models, list(space.searched))
        parts.append(
            f"<details><summary>Trial {candidate.number}: {html_text(f'{candidate.recipe.method}, {said}')}</summary>"
            f"<pre>{html_text(config)}</pre></details>"
        )
    return "\n".join(parts)


def _cost(study: Study) -> str:
    """What search and report have spent: items answered, of those of a full evaluation of every candidate, and more."""
    rows, reported = study.ledger.evaluations().values(), study.ledger.evaluations("report").values()
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
        table.append([kind.replace("_", " "), *(f"{one.cost.get(kind, 0):,.0f}" for one in took)])
    for phase in ("merge", "score", "total"):
        if phase in took[0].seconds:
            table.append([f"time, {phase}", *(formatting.duration(one.seconds.get(phase, 0.0)) for one in took)])
    return _table(["", "search", "report items"][: len(took) + 1], table)


def _who(candidate: Candidate) -> str:
    return candidate.anchor if candidate.anchor is not None else f"trial {candidate.number}"


def _figure(figure: Any, height: int) -> str:
    from mergefront.results.plots.html import html_of

    figure.update_layout(template="plotly_white", height=height, margin={"l": 60, "r": 30, "t": 20, "b": 50})
    return html_of([figure])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], raw: bool = False) -> str:
    """A table; cells are text unless ``raw``, where all but the first two columns are HTML."""
    head = "".join(f"<th>{html_text(heading)}</th>" for heading in headings)
    top = f"<thead><tr>{head}</tr></thead>" if headings else ""
    body = []
    for row in rows:
        cells = [cell if raw and index >= 2 else html_text(cell) for index, cell in enumerate(row)]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table>{top}<tbody>{"".join(body)}</tbody></table></div>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font-family: system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; max-width: 1200px; color: #212529; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #dee2e6; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }} td, th {{ padding: 0.3rem 0.7rem; text-align: left;
border-bottom: 1px solid #e9ecef; vertical-align: top; }} th {{ background: #f8f9fa; }}
.wide {{ overflow-x: auto; }} small {{ color: #6c757d; }} pre {{ background: #f8f9fa; padding: 0.7rem; }}
.verdict {{ font-size: 1.05rem; padding: 0.7rem; border-left: 4px solid #adb5bd; background: #f8f9fa; }}
.worse {{ color: #b02a37; }} .beats {{ border-color: #009e73; }} .line {{ margin: 0.15rem 0; }}
.warning {{ padding: 0.6rem; background: #fff3cd; border-left: 4px solid #e69f00; }}
details {{ margin: 0.4rem 0; }} summary {{ cursor: pointer; }}
</style></head>
<body><h1>{heading}</h1>
{body}
</body></html>
"""
