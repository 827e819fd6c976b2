"""Whatever is wrong with what a user wrote is named by its place, its value and what would be right, all at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from mergefront.optimizer.sections import Options, Section, problems_of, read_section


class Local(Section):
    type: Literal["local"] = "local"
    threads: int = Field(1, ge=1, le=64)


class Remote(Section):
    type: Literal["remote"]
    url: str


class Chat(Options):
    system: str | None = None


class Whole(Options):
    name: str = Field(min_length=1)
    share: float = Field(0.5, ge=0, lt=1)
    most: float | None = Field(None, gt=0)
    stop: str | list[Annotated[str, Field(min_length=1)]] = "\n"
    chat: bool | Chat = False
    kind: Literal["a", "b", "c"] = "a"
    backend: Annotated[Local | Remote, Field(discriminator="type")] = Local()
    several: list[Chat] = Field([], max_length=3)
    bounds: tuple[float, str] | None = Field(None, strict=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"share": 1}, "share is 1; it must be a number in [0, 1)"),
        ({"share": float("nan")}, "share is nan; it must be a number in [0, 1)"),
        ({"most": 0}, "most is 0; it must be a number above 0"),
        ({"nane": "x"}, "unknown key 'nane' (did you mean 'name'?)"),
        ({"stop": 3}, "stop is 3; it must be a text or a list"),
        ({"stop": ["a", ""]}, "stop[1] is ''; it must be a text"),
        ({"chat": 3}, "chat is 3; it must be true or false or a mapping with the keys system"),
        ({"chat": {"sytem": "x"}}, "chat: unknown key 'sytem' (did you mean 'system'?)"),
        ({"chat": {"system": 3}}, "chat.system is 3; it must be a text"),
        ({"kind": "d"}, "kind is 'd'; it must be a, b or c"),
        ({"backend": {"type": "lokal"}}, "backend: unknown type 'lokal' (did you mean 'local'?)"),
        ({"backend": {"type": "remote"}}, "backend: the key 'url' is missing"),
        ({"backend": {"type": "remote", "remote": 1}}, "backend: unknown key 'remote' (known: type, url)"),
        ({"backend": {"type": "local", "threads": 0}}, "backend.threads is 0; it must be a whole number in [1, 64]"),
        ({"backend": 3}, "backend is 3; it must be a mapping"),
        ({"bounds": [0]}, "bounds is [0]; it must be a list of at least 2"),
        ({"bounds": [0, 1]}, "bounds[1] is 1; it must be a text"),
        ({"several": [{}, {"sistem": "x"}]}, "several[1]: unknown key 'sistem' (did you mean 'system'?)"),
    ],
)
def test_a_fault_is_named_with_what_would_be_right(given: dict[str, Any], said: str) -> None:
    content = {"name": "x", **given}
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate(content)
    assert said in [str(problem) for problem in problems_of(raised.value, Whole, content)]


def test_what_is_sound_is_read_beside_what_is_not() -> None:
    """Without: a typo hides that a file is missing, and the user mends one fault a round."""
    made, problems = read_section(Whole, {"name": "x", "share": 2, "kind": "b", "knid": "c"})
    assert made == Whole(name="x", kind="b") and len(problems) == 2
    assert read_section(Whole, {"name": "", "share": 2})[0] is None, "nothing stands for what is required"
