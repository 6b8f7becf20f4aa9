"""Names → benchmarks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from agevlm.evaluation.official.amber import AMBER
from agevlm.evaluation.official.benchmark import Benchmark
from agevlm.evaluation.official.chair import CHAIR
from agevlm.evaluation.official.cv_bench import CV_BENCH, CV_BENCH_2D, CV_BENCH_3D
from agevlm.evaluation.official.hallusionbench import HALLUSIONBENCH
from agevlm.evaluation.official.mmstar import MMSTAR
from agevlm.evaluation.official.mmvp import MMVP
from agevlm.evaluation.official.pope import POPE, REPOPE
from agevlm.evaluation.official.realworldqa import REALWORLDQA

_ALL = (
    POPE,
    REPOPE,
    CV_BENCH,
    CV_BENCH_2D,
    CV_BENCH_3D,
    MMVP,
    REALWORLDQA,
    MMSTAR,
    HALLUSIONBENCH,
    AMBER,
    CHAIR,
)

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({benchmark.name: benchmark for benchmark in _ALL})


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`, in any case; an unknown one is a ValueError with the nearest name."""
    if name.lower() in BENCHMARKS:
        return BENCHMARKS[name.lower()]
    near = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}.{hint}")
