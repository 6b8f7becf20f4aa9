"""What a run left in its directory, read for the report; a file that is missing or damaged is noted, not an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agevlm.documents import parse_json, read_bytes


@dataclass
class Run:
    """What was found in the directory of a run, and what was not (`missing`, in words)."""

    name: str
    recipe: str = ""
    logs: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def read_run(run_dir: Path) -> Run:
    """Read recipe.yaml, log.jsonl, stages.json, metrics.json, predictions.jsonl and environment.json of `run_dir`.

    Of a run on one's own data also probe.json.
    """
    run = Run(run_dir.resolve().name)
    run.recipe = _read(run, run_dir / "recipe.yaml", "the recipe", str) or ""
    run.logs = _read(run, run_dir / "log.jsonl", "the loss curves", _lines) or []
    run.stages = _read(run, run_dir / "stages.json", "the table of stages", partial(_json, kind=list)) or []
    run.metrics = _read(run, run_dir / "metrics.json", "all figures", partial(_json, kind=dict)) or {}
    run.predictions = _read(run, run_dir / "predictions.jsonl", "why cases were chosen", _lines) or []
    run.environment = _read(run, run_dir / "environment.json", "versions", partial(_json, kind=dict)) or {}
    if (probe := run_dir / "probe.json").exists():
        run.probe = _read(run, probe, "the linear probe", partial(_json, kind=dict)) or {}
    return run


def _read(run: Run, path: Path, what: str, parse: Any) -> Any:
    """The parsed content of `path`, or None with a line in `run.missing`."""
    try:
        return parse(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        run.missing.append(f"{what}: the run has no {path.name}")
    except (ValueError, OSError) as error:
        run.missing.append(f"{what}: {path.name} cannot be read ({error})")
    return None


def _json(content: str, kind: type) -> Any:
    value = parse_json(content, "it")
    if not isinstance(value, kind):
        raise ValueError(f"it holds a {type(value).__name__}, not a {kind.__name__}")
    return value


def _lines(content: str) -> list[dict[str, Any]]:
    return [_json(line, dict) for line in content.split("\n") if line.strip()]
