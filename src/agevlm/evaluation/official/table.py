"""Names → benchmarks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from agevlm.evaluation.official.benchmark import Benchmark
from agevlm.evaluation.official.pope import POPE, REPOPE

_ALL = (POPE, REPOPE)

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({benchmark.name: benchmark for benchmark in _ALL})


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`; an unknown one is a ValueError with the nearest name."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}.{hint}")
