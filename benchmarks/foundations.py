"""Two sets of runs of the comparison in one: figures of its arms over all foundations that they ever started from.

    python benchmarks/foundations.py

reads results/comparison.json, and in results/foundations.json (`earlier`) the values of an earlier set of its runs,
whose foundations 1 and 2 were other networks. It writes means, paired differences and ratios over both sets to
results/foundations.json, with intervals over runs and foundations alone, and prints the table of docs/log.md.
"""

from __future__ import annotations

import argparse
import json
import operator
from functools import reduce
from pathlib import Path
from typing import Any

from agevlm.comparison.summary import write_summary
from agevlm.evaluation.statistics import difference_of_seeds, estimate_of_seeds, ratio_of_seeds

RESULTS = Path(__file__).parents[1] / "results"
ADVERSARIAL = "pope.adversarial.accuracy"
FIGURES = (ADVERSARIAL, "pope.random.accuracy", "pointing.accuracy", "text_perplexity.after")
NUM_FOUNDATIONS = 3  # of a set
EARLIER = 10  # what the runs of the earlier set are counted from
GUIDED = ("age", "age_plus", "concat_guided")

Values = dict[str, dict[str, dict[int, float]]]  # arm → figure → run → value


def foundation(run: int) -> int:
    """The foundation that a run started from; number 0 counts as the same in both sets."""
    number = run % EARLIER % NUM_FOUNDATIONS
    return number + EARLIER if run >= EARLIER and number else number


def read_values(comparison: dict[str, Any], earlier: dict[str, Any]) -> Values:
    values: Values = {}
    for arm, figures in comparison["arms"].items():
        for name in FIGURES:
            found = reduce(operator.getitem, name.split("."), figures)
            now = dict(zip(found["seeds"], found["values"], strict=True))
            before = {EARLIER + int(seed): value for seed, value in earlier[arm][name].items()}
            values.setdefault(arm, {})[name] = now | before
    return values


def pooled(values: Values) -> dict[str, Any]:
    runs = {run for figures in values.values() for known in figures.values() for run in known}
    groups = {run: foundation(run) for run in runs}
    answers = {arm: figures[ADVERSARIAL] for arm, figures in values.items()}
    errors = {arm: {run: 1 - value for run, value in known.items()} for arm, known in answers.items()}
    pairs = {arm: [other for other in values if other != arm] for arm in GUIDED}
    return {
        "foundations": groups,
        "arms": {
            arm: {name: estimate_of_seeds(known, groups=groups).record() for name, known in figures.items()}
            for arm, figures in values.items()
        },
        "differences": {
            arm: {
                other: {ADVERSARIAL: difference_of_seeds(answers[arm], answers[other], groups=groups).record()}
                for other in others
            }
            for arm, others in pairs.items()
        },
        "error_ratios": {
            arm: {other: ratio_of_seeds(errors[arm], errors[other], groups=groups).record() for other in others}
            for arm, others in pairs.items()
        },
    }


def by_foundation(known: dict[int, float]) -> str:
    """The values, those of one foundation together: 0, then 1 and 2 of this set and of the earlier one."""
    numbers = sorted({foundation(run) for run in known})
    parts = (" ".join(f"{value:.3f}" for run, value in sorted(known.items()) if foundation(run) == n) for n in numbers)
    return " · ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    path = RESULTS / "foundations.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    comparison = json.loads((RESULTS / "comparison.json").read_text(encoding="utf-8"))
    values = read_values(comparison, kept["earlier"])
    found = pooled(values)
    write_summary({"name": "foundations", "remarks": kept["remarks"], "earlier": kept["earlier"], **found}, path)
    print("| arm | adversarial accuracy of each run, foundation by foundation | mean, 95 % interval | pointing |")
    print("|---|---|---|---|")
    for arm, figures in found["arms"].items():
        answers, pointing = figures[ADVERSARIAL], figures["pointing.accuracy"]
        spread = f"{answers['mean']:.3f} ({answers['low']:.3f} to {answers['high']:.3f})"
        told = by_foundation(values[arm][ADVERSARIAL])
        print(f"| {comparison['titles'][arm]} | {told} | {spread} | {pointing['mean']:.3f} |")
    for arm, others in found["error_ratios"].items():
        for other, ratio in others.items():
            gap = found["differences"][arm][other][ADVERSARIAL]
            print(
                f"{arm} / {other}: error {ratio['mean']:.0%} ({ratio['low']:.0%} to {ratio['high']:.0%}), "
                f"accuracy {gap['mean']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
            )


if __name__ == "__main__":
    main()
