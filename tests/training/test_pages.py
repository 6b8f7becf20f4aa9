"""Large tensors of training come in huge pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNT = """
import resource, torch
import {module}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(module: str, **chosen: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    told = subprocess.run(
        [sys.executable, "-c", COUNT.format(module=module)],
        env={**environment, **chosen},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    return int(told.stdout)


@pytest.mark.skipif(
    not ALLOWED.exists() or "[madvise]" not in ALLOWED.read_text(encoding="utf-8"),
    reason="the system gives no huge pages on request",
)
def test_a_large_tensor_costs_few_page_faults() -> None:
    plain = page_faults("agevlm.modeling")
    assert plain > 10_000
    assert page_faults("agevlm.training.run") < plain / 4
    assert page_faults("agevlm.training.run", THP_MEM_ALLOC_ENABLE="0") > plain / 2, "a choice that was made stands"
