"""YAML that a user wrote: bounded, without duplicate keys and aliases, every error with the file's name."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mergefront.optimizer.errors import StudyFileError
from mergefront.optimizer.foreign_text import file_content

_LARGEST_FILE = 1_000_000
"""Bytes."""
_LONGEST_NUMBER = 1000
"""Characters. Reading "1:1:1..." (base 60) takes time that grows with the square of its length."""


def read_mapping(path: Path, kind: str, keys: str) -> dict[str, Any]:
    """The mapping in a YAML file of the user's; raises ``StudyFileError`` naming file, kind and keys."""
    source = str(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise StudyFileError(source, [f"the file is larger than {_LARGEST_FILE:,} bytes; it is no {kind}"])
        text = file_content(path).decode("utf-8")
    except FileNotFoundError:
        raise StudyFileError(source, ["there is no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyFileError(source, [f"the file cannot be read: {error}"]) from None
    content = load_yaml(text, source)
    if not isinstance(content, dict):
        raise StudyFileError(source, [f"the file must hold a mapping with the keys {keys}"])
    return content


def load_yaml(text: str, source: str) -> Any:
    """Safe YAML without duplicate keys and without aliases; raises ``StudyFileError``."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise StudyFileError(source, [f"{where}not valid YAML: {getattr(error, 'problem', None) or error}"]) from None
    except (ValueError, OverflowError) as error:  # a number of thousands of digits, a date that does not exist
        raise StudyFileError(source, [f"not valid YAML: {error}"]) from None
    except RecursionError:
        raise StudyFileError(source, ["not valid YAML: nested too deeply"]) from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys (the last would win silently) and aliases (they can expand without bound)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases are not supported; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if len(node.value) > _LONGEST_NUMBER and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(node.value):,} characters", node.start_mark
            )
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word or a number", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
