"""The house: imports point one way, every module loads, nothing heavy loads early, files and functions stay small."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import run_code

import agevlm

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PLUGIN = "agevlm.evaluation.lmms.model"  # for lmms-eval, which alone imports it
MODULES = sorted({m.name for m in pkgutil.walk_packages(agevlm.__path__, "agevlm.")} - {PLUGIN})
OPTIONAL = ("matplotlib", "pyarrow", "pycocotools")
HEAVY = (*OPTIONAL, "scipy", "torch", "transformers", "numpy", "PIL", "rich")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 700, 60


def test_imports_point_one_way() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(verbose=False))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_importing_the_package_and_its_command_loads_no_drawing_and_no_data_formats() -> None:
    code = f"import sys, agevlm.cli, agevlm.checkpoints; print(*(name for name in {OPTIONAL} if name in sys.modules))"
    assert run_code(code).split() == []


@pytest.mark.parametrize("called", [["agevlm"], ["-m", "agevlm.cli"]])
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["recipe", "list"]])
def test_the_command_answers_without_torch(called: list[str], arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv, sys.orig_argv = {[called[0], *arguments]}, [sys.executable, *{called + arguments}]\n"
        "from agevlm.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'scipy', 'jinja2'} & set(sys.modules)"
    )
    assert run_code(code).strip()


def imported_at_once(path: Path) -> list[str]:
    """The modules that a file imports at its top."""
    names: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


@pytest.mark.parametrize("path", [p for p in SOURCES if {"cli", "checkpoints"} & set(p.parts)], ids=lambda p: p.name)
def test_the_command_imports_a_room_only_where_it_calls_it(path: Path) -> None:
    names = imported_at_once(path)
    heavy = [name for name in names if name.split(".")[0] in HEAVY]
    own = "cli" if "cli" in path.parts else "checkpoints"
    rooms = [name for name in names if re.match(rf"agevlm\.(?!{own}\b)", name)]
    assert (heavy, rooms) == ([], [])


def test_scipy_is_imported_only_where_it_is_used() -> None:
    """Transformers loads it in its own good time: what ours load cannot be seen from `sys.modules`."""
    assert [path.name for path in SOURCES if any(re.match(r"scipy\b", name) for name in imported_at_once(path))] == []


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            doc_lines = doc.end_lineno - doc.lineno + 1 if doc is not None and doc.end_lineno is not None else 0
            assert node.end_lineno is not None
            yield f"{path.name}:{node.name}", node.end_lineno - node.lineno + 1 - doc_lines


def test_functions_and_files_stay_small() -> None:
    long_files = {
        str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > MAX_FILE_LINES
    }
    long_functions = {name: n for path in SOURCES for name, n in functions(path) if n > MAX_FUNCTION_LINES}
    assert (long_files, long_functions) == ({}, {})


def test_every_module_and_public_function_says_what_it_does() -> None:
    silent = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and ast.get_docstring(tree) is None:
            silent.append(path.name)
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                silent.append(f"{path.name}:{node.name}")
    assert silent == []
