"""The wheel, built from the repository: what it holds and what it asks for. `make newest` installs and uses it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from agevlm.checkpoints import PACKAGED

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository as it stands."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=ROOT)
    (path,) = out.glob("agevlm-*.whl")
    return path


def test_the_wheel_holds_code_checkpoints_and_recipes_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {file.filename: file.compress_size for file in archive.infolist()}
    names = list(sizes)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"agevlm"}
    for name in PACKAGED:
        assert f"agevlm/checkpoints/{name}/config.json" in names
        assert f"agevlm/checkpoints/{name}/model.safetensors" in names
    shape = "training/known_shapes/llama-3.2-1b.json"
    for name in ("recipes/quickstart.yaml", "recipes/scenes.yaml", "recipes/age_vlm_1b.yaml", shape, "py.typed"):
        assert f"agevlm/{name}" in names
    for path in (ROOT / "src/agevlm/analysis/templates").iterdir():
        assert f"agevlm/analysis/templates/{path.name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pyc"))]
    weights = {name for name in names if name.endswith(".safetensors")}
    assert {Path(name).parent.name for name in weights} == set(PACKAGED)
    assert sum(size for name, size in sizes.items() if name not in weights) < 750_000
    assert wheel.stat().st_size < 26_000_000


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = ("dev", "docs", "timm")  # what a user of the package does not install, and what brings torchvision along
    extras = [line for name, lines in project["optional-dependencies"].items() if name not in tools for line in lines]
    floors = dict(re.match(r"([\w-]+)[^>]*>=([\d.]+)", line).groups() for line in project["dependencies"] + extras)
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    floors["torch"] = pins["torch"]  # the file has its CPU build of one version only
    for name, floor in floors.items():
        assert re.fullmatch(rf"{re.escape(floor)}(\.0)*", pins[name]), (name, floor, pins[name])
