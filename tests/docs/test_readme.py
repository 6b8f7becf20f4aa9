"""The README says what is so: its commands exist and parse, its links lead somewhere, its Python runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from agevlm.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMED = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "benchmarks/README.md")]
DOCUMENTS = sorted([*NAMED, *(ROOT / "docs").rglob("*.md")])


def blocks(text: str, *languages: str) -> Iterator[str]:
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in languages:
            yield body


def shell_lines(text: str) -> Iterator[str]:
    for body in blocks(text, "", "sh", "bash", "console", "shell"):
        for line in body.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


COMMANDS = sorted({(path.name, line) for path in DOCUMENTS for line in shell_lines(path.read_text(encoding="utf-8"))})


def parse(arguments: list[str]) -> None:
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        assert arguments, "a group of verbs, and no verb"
        assert arguments[0] in command.commands, f"no verb {arguments[0]!r}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(command.name, arguments)


@pytest.mark.parametrize("line", sorted({line for _, line in COMMANDS if line.startswith("agevlm ")}))
def test_every_agevlm_command_parses(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[1:] not in (["--help"], ["--version"]):
        parse([word for word in words[1:] if word != "--debug"])


@pytest.mark.parametrize("line", sorted({line for _, line in COMMANDS if line.startswith("make ")}))
def test_every_make_target_exists(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (word for word in shlex.split(line, comments=True)[1:] if "=" not in word):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    """The pages of the reference are made when the site is built, which checks the links to them."""
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    targets += re.findall(r'(?:src|href)="([^"#]+)"', path.read_text(encoding="utf-8"))
    files = [path.parent / target for target in targets if "://" not in target and not target.startswith("mailto:")]
    made = ROOT / "docs" / "reference"
    missing = [file for file in files if not file.resolve().is_relative_to(made) and not file.exists()]
    assert missing == []


def test_the_readme_names_the_two_commands_and_the_licence() -> None:
    commands = {line.split("#")[0].strip() for _, line in COMMANDS}
    assert {"make quickstart", "make test"} <= commands
    assert "Apache" in README


@pytest.mark.parametrize("code", list(blocks(README, "python")))
def test_the_python_of_the_readme_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from agevlm.data.scenes import WorldSpec, draw_scene

    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"[\"']([\w./-]+\.(?:png|jpg))[\"']", code):  # pictures that the code may read
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(WorldSpec(), seed=3, index=0).image).save(name)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
