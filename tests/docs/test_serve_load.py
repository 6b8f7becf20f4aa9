"""What docs/serve.md says of the speed and the memory of serving is what the files of its load script hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
BARS = {  # by the name of the ratio: at least, at most
    "served_over_one_by_one": (4, None),
    "served_over_batches": (2, None),
    "first_token_p95_loaded_over_idle": (None, 3),
    "first_token_cold_over_warm": (3, None),
}


def load(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_the_table_of_speed(model: str) -> None:
    result = load(f"serve_load_{model}")
    cells = " | ".join(f"{result['ratios'][name]:.1f}" for name in BARS)
    assert f"| `{model}` | {cells} |" in PAGE
    for name, (least, most) in BARS.items():
        ratio = result["ratios"][name]
        assert result["bars"][name] == ((least is None or ratio >= least) and (most is None or ratio <= most))


def test_the_memory_of_many_requests() -> None:
    result = load("serve_soak_tiny")
    memory = result["memory_mb"]
    assert f"{result['num_requests']:,} requests" in PAGE
    told = (
        f"{memory[0]:.0f} MB after the first tenth of them, {memory[3]:.0f} MB after the fourth and {memory[-1]:.0f} MB"
    )
    assert told in " ".join(PAGE.split())
    statuses = {name.split('status="')[1].split('"')[0] for name in result["counted"] if "requests_total" in name}
    assert statuses == {"200"}
    answered = sum(value for name, value in result["counted"].items() if "answers_total" in name)
    assert answered == result["num_requests"]
