"""Every tutorial does what it says: the blocks of a page run in their order, in a directory of their own.

They are made small by the substitutions below, which stand for nothing else, and each must find its text on the page.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agevlm.cli import main

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TYPED = ("python", "sh")  # all else is shown: output, and files that a shell block writes

# what stands on a page → what is run in its place
SMALL: dict[str, dict[str, str]] = {
    "1-look": {},
    "2-train": {
        "agevlm train quickstart": "agevlm train quickstart --set num_workers=0 --set evaluation.num_images=4"
        " --set data.scenes.num_scenes=16 --set data.crowded.num_scenes=16"
        " --set stages.align.steps=1 --set stages.cross-attention.steps=1"
        " --set stages.ground.steps=2 --set stages.instruct.steps=2",
        "num_images=100": "num_images=4",
    },
    "3-coco": {
        "--num 500": "--num 16",
        "agevlm train photos": "agevlm train photos --set model.vision_model=tiny-convnext --set model.image_size=96"
        " --set data.photographs.augment.views=2 --set num_workers=0 --set stages.ground.images_per_batch=4"
        " --set stages.ground.steps=2 --set stages.instruct.steps=2 --set stages.instruct.images_per_batch=4",
    },
    "4-your-own-parts": {
        "num_scenes: 1600": "num_scenes: 16",
        "images_per_batch: 16": "images_per_batch: 4",
        "steps: 120": "steps: 2",
        "num_images: 60": "num_images: 4",
    },
    "5-teachers": {
        "num_scenes: 1500": "num_scenes: 16",
        "steps: 200": "steps: 2, batch_size: 4",
        "--num 200": "--num 6",
    },
    "6-compare": {
        "num_seeds: 3": "num_seeds: 1",
        "num_scenes: 1200": "num_scenes: 16",
        "images_per_batch: 16": "images_per_batch: 4",
        "steps: 150": "steps: 2",
        "num_images: 50": "num_images: 4",
    },
}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of what a reader types, in order."""
    return ((language, code) for language, code in BLOCK.findall(text) if language in TYPED)


def made_small(text: str, changes: dict[str, str]) -> str:
    """The code with every substitution made; one that finds nothing is an error."""
    for written, small in changes.items():
        assert written in text, f"the page no longer has {written!r}"
        text = text.replace(written, small)
    return text


def run_python(code: str, session: dict[str, Any]) -> None:
    exec(compile(code, "<tutorial>", "exec"), session)


def run_shell(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are an `agevlm` command and words alone run in this process, which spares them a start; else bash."""
    commands = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    if all(words[:1] in ([], ["agevlm"]) for words in commands) and not set(code) & set("|<>$*&;"):
        for words in filter(None, commands):
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stopped:
                main()
            assert not stopped.value.code, shlex.join(words)
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True, env={**os.environ, "PATH": path})


def test_every_tutorial_is_run() -> None:
    assert list(SMALL) == sorted(path.stem for path in PAGES.glob("[0-9]*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_tutorial_runs_and_makes_its_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert f"](images/{name}.png)" in page, "the page shows the picture that it makes"
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {"__name__": "__main__"}
    typed = made_small("".join(f"```{language}\n{code}```\n" for language, code in blocks(page)), SMALL[name])
    for language, code in blocks(typed):
        if language == "python":
            run_python(code, session)
        else:
            run_shell(code, monkeypatch)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", SMALL)
def test_the_picture_on_the_page_is_small(name: str) -> None:
    assert (PAGES / "images" / f"{name}.png").stat().st_size < 200_000
