"""The pages under Reference, made from the code when the site is built: command line, recipe keys, Python API.

Nothing of them is kept in the repository, so none can say what the code does not. A hook of MkDocs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import agevlm

API = {  # page → its first line and the modules that it shows whole
    "Network": (
        "What the models are made of.",
        ["agevlm.modeling.cross_attention", "agevlm.modeling.image_inputs", "agevlm.modeling.outputs"],
    ),
    "Guidance": ("Attention of asked rows and masks → loss: pure functions on tensors.", ["agevlm.guidance.losses"]),
    "Data": (
        "Records, masks, files.",
        ["agevlm.data.schema", "agevlm.data.masks", "agevlm.data.parquet", "agevlm.data.language"],
    ),
    "Embedded world": (
        "Drawn scenes with exact masks.",
        ["agevlm.data.scenes.world", "agevlm.data.scenes.drawing", "agevlm.data.scenes.export"],
    ),
    "Teachers": ("(picture, phrase) → masks.", ["agevlm.teachers.base", "agevlm.teachers.registry"]),
    "Training": (
        "Recipes and runs.",
        ["agevlm.training.recipe", "agevlm.training.recipe_files", "agevlm.training.run", "agevlm.training.plan"],
    ),
    "Evaluation": (
        "Questions, answers, scores.",
        [
            "agevlm.evaluation.runner",
            "agevlm.evaluation.parsing",
            "agevlm.evaluation.scores",
            "agevlm.evaluation.localisation",
            "agevlm.evaluation.perplexity",
            "agevlm.evaluation.statistics",
        ],
    ),
    "Analysis": (
        "Where a model looks, and pictures of it.",
        ["agevlm.analysis.attention", "agevlm.analysis.similarity", "agevlm.analysis.report"],
    ),
    "Any vision-language model": (
        "Image tokens, their boxes, answers, probabilities, attention rows.",
        ["agevlm.vlms.vlm", "agevlm.vlms.views", "agevlm.vlms.maps", "agevlm.vlms.families"],
    ),
    "Checkpoints": ("Names → directories → models.", ["agevlm.checkpoints"]),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """Path → Markdown of every page."""
    from typer.main import get_command

    from agevlm.cli import app
    from agevlm.comparison.recipe import ComparisonRecipe
    from agevlm.training.foundation import FoundationSpec
    from agevlm.training.recipe import Recipe
    from agevlm.training.teachers import TeacherSpec

    told = {
        "recipe": ("Recipe keys", RECIPE, [Recipe]),
        "foundation": ("Foundation keys", FOUNDATION, [FoundationSpec, TeacherSpec]),
        "comparison": ("Comparison keys", COMPARISON, [ComparisonRecipe]),
    }
    cli, api = dict(cli_pages(get_command(app))), dict(api_pages())
    return {
        **cli,
        "reference/cli/.nav.yml": nav("Command line", cli),
        **dict(key_pages(told)),
        **api,
        "reference/api/.nav.yml": nav("Python API", api),
    }


def nav(title: str, content: Mapping[str, str]) -> str:
    """The order of a folder's pages, as they were made."""
    return json.dumps({"title": title, "nav": [path.rsplit("/", 1)[1] for path in content]})


# --------------------------------------------------------------------------------------------------- the command line


