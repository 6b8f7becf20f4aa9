"""The documents say what the code does: every kind, record and loss is listed as it is, and every key is described."""

from __future__ import annotations

import dataclasses
import re
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from agevlm.comparison.recipe import ComparisonRecipe
from agevlm.data import schema
from agevlm.data.language import DEFAULT_KINDS
from agevlm.data.rows import COLUMNS
from agevlm.data.scenes import CATEGORIES, COLOURS
from agevlm.evaluation.official.table import BENCHMARKS
from agevlm.evaluation.parsing import YES_NO_PARSERS
from agevlm.guidance import GUIDANCE_LOSSES
from agevlm.training.foundation import FoundationSpec
from agevlm.training.plan import GPUS
from agevlm.training.recipe import Recipe, parse_recipe
from agevlm.training.shapes import known_shapes
from agevlm.training.teachers import TeacherSpec

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LIST = re.compile(r"(?:[-*]|1\.) ")


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


@pytest.mark.parametrize("settings", [Recipe, ComparisonRecipe, FoundationSpec, TeacherSpec])
def test_every_key_is_described(settings: type[BaseModel]) -> None:
    """The reference is made of these descriptions; a key has one by the string that stands below it."""
    content = settings.model_json_schema()
    models = {**content["$defs"], settings.__name__: content}
    bare = [
        f"{name}.{key}"
        for name, model in models.items()
        for key, value in model["properties"].items()
        if not value.get("description", "").endswith((".", ")"))
    ]
    assert bare == []


def test_every_kind_of_conversation_is_listed_with_its_weight() -> None:
    listed = rows(section(read("scenes.md"), "What is said and asked"))
    assert {names(row[0])[0]: float(row[1]) for row in listed} == DEFAULT_KINDS


def test_every_column_is_listed() -> None:
    listed = rows(section(read("data.md"), "On disk: Parquet"))
    assert [names(row[0])[0] for row in listed] == [name for name, _ in COLUMNS]


def test_every_official_benchmark_is_listed_with_its_protocols() -> None:
    page = read("benchmarks-official.md")
    listed = {names(row[0])[0]: names(row[2]) for row in rows(section(page, "Which there are"))}
    assert listed == {name: [p.name for p in benchmark.protocols] for name, benchmark in BENCHMARKS.items()}
    decided = {tuple(row[0].replace("`", "").rsplit(" ", 1)) for row in rows(section(page, "What a protocol decides"))}
    parts = {"cv-bench-2d", "cv-bench-3d", "repope"}
    assert decided == {
        (benchmark.title.partition(" (")[0], protocol.name)
        for name, benchmark in BENCHMARKS.items()
        if name not in parts
        for protocol in benchmark.protocols
    }


def test_every_field_of_a_record_is_listed() -> None:
    records = [row for row in rows(section(read("data.md"), "The records")) if len(row) == 3]
    assert len(records) == 7
    for name, fields, _ in records:
        record = getattr(schema, names(name)[0])
        assert names(fields) == [field.name for field in dataclasses.fields(record)], name


def test_the_world_is_told_whole() -> None:
    text = section(read("scenes.md"), "What is in it")
    missing = [word for word in (*CATEGORIES, *COLOURS) if word not in text]
    assert missing == []


def test_every_loss_and_parser_is_told() -> None:
    losses = [row for row in rows(section(read("guidance.md"), "Guidance")) if row]
    assert [names(row[0])[0] for row in losses] == list(GUIDANCE_LOSSES)
    told = section(read("evaluation.md"), "How an answer is read")
    assert all(f"--parser {name.replace('_', '-')}" in told for name in YES_NO_PARSERS)


def test_the_recipes_of_the_docs_are_some() -> None:
    block = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
    for page in ("training.md", "photographs.md"):
        trainings = block.findall(read(page))
        assert trainings, page
        for content in trainings:
            parse_recipe(yaml.safe_load(content), f"docs/{page}")
    comparisons = block.findall(read("comparison.md"))
    assert comparisons
    for content in comparisons:
        ComparisonRecipe.model_validate(yaml.safe_load(content))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_every_heading_linked_to_exists(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
        linked = (path.parent / target).resolve() if target else path
        if linked.is_relative_to(DOCS / "reference"):  # made when the site is built, which checks its headings
            continue
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, (target, anchor)


def test_every_file_of_ours_that_is_named_exists() -> None:
    root = DOCS.parent
    named = {
        name
        for path in (*PAGES, root / "benchmarks" / "README.md")
        for name in re.findall(r"(?:benchmarks|examples|recipes)/[\w/]+\.(?:py|yaml)", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [name for name in sorted(named) if not (root / name).is_file()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_a_list_begins_behind_an_empty_line(path: Path) -> None:
    """Else the site, unlike code hosts, takes it for a part of the paragraph."""
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = text.splitlines()
    glued = [
        line
        for before, line in pairwise(lines)
        if LIST.match(line) and before and not before.startswith(" ") and not LIST.match(before)
    ]
    assert glued == []


def test_the_site_has_a_page_for_every_command_and_model() -> None:
    """`make docs` builds them; here they are only made, without MkDocs."""
    pytest.importorskip("mkdocs")
    pages = runpy.run_path(str(DOCS / "hooks" / "reference.py"))["pages"]()
    assert "`--resume`" in pages["reference/cli/train.md"]
    assert "| `text_ratio` | number, 0 to 1 | `0.0` |" in pages["reference/recipe.md"]
    assert "[WorldSpec](recipe.md#worldspec)" in pages["reference/foundation.md"]
    assert "::: agevlm.api.look" in pages["reference/api/index.md"]


def test_the_page_of_plans_names_every_gpu_and_every_shape() -> None:
    named = set(re.findall(r"`([\w.-]+)`", read("plan.md")))
    assert [name for name in (*GPUS, *known_shapes()) if name not in named] == []
