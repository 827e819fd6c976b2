"""The badges of the README as files, so that they need no other host: ``python tools/badges.py``."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images" / "badges"
LETTER, PADDING, HEIGHT = 6.6, 6, 20
"""Pixels: a letter's width on average at size 11, the space beside a text, and a badge's height."""


def badge(label: str, value: str, color: str) -> str:
    left, right = (round(len(text) * LETTER + 2 * PADDING) for text in (label, value))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" role="img">
<title>{label}: {value}</title>
<clipPath id="r"><rect width="{left + right}" height="{HEIGHT}" rx="3"/></clipPath>
<g clip-path="url(#r)"><rect width="{left}" height="{HEIGHT}" fill="#555"/>
<rect x="{left}" width="{right}" height="{HEIGHT}" fill="{color}"/></g>
<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{left / 2}" y="14">{label}</text><text x="{left + right / 2}" y="14">{value}</text></g>
</svg>
"""


def badges() -> dict[str, str]:
    """The badges by file name, as pyproject.toml has their values."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        "version.svg": badge("version", project["version"], "#0072B2"),
        "python.svg": badge("python", project["requires-python"].replace(">=", "≥ "), "#0072B2"),
        "license.svg": badge("license", project["license"], "#007a5a"),
        "docs.svg": badge("docs", "read", "#007a5a"),
    }


if __name__ == "__main__":
    for name, content in badges().items():
        (OUT / name).write_text(content, encoding="utf-8")