def cli_pages(root: Any) -> Iterator[tuple[str, str]]:
    """An index, and a page for each verb or group of verbs."""
    lines = ["# Command line", "", f"{root.help}", "", "| command | what it does |", "|---|---|"]
    for name, command in root.commands.items():
        for words, verb in verbs(command, ("agevlm", name)):
            anchor = f"#{'-'.join(words)}" if hasattr(command, "commands") else ""
            lines.append(f"| [`{' '.join(words)}`]({name}.md{anchor}) | {first_line(verb.help)} |")
    lines += ["", *parameters(root), "", "`--debug` may stand anywhere. An error is one line on standard error.", ""]
    lines += ["Exit status: 0 done, 1 an error, 2 wrong usage, 130 interrupted."]
    yield "reference/cli/index.md", "\n".join(lines)
    for name, command in root.commands.items():
        parts = [f"# agevlm {name}", ""]
        if hasattr(command, "commands"):
            parts += [command.help, ""]
        for words, verb in verbs(command, ("agevlm", name)):
            heading = [f"## {' '.join(words)} {{ #{'-'.join(words)} }}", ""] if hasattr(command, "commands") else []
            parts += [*heading, *verb_section(words, verb)]
        yield f"reference/cli/{name}.md", "\n".join(parts)


def verbs(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The verbs of a command: itself, or those of its group."""
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from verbs(child, (*words, name))
    else:
        yield words, command


def verb_section(words: tuple[str, ...], verb: Any) -> list[str]:
    """What a verb does, how it is called, an example, and its parameters."""
    asked = [param.name.upper() for param in verb.params if param.param_type_name == "argument"]
    example = (verb.epilog or "").removeprefix("Example: ")
    return [
        verb.help,
        "",
        "```text",
        " ".join([*words, *asked, "[OPTIONS]"]),
        "```",
        "",
        *(["Example:", "", "```sh", example, "```", ""] if example else []),
        *parameters(verb),
        "",
    ]


def parameters(verb: Any) -> list[str]:
    """A table of the arguments and options of a verb."""
    lines = ["| argument or option | default | meaning |", "|---|---|---|"]
    for param in verb.params:
        names = [param.name.upper()] if param.param_type_name == "argument" else [*param.opts, *param.secondary_opts]
        told = " ".join(f"`{name}`" for name in names)
        lines.append(f"| {told} | {cli_default(param)} | {cell(param.help or '')} |")
    return lines


def cli_default(param: Any) -> str:
    if param.required:
        return "required"
    default = param.default.value if isinstance(param.default, Enum) else param.default
    if default is None or default == () or default == []:
        return "–"
    if isinstance(default, bool):
        return "on" if default else "off"
    return code(" ".join(map(str, default)) if isinstance(default, list | tuple) else str(default))


# -------------------------------------------------------------------------------------------------------- recipe keys

RECIPE = """\
A recipe is a YAML file. A value is the default below, what the file says, or what `--set` says; the last wins. An
unknown key is an error that names the nearest known one. `agevlm recipe show NAME` prints a recipe with every default
filled in. [Training](../training.md) explains the four stages and the losses.
"""
COMPARISON = """\
The recipe of a comparison, `agevlm compare run`. [Comparing](../comparison.md) explains how arms share a
recipe, and what is reported.
"""
FOUNDATION = """\
The recipes of `agevlm scenes foundation` and `agevlm scenes teachers`, which train the small models of the
embedded world.
"""


def key_pages(told: Mapping[str, tuple[str, str, list[type[BaseModel]]]]) -> Iterator[tuple[str, str]]:
    """A page of tables for each group of settings; settings that several groups hold stand in the first."""
    homes: dict[str, str] = {}  # settings → page
    for page, (title, intro, roots) in told.items():
        parts = [f"# {title}", "", intro]
        for root in roots:
            schema = root.model_json_schema()
            found = [(name, where) for name, where in walk(schema, root.__name__, "") if name not in homes]
            homes |= dict.fromkeys(dict(found), page)
            links = {name: f"[{name}]({home}.md#{name.lower()})" for name, home in homes.items()}
            for name in dict(found):
                where = next(place for other, place in found if other == name)
                parts += keys_section(name, where, schema["$defs"].get(name, schema), links)
        yield f"reference/{page}.md", "\n".join(parts)


def walk(schema: Mapping[str, Any], name: str, where: str) -> Iterator[tuple[str, str]]:
    """Every settings model under one, with the key path at which it stands first, in the order of the keys."""
    yield name, where
    for key, value in schema["$defs"].get(name, schema)["properties"].items():
        steps = f"{where}.{key}" if where else key
        for inner, place in references(value, steps):
            yield from walk(schema, inner, place)


def references(value: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    if "$ref" in value:
        yield value["$ref"].rsplit("/", 1)[1], where
    for option in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        yield from references(option, where)
    if "items" in value:
        yield from references(value["items"], f"{where}.N")
    if isinstance(inner := value.get("additionalProperties"), dict):
        yield from references(inner, f"{where}.NAME")


def keys_section(name: str, where: str, model: Mapping[str, Any], links: Mapping[str, str]) -> list[str]:
    """The table of a settings model."""
    heading = f"`{where}`: {name}" if where else name
    lines = [f"## {heading} {{ #{name.lower()} }}", "", cell(model.get("description", "")), ""]
    lines += ['<div class="keys" markdown>', "", "| key | type | default | meaning |", "|---|---|---|---|"]
    required = model.get("required", ())
    for key, value in model["properties"].items():
        default = "required" if key in required else key_default(value)
        lines.append(f"| `{key}` | {type_of(value, links)} | {default} | {cell(value.get('description', ''))} |")
    return [*lines, "", "</div>", ""]


def key_default(value: Mapping[str, Any]) -> str:
    if "default" not in value:  # made anew for each recipe, and empty
        return code("{}")
    default = value["default"]
    if default and any(references(value, "")):
        return "its own defaults"
    if isinstance(default, float) and len(repr(default)) > 8:
        return code(f"{default:.4g}")
    return code(json.dumps(default, ensure_ascii=False))


def type_of(value: Mapping[str, Any], links: Mapping[str, str]) -> str:
    """The type of a key for people: `integer ≥ 1`, `eager, sdpa or null`, a link where it is settings of their own."""
    if "$ref" in value:
        return links[value["$ref"].rsplit("/", 1)[1]]
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(type_of(option, links) for option in value[key])
    if "enum" in value:
        return ", ".join(code(option) for option in value["enum"])
    if "const" in value:
        return code(value["const"])
    kind = value.get("type", "anything")
    if kind == "array":
        return f"list of {type_of(value.get('items', {}), links)}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"mapping to {type_of(inner, links)}" if isinstance(inner, dict) else "mapping"
    kind = value.get("format", kind)
    if {"minimum", "maximum"} <= value.keys():
        return f"{kind}, {value['minimum']:g} to {value['maximum']:g}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " ".join([kind, *(f"{sign} {value[bound]:g}" for bound, sign in bounds.items() if bound in value)])


# --------------------------------------------------------------------------------------------------------- Python API


def api_pages() -> Iterator[tuple[str, str]]:
    """The public names of the package, and a page for each room that people use, without them."""
    public = {name: value for name in agevlm.__all__ if hasattr(value := getattr(agevlm, name), "__qualname__")}
    parts = ["# agevlm", "", "The public names. They load when they are first used.", ""]
    for value in sorted(public.values(), key=lambda value: isinstance(value, type)):  # functions first
        parts += [f"::: {value.__module__}.{value.__qualname__}", ""]
    yield "reference/api/index.md", "\n".join(parts)
    hidden = json.dumps(["!^_", f"!^({'|'.join(public)})$"])
    for title, (intro, modules) in API.items():
        shown = [line for module in modules for line in (f"::: {module}", f"    options: {{filters: {hidden}}}", "")]
        path = f"reference/api/{title.lower().replace(' ', '_')}.md"
        yield path, "\n".join([f"# {title}", "", intro, "", *shown])


# -------------------------------------------------------------------------------------------------------------- cells


def first_line(text: str) -> str:
    return cell(text.strip().splitlines()[0])


def cell(text: str) -> str:
    """Text in the cell of a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def code(value: Any) -> str:
    return f"`{cell(str(value))}`"
