"""The content of a file of figures, made up: six arms with every section that the pages know."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise, permutations
from typing import Any

TITLES = {
    "concat": "concatenation, all tokens",
    "concat_pooled": "concatenation, a quarter of the tokens",
    "concat_guided": "concatenation, pooled and guided",
    "cross_attention": "cross-attention, unguided",
    "age": "AGE, guided in stage 3",
    "age_plus": "AGE +, guided to the end, answers and null token too",
}
ACCURACY = {
    "concat": 0.80,
    "concat_pooled": 0.84,
    "concat_guided": 0.86,
    "cross_attention": 0.60,
    "age": 0.90,
    "age_plus": 0.95,
}
SPREAD = 0.01
UNGUIDED, CONCATENATION = "cross_attention", ("concat", "concat_pooled", "concat_guided")


def make_claims() -> list[dict[str, Any]]:
    """A claim of each kind about two arms, one of them added later, and one about the arm that is to be beaten."""
    claims: list[dict[str, Any]] = [
        {"said": "Looks away", "arm": UNGUIDED, "figure": "pointing.accuracy", "under": 0.6},
        {"said": "Null token", "arm": "age_plus", "figure": "detection.random.null_mass.auroc", "at_least": 0.95},
    ]
    for arm, added in (("age", False), ("age_plus", True)):
        error = {"arm": arm, "kind": "error_ratio", "figure": "pope.adversarial.error", "added": added}
        equal = {"arm": arm, "kind": "difference", "figure": "pope.adversarial.accuracy", "within": "equal_time"}
        claims += [
            {"said": f"{arm} errs less", **error, "against": UNGUIDED, "at_most": 0.35},
            {"said": f"{arm} errs less than the best", **error, "against": CONCATENATION, "at_most": 0.5},
            {"said": f"{arm} is no worse", **equal, "against": CONCATENATION, "at_least": 0, "added": added},
            {"said": f"{arm} points", "arm": arm, "figure": "pointing.accuracy", "at_least": 0.96, "added": added},
        ]
    return claims


def estimate(mean: float, spread: float = SPREAD) -> dict[str, Any]:
    """A record of `statistics.Estimate` over three seeds."""
    values = [mean - spread / 2, mean, mean + spread / 2]
    ends = {"low": mean - spread, "high": mean + spread}
    return {"mean": mean, **ends, "values": values, "seeds": [0, 1, 2], "num_seeds": 3, "bootstrap": None, "t": None}


def make_figures(accuracy: float, pointing: float = 0.97) -> dict[str, Any]:
    """The figures of an arm, nested as in metrics.json."""
    pope = {"accuracy": estimate(accuracy), "yes_ratio": estimate(0.52)}
    return {
        "pope": {"random": {"accuracy": estimate(accuracy + 0.02)}, "adversarial": pope},
        "counting": {"accuracy": estimate(0.8)},
        "pointing": {"accuracy": estimate(pointing), "ceiling": estimate(0.84)},
        "text_perplexity": {
            "before": estimate(2.1),
            "align": estimate(2.1),
            "instruct": estimate(2.6),
            "after": estimate(2.7),
        },
    }


def make_between(accuracy: Mapping[str, float]) -> dict[str, Any]:
    """`differences` of every two arms, one way round as the file has them, and `error_ratios` both ways."""
    differences: dict[str, Any] = {}
    ratios: dict[str, Any] = {arm: {} for arm in accuracy}
    for one, two in permutations(accuracy, 2):
        ratios[one][two] = estimate((1 - accuracy[one]) / (1 - accuracy[two]), 0.03)
    for one, two in combinations(accuracy, 2):
        gap = estimate(accuracy[one] - accuracy[two])
        differences.setdefault(one, {})[two] = {"pope": {"adversarial": {"accuracy": gap}}}
    return {"differences": differences, "error_ratios": ratios}


def make_content(accuracy: Mapping[str, float] = ACCURACY) -> dict[str, Any]:
    """What every comparison has, of arms with these adversarial accuracies."""
    pointing = {"cross_attention": 0.4}
    return {
        "name": "comparison",
        "claims": make_claims(),
        "page": {"baseline": UNGUIDED, "focus": ["age", "age_plus"]},
        "titles": {arm: TITLES.get(arm, arm) for arm in accuracy},
        "groups": {"": list(accuracy)},
        "runs": {arm: [0, 1, 2] for arm in accuracy},
        "arms": {arm: make_figures(mean, pointing.get(arm, 0.97)) for arm, mean in accuracy.items()},
        **make_between(accuracy),
        "environment": {"seed": 0, "torch": "2.13.0"},
    }


def make_analyses(accuracy: Mapping[str, float] = ACCURACY) -> dict[str, Any]:
    """The sections that a comparison may have."""
    edges = [0.0, 0.25, 0.5, 0.75, 1.0]
    histogram = {"edges": edges, "matching": [0, 2, 8, 20], "mismatched": [12, 14, 4, 0]}
    measure = {"layer": 1, "auroc": estimate(0.97), "paired_accuracy": estimate(0.98), "overlap": estimate(0.2)}
    described = {
        "architecture": "cross_attention",
        "pool_size": 1,
        "null_token": True,
        "guided": {"ground": 0.5, "instruct": 0.3},
        "answers_guided": True,
        "language_model": ["instruct"],
        "learning_rates": [0.001, 0.00075],
        "steady": ["ground"],
        "steps": 1860,
    }
    return {
        "described": dict.fromkeys(accuracy, described),
        "curves": {arm: _curve(mean) for arm, mean in accuracy.items()},
        "equal_time": {
            "reference": "age",
            "runs": {arm: [0, 1, 2] for arm in accuracy},
            "step_factors": dict.fromkeys(accuracy, 1.2),
            "arms": {arm: make_figures(mean) for arm, mean in accuracy.items()},
            **make_between(accuracy),
        },
        "breakdown": {arm: _breakdown(1 - mean) for arm, mean in accuracy.items()},
        "detection": {arm: _detection() for arm in ("age", "age_plus")},
        "similarity": {
            arm: {
                name: {**measure, "histogram": histogram}
                for name in ("hidden_max", "query_key_cosine", "caption_likelihood")
            }
            for arm in accuracy
        },
        "costs": {arm: {tokens: _cost() for tokens in ("144", "576")} for arm in accuracy},
    }


def make_longer() -> dict[str, Any]:
    """What a comparison of longer training gives."""
    longer = {"cross_attention_4x": 0.8, "cross_attention_16x": 0.97}
    content = make_content({"cross_attention": 0.6, "age": 0.95, "age_plus": 0.975, **longer})
    steps = {"cross_attention_4x": 7440, "cross_attention_16x": 29760}
    described = {arm: make_analyses()["described"]["age"] | {"steps": steps.get(arm, 1860)} for arm in content["arms"]}
    unguided = ["cross_attention", "cross_attention_4x", "cross_attention_16x"]
    groups = {"Against AGE": ["age", *unguided], "Unguided": unguided}
    page = {"title": "Longer training", "focus": ["age"], "paired": ["pope.adversarial.accuracy"], "plot": "steps"}
    return {**content, "name": "longer", "claims": [], "groups": groups, "described": described, "page": page}


def make_groups() -> dict[str, Any]:
    """What a comparison of sweeps or ablations gives."""
    accuracy = {"age_plus": 0.95, "loss_mass": 0.93, "weight_3": 0.96}
    titles = {"age_plus": TITLES["age_plus"], "loss_mass": "mass", "weight_3": "weights 3 and 1.8"}
    groups = {"Guidance loss": ["age_plus", "loss_mass"], "Guidance weight": ["age_plus", "weight_3"]}
    said = {"name": "ablations", "claims": [], "page": {"about": "One thing at a time.", "plot": "groups"}}
    return {**make_content(accuracy), **said, "titles": titles, "groups": groups, "chosen": ["weight_3"]}


def _curve(mean: float) -> list[dict[str, Any]]:
    points = []
    for step in (0.25, 0.5, 1.0):
        figures = {
            "pope.adversarial.accuracy": estimate(0.5 + (mean - 0.5) * step),
            "pope.adversarial.false_yes_ratio": estimate(0.9 - 0.4 * step),
        }
        points.append({"step": int(1000 * step), "seconds": 400 * step, "figures": figures})
    return points


def _breakdown(error: float) -> dict[str, Any]:
    def cells(*edges: float | None) -> list[dict[str, Any]]:
        bins = pairwise(edges)
        return [{"from": a, "below": b, "num_questions": 9, "rate": estimate(error, 0.02)} for a, b in bins]

    things = cells(1.0, 3.0, 5.0, None)
    return {
        "false_yes": {"co_occurrence": cells(0.0, 0.2, 0.6, None), "num_objects": things},
        "miss": {"size_ratio": cells(0.0, 0.015, 0.03, None), "num_objects": things},
    }


def _detection() -> dict[str, Any]:
    columns = {"num_questions": [40, 30, 0], "probability": [0.1, 0.9, None], "absent": [0.15, 0.8, None]}
    bins = {"edges": [0.0, 0.5, 1.0, 1.0], **columns}
    calibration = {"error": estimate(0.05), "bins": bins}
    found = {
        "auroc": estimate(0.96),
        "minus_answer": estimate(0.03),
        "num_questions": 70,
        "as_is": calibration,
        "fitted": calibration,
    }
    return {split: {"null_mass": found, "entropy": {**found, "as_is": None}} for split in ("random", "adversarial")}


def _cost() -> dict[str, Any]:
    def times(median: float) -> dict[str, Any]:
        return {"median": median, "ratio": {"median": 1.25}}

    step = {
        "seconds_per_step": times(0.32),
        "images_per_batch": 16,
        "activation_bytes": 32_000_000,
        "attention": "sdpa",
    }
    asked = {"seconds": times(0.012)}
    memory = {"total_bytes": 250_000}
    return {
        "train": {"ground": step, "instruct": step},
        "first_token": asked,
        "further_question": asked,
        "memory": memory,
    }
