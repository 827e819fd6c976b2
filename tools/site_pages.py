"""Hook of MkDocs: pages that are made of the program itself, and of files outside docs/.

The study file's reference is made of docs/study.schema.json, the Python API's of ``mergefront.__all__``; usage and
options of commands are made from click, below their headings. Examples, notebooks and the changelog become
pages.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/smollm/README.md": "examples/smollm.md",
    "examples/api_only/README.md": "examples/api_only.md",
}
"""Files of the repository that are pages of the site."""
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not written by hand."""
    made = {"reference/study-file.md": study_file(), "reference/python.md": python_api()}
    for source, page in OUTSIDE.items():
        if (ROOT / source).is_file():
            made[page] = relinked((ROOT / source).read_text(encoding="utf-8"), source, page)
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook(json.loads(path.read_text(encoding="utf-8")))
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links from docs/ to files that are pages here lead to the pages; commands get their options from click."""
    if page.file.src_uri.startswith("reference/cli/"):
        markdown = re.sub(
            r"^## mergefront (\S+)\n", lambda found: f"{found[0]}\n{command(found[1])}\n", markdown, flags=re.M
        )
    return relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri) if page.file.abs_src_path else markdown


def relinked(text: str, source: str, page: str) -> str:
    """``text`` of the file ``source`` as the page ``page``: links to files of the repository lead to their pages, or,
    where a file is no page, are names only."""

    def one(found: re.Match[str]) -> str:
        if re.match(r"[a-z]+:|#|/", found[2]):
            return found[0]
        path, mark, anchor = found[2].partition("#")
        target = os.path.normpath(PurePosixPath(source).parent / path)
        if target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif target in OUTSIDE:
            target = OUTSIDE[target]
        else:
            return ") (" + target + ")"
        return f"{found[1]}{os.path.relpath(target, PurePosixPath(page).parent)}{mark}{anchor}{found[3]}"

    made = LINK.sub(one, text)
    return re.sub(r"\[([^\]]*)\) \(([^)]*)\)", r"\1", made)


def notebook(book: dict[str, Any]) -> str:
    """A notebook as a page: its texts, its code, and what the code printed and drew."""
    parts = []
    for cell in book["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">')
            elif "text/html" in data:
                parts.append("\n".join(line for line in "".join(data["text/html"]).splitlines() if line.strip()))
            else:
                shown = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{shown.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def command(name: str) -> str:
    """Usage and options of a command as click has them."""
    import click

    from mergefront.cli.application import cli

    with click.Context(cli, info_name="mergefront") as parent:
        about = cli.commands[name]
        with click.Context(about, info_name=name, parent=parent) as context:
            lines = ["```", context.get_usage().removeprefix("Usage: "), "```", ""]
            found = (part.get_help_record(context) for part in about.get_params(context))
            records = [one for one in found if one and one[1]]
    lines += ["| option | meaning |", "| -- | -- |"]
    lines += [f"| `{option}` | {meaning} |".replace("[", "\\[") for option, meaning in records]
    return "\n".join(lines) + "\n"


def study_file() -> str:
    """The reference of the study file: a table of keys for each of its sections."""
    schema = json.loads((ROOT / "docs" / "study.schema.json").read_text(encoding="utf-8"))
    parts = [
        "# The study file",
        "One YAML file describes a study. Paths are relative to the file. An unknown key is an error. "
        "`mergefront schema` prints the JSON schema that this page is made of, so that an editor can complete keys.",
        table(schema, schema),
    ]
    for name, section in schema["properties"].items():
        forms = [form for form in alternatives(section, schema) if form.get("properties")]
        if forms:
            parts.append(f"## {name}")
        for form in forms:
            kind = next((one["const"] for one in form["properties"].values() if "const" in one), None)
            if len(forms) > 1:
                parts.append(f"### {name}: {kind}")
            if form.get("description"):
                parts.append(form["description"].replace("``", "`"))
            parts.append(table(form, schema))
    return "\n\n".join(parts) + "\n"


def alternatives(section: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The mappings that a section may be, references followed; of a list or a mapping of many, those of one."""
    if "$ref" in section:
        return alternatives(schema["$defs"][section["$ref"].rpartition("/")[2]], schema)
    several = section.get("oneOf") or section.get("anyOf")
    if several and not section.get("properties"):
        return [form for one in several for form in alternatives(one, schema)]
    for key in ("items", "additionalProperties"):
        if isinstance(section.get(key), dict) and not section.get("properties"):
            return alternatives(section[key], schema)
    return [section]


def table(section: dict[str, Any], schema: dict[str, Any]) -> str:
    """The keys of one mapping as a table."""
    required = section.get("required", ())
    lines = ["| key | value | default | meaning |", "| -- | -- | -- | -- |"]
    for name, about in section["properties"].items():
        given = f"`{json.dumps(about['default'])}`" if about.get("default") is not None else ""
        default = "required" if name in required else given
        meaning = about.get("description") or followed(about, schema).get("description", "")
        cells = (f"`{name}`", value(about, schema), default, " ".join(meaning.replace("``", "`").split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def followed(about: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What a reference refers to."""
    if "$ref" not in about:
        return about
    target: dict[str, Any] = schema["$defs"][about["$ref"].rpartition("/")[2]]
    return target


def value(about: dict[str, Any], schema: dict[str, Any]) -> str:
    """What may stand behind a key, in a few words."""
    about = followed(about, schema)
    if "const" in about:
        return f"`{about['const']}`"
    if "enum" in about:
        return ", ".join(f"`{one}`" for one in about["enum"])
    several = about.get("anyOf") or about.get("oneOf")
    if several:
        words = [value(one, schema) for one in several if followed(one, schema).get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    kind = about.get("type", "any")
    if kind == "array":
        return f"list of {value(about['items'], schema)}" if "items" in about else "list"
    if kind == "object":
        return "mapping"
    bounds = [
        f"{sign} {about[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in about and abs(about[key]) < 2**31 - 1
    ]
    return " ".join([names.get(kind, str(kind)), *bounds])


def python_api() -> str:
    """The reference of the public names, each from its docstring, and of the sampler for Optuna."""
    import mergefront

    parts = ["# Python", "`import mergefront as mf`; every name below is `mf.NAME`."]
    homes = mergefront._HOME
    order = sorted(homes, key=lambda name: (name[0].isupper(), name.endswith("Error"), list(homes).index(name)))
    for name in order:
        parts.append(f"::: {homes[name]}.{name}\n    options:\n      heading: mf.{name}\n      toc_label: {name}")
    parts.append(
        "## The sampler for Optuna\n\n::: mergefront.optimizer.samplers.mmmo.sampler.MMMOSampler\n"
        "    options:\n      heading: MMMOSampler\n      toc_label: MMMOSampler\n"
        "      heading_level: 3\n      members: false"
    )
    return "\n\n".join(parts) + "\n"
