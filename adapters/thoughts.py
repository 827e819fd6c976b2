"""What a thinking model answers: the text behind its thoughts."""

from __future__ import annotations

from dataclasses import replace

from mergefront.adapters.language_model import Generation, GenerationRequest


def answer_of(
    said: Generation, request: GenerationRequest, *, is_open: bool = False, is_parted: bool = False
) -> Generation:
    """A generation whose text holds the thoughts, without them and up to the first stop string.

    ``is_open``: the prompt ended inside thoughts; ``is_parted``: a server took them out of the text already. An answer
    without any is taken as it is, one that ends inside them is none.
    """
    thinking = request.thinking
    if thinking is None or said.unanswered:
        return said
    before, closing, after = said.text.partition(thinking.end)
    if not closing:
        if not is_parted and (said.finish == "length" or is_open or thinking.is_open(before)):
            return replace(said, text="", is_thought=True)
        after = before
    text = after.lstrip()
    found = [at for stop in request.stop if (at := text.find(stop)) >= 0]
    return replace(said, text=text[: min(found)], finish="stop") if found else replace(said, text=text)
