"""The documents say what the code does: every key, default, kind and record is listed as it is."""

from __future__ import annotations

import dataclasses
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from agevlm.data import schema
from agevlm.data.language import DEFAULT_KINDS
from agevlm.data.rows import COLUMNS
from agevlm.data.scenes import CATEGORIES, COLOURS, WorldSpec
from agevlm.evaluation.parsing import YES_NO_PARSERS
from agevlm.guidance import GUIDANCE_LOSSES
from agevlm.training import recipe

DOCS = Path(__file__).parents[2] / "docs"
MODELS: dict[str, list[type[BaseModel]]] = {
    "training.md": [
        recipe.Recipe,
        recipe.ModelRecipe,
        recipe.ScenesSource,
        recipe.ParquetSource,
        recipe.StageRecipe,
        recipe.GuidanceRecipe,
        recipe.LoraRecipe,
        recipe.EvaluationRecipe,
    ],
    "data.md": [WorldSpec],
}


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(document: str, heading: str) -> str:
    """What stands under a heading, down to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", document, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {heading!r}"
    return found.group(1)


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    rules = {number for number, row in enumerate(cells) if set("".join(row)) <= set("-|: ")}
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def documented_default(cell: str) -> Any:
    if re.fullmatch(r"\d+/\d+", cell):
        return pytest.approx(float(Fraction(cell)))
    return json.loads(cell)


@pytest.mark.parametrize(
    ("document", "model"),
    [(document, model) for document, models in MODELS.items() for model in models],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_key_is_listed_with_its_default(document: str, model: type[BaseModel]) -> None:
    text = read(document)
    heading = re.search(rf"^#+ (.*\({model.__name__}\))$", text, re.MULTILINE)
    assert heading, f"{document} has no section ({model.__name__})"
    listed = {names(row[0])[0]: row[1] for row in rows(section(text, heading.group(1)))}
    assert list(listed) == list(model.model_fields)
    for key, field in model.model_fields.items():
        default = to_jsonable_python(field.default) if not field.is_required() else None
        if field.is_required():
            assert listed[key] == "required", key
        elif listed[key] == "see below":
            assert isinstance(default, dict), key
            assert default, key
        else:
            assert default == documented_default(listed[key]), key


def test_every_kind_of_conversation_is_listed_with_its_weight() -> None:
    listed = rows(section(read("data.md"), "What is said and asked"))
    assert {names(row[0])[0]: float(row[1]) for row in listed} == DEFAULT_KINDS


def test_every_column_is_listed() -> None:
    listed = rows(section(read("data.md"), "On disk: Parquet"))
    assert [names(row[0])[0] for row in listed] == [name for name, _ in COLUMNS]


def test_every_field_of_a_record_is_listed() -> None:
    records = [row for row in rows(section(read("data.md"), "The records")) if len(row) == 3]
    assert len(records) == 7
    for name, fields, _ in records:
        record = getattr(schema, names(name)[0])
        assert names(fields) == [field.name for field in dataclasses.fields(record)], name


def test_the_world_is_told_whole() -> None:
    text = section(read("data.md"), "The embedded world")
    missing = [word for word in (*CATEGORIES, *COLOURS) if word not in text]
    assert missing == []


def test_every_loss_and_parser_is_told() -> None:
    losses = [row for row in rows(section(read("training.md"), "Guidance")) if row]
    assert [names(row[0])[0] for row in losses] == list(GUIDANCE_LOSSES)
    told = section(read("evaluation.md"), "How an answer is read")
    assert all(f"--parser {name.replace('_', '-')}" in told for name in YES_NO_PARSERS)


def test_the_recipe_of_the_docs_is_one() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", read("training.md"), re.DOTALL)
    assert blocks
    for block in blocks:
        recipe.parse_recipe(yaml.safe_load(block), "docs/training.md")


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_every_heading_linked_to_exists(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
        linked = (path.parent / target) if target else path
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, (target, anchor)


def test_every_file_of_ours_that_is_named_exists() -> None:
    root = DOCS.parent
    named = {
        name
        for path in (*DOCS.rglob("*.md"), root / "benchmarks" / "README.md")
        for name in re.findall(r"(?:benchmarks|examples|recipes)/[\w/]+\.(?:py|yaml)", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [name for name in sorted(named) if not (root / name).is_file()] == []
