"""Claims are data: each kind is judged by the same function, whoever's arms they are about."""

from __future__ import annotations

from typing import Any

import pytest

from agevlm.comparison.claims import Verdict, judge

from .fakes import estimate, make_analyses, make_content

POINTS = {"said": "It points", "arm": "age", "figure": "pointing.accuracy", "at_least": 0.96}
ERRS_LESS = {
    "said": "It errs less",
    "arm": "blue",
    "against": "red",
    "kind": "error_ratio",
    "figure": "pope.adversarial.error",
    "at_most": 0.35,
}


def verdict(content: dict[str, Any], claim: dict[str, Any]) -> Verdict:
    (found,) = judge(content | {"claims": [claim]})
    return found


def test_claims_hold_or_are_refuted_by_what_was_measured() -> None:
    found = {one.what: (one.holds, one.beside) for one in judge({**make_content(), **make_analyses()})}
    best = "(concatenation, pooled and guided)"
    assert found == {
        "Looks away": (True, ""),
        "Null token": (True, ""),
        "age errs less": (True, ""),
        f"age errs less than the best {best}": (False, ""),  # 0.10 over 0.14
        f"age is no worse {best}": (True, ""),
        "age points": (True, ""),
        "age_plus errs less": (True, ""),
        f"age_plus errs less than the best {best}": (True, ""),  # 0.05 over 0.14
        f"age_plus is no worse {best}": (True, ""),
        "age_plus points": (True, ""),
    }


@pytest.mark.parametrize(
    ("red", "blue", "holds"),
    [(0.6, 0.9, True), (0.6, 0.85, False), (0.9, 0.6, False)],
)
def test_an_error_ratio_is_met_by_the_arm_that_errs_less(red: float, blue: float, holds: bool) -> None:
    assert verdict(make_content({"red": red, "blue": blue}), ERRS_LESS).holds is holds


def test_a_difference_that_is_not_clear_of_zero_proves_nothing() -> None:
    content = make_content({"red": 0.60, "blue": 0.90})
    content["differences"]["red"]["blue"]["pope"]["adversarial"]["accuracy"] = estimate(-0.3, 0.4)
    found = verdict(content, ERRS_LESS)
    assert (found.holds, found.beside) == (False, "its mean would: the difference is not clear of 0")
    assert found.measured == "25 % (22 to 28 %); accuracy +0.300 (−0.100 to +0.700)"
    assert found.wanted == "at most 35 %, difference clear of 0"


def test_the_best_of_several_is_the_one_with_the_best_figure() -> None:
    content = make_content({"blue": 0.9, "red": 0.6, "green": 0.7})
    assert verdict(content, ERRS_LESS | {"against": ["red", "green"]}).against == "green"  # with the lowest error
    content["arms"]["red"]["pointing"]["accuracy"] = estimate(0.99)
    content["differences"]["blue"]["red"]["pointing"] = {"accuracy": estimate(-0.02, 0.03)}
    claim = POINTS | {"arm": "blue", "against": ["red", "green"], "kind": "difference", "at_least": 0}
    found = verdict(content, claim)
    assert (found.against, found.holds, found.beside) == ("red", False, "interval on both sides of 0")


@pytest.mark.parametrize(
    ("mean", "holds", "beside"),
    [
        (0.962, True, "by its mean: the interval reaches beyond"),
        (0.957, False, "though 0.960 lies in the interval"),
        (0.99, True, ""),
        (0.9, False, ""),
    ],
)
def test_an_interval_that_reaches_beyond_the_bound_is_said(mean: float, holds: bool, beside: str) -> None:
    content = make_content()
    content["arms"]["age"]["pointing"]["accuracy"] = estimate(mean)
    found = verdict(content, POINTS)
    assert (found.holds, found.beside, found.wanted) == (holds, beside, "at least 0.96")


@pytest.mark.parametrize(("sense", "holds"), [("at_least", True), ("at_most", True), ("under", False)])
def test_a_bound_that_is_just_met(sense: str, holds: bool) -> None:
    content = make_content()
    content["arms"]["age"]["pointing"]["accuracy"] = estimate(0.5)
    claim = {key: value for key, value in POINTS.items() if key != "at_least"} | {sense: 0.5}
    assert verdict(content, claim).holds is holds


def test_what_was_not_measured_is_among_the_claims_and_says_so() -> None:
    found = {one.what: one for one in judge(make_content({"age": 0.9}))}
    assert found["age points"].holds is True
    unknown = [what for what, one in found.items() if one.holds is None]
    assert "age errs less" in unknown and "Null token" in unknown and "age_plus points" in unknown
    assert all((found[what].told, found[what].measured) == ("not measured",) * 2 for what in unknown)


def test_a_claim_in_a_file_that_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="claims: fiugre: unknown key; did you mean 'figure'"):
        verdict(make_content(), POINTS | {"fiugre": "x"})
