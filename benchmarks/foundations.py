"""Two sets of runs of the comparison in one: figures of its arms over all foundations that they ever started from.

    python benchmarks/foundations.py

reads results/comparison.json, and in results/foundations.json (`earlier`) the values of an earlier set of its runs,
whose foundations 1 and 2 were other networks. It writes means, paired differences and ratios over both sets to
results/foundations.json, with intervals over runs and foundations alone, and prints them as tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from agevlm.comparison.readings import percent, read, section, signed, written
from agevlm.comparison.recipe import load_comparison
from agevlm.comparison.summary import write_summary
from agevlm.evaluation.statistics import difference_of_seeds, estimate_of_seeds, ratio_of_seeds

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
RECIPE = load_comparison(ROOT / "recipes" / "comparison.yaml")
ADVERSARIAL = "pope.adversarial.accuracy"
FIGURES = (ADVERSARIAL, "pope.random.accuracy", "pointing.accuracy", "text_perplexity.after")
EARLIER = 10  # what the runs of the earlier set are counted from
GUIDED = ("age", "age_plus", "concat_guided")

Values = dict[str, dict[str, dict[int, float]]]  # arm → figure → run → value


def foundation(run: int) -> int:
    """The foundation that a run started from; number 0 counts as the same in both sets."""
    number = RECIPE.foundation_of(run % EARLIER) or 0
    return number + EARLIER if run >= EARLIER and number else number


def read_values(comparison: dict[str, Any], earlier: dict[str, Any]) -> Values:
    """The values of both sets, a number of its own for each run."""
    return {arm: {name: _values(comparison, earlier, arm, name) for name in FIGURES} for arm in comparison["arms"]}


def _values(comparison: dict[str, Any], earlier: dict[str, Any], arm: str, name: str) -> dict[int, float]:
    now = section(comparison, f"arms.{arm}.{name}")
    before = {EARLIER + int(seed): value for seed, value in earlier[arm][name].items()}
    return dict(zip(now["seeds"], now["values"], strict=True)) | before


def pooled(values: Values) -> dict[str, Any]:
    """Figures of all arms, and differences and ratios of adversarial accuracy and error of the guided ones."""
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
    found = kept | pooled(values)
    write_summary(found, path)
    titles = comparison["titles"]
    print("| arm | adversarial accuracy of each run, foundation by foundation | mean, 95 % interval | pointing |")
    print("|---|---|---|---|")
    for arm, figures in values.items():
        means = (written(read(found["arms"][arm][name])) for name in (ADVERSARIAL, "pointing.accuracy"))
        print(f"| {titles[arm]} | {by_foundation(figures[ADVERSARIAL])} | {' | '.join(means)} |")
    print("\n| adversarial | error over the other's | accuracy minus the other's |")
    print("|---|---|---|")
    for arm, others in found["error_ratios"].items():
        for other, ratio in others.items():
            difference = signed(read(found["differences"][arm][other][ADVERSARIAL]))
            print(f"| {titles[arm]} and {titles[other]} | {percent(read(ratio))} | {difference} |")


if __name__ == "__main__":
    main()
