"""The command chat."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergefront.cli.logs import echo
from mergefront.cli.options import choice_options, root_option, storage_option, study_argument

if TYPE_CHECKING:
    from mergefront.results.suggestion import Choice
    from mergefront.study.stored_study import Study


def _variables(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """``enable_thinking=false`` and the like as a mapping; values are JSON, and what is none is text."""
    found: dict[str, Any] = {}
    for part in given:
        name, is_pair, value = part.partition("=")
        if not is_pair or not name.strip():
            raise click.BadParameter(f"{part!r} must be written as NAME=VALUE, such as enable_thinking=false")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found


@click.command(short_help="Talk to a merge, and compare what several answer.")
@study_argument
@storage_option
@root_option
@choice_options
@click.option("--system", default="", metavar="TEXT", help="The system message.")
@click.option(
    "--temperature",
    default=0.0,
    type=click.FloatRange(0, 100),
    show_default=True,
    help="0 writes the likeliest answer.",
)
@click.option(
    "--max-new-tokens", default=512, type=click.IntRange(min=1), show_default=True, help="The longest answer."
)
@click.option(
    "--template", default="", metavar="FILE", help="A chat template (Jinja), one of the tokenizer's by name, or none."
)
@click.option(
    "--template-option",
    "template_options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_variables,
    help="A variable of the chat template, such as enable_thinking=false.",
)
def chat(
    name: str,
    storage: str,
    root: Path | None,
    choice: Choice,
    system: str,
    temperature: float,
    max_new_tokens: int,
    template: str,
    template_options: dict[str, Any],
) -> None:
    """Talk to a merge of study NAME, held in memory; without a choice, to the one that `front` suggests.

    Lines are prompts, put through the chat template of the tokenizer. Commands begin with a slash. /trial 14, /base and
    /expert NAME say who answers. /compare 14 base [PROMPT] shows answers side by side. /help lists the rest. Ctrl-C
    ends an answer, Ctrl-D the program. From a pipe each line is answered on stdout.

    \b
    Examples:
      mergefront chat skills
      mergefront chat skills --trial 17 --system "Answer in French." --temperature 0.7
      printf 'What is 12 + 30?\\n/compare 17 base\\n' | mergefront chat skills
    """
    from mergefront.chat.generation import Sampling
    from mergefront.chat.merges import Merges
    from mergefront.chat.session import Chat
    from mergefront.chat.speakers import speaker_of
    from mergefront.cli.conversation import Screen, converse
    from mergefront.optimizer.errors import UserError
    from mergefront.study.stored_study import load_study

    study = load_study(name, storage=storage, root=root)
    merges, is_terminal = Merges(study), sys.stdin.isatty() and sys.stdout.isatty()
    start = merges.of(choice.of(study))
    with speaker_of(study, template, template_options) as speaker:
        if system and not speaker.has_template:
            raise UserError("--system: without a chat template there are no messages; name one with --template FILE")
        speaker.turn_to(start.recipe)
        if not speaker.has_template:
            echo("No chat template: your text is continued as it is, each line by itself.", err=True)
        elif not template and _asks_without_template(study):
            echo(
                "The study's tasks ask without this chat template; --template none continues lines as they do.",
                err=True,
            )
        if is_terminal:
            echo(f"Study {study.name}, {start.label}. /help lists the commands; Ctrl-D leaves.", err=True)
        converse(
            Chat(merges, speaker, Screen(is_terminal), start, Sampling(temperature, max_new_tokens), system),
            is_terminal,
        )


def _asks_without_template(study: Study) -> bool:
    """Whether a local study's scores are those of texts that are continued as they stand."""
    described = study.definition.evaluator
    return described.type == "local" and not any(
        entry.get("chat") or entry.get("apply_chat_template") or entry["type"] not in ("jsonl", "lm_eval")
        for entry in described.tasks.values()
    )
