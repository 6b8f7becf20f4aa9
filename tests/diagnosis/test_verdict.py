"""The sentences of a verdict on figures made by hand, and what models are called in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agevlm.diagnosis.asking import Answers
from agevlm.diagnosis.figures import Examination, verdict
from agevlm.diagnosis.heads import MEASURES, HeadReading
from agevlm.diagnosis.page import Diagnosed, _looking
from agevlm.diagnosis.run import names_of
from agevlm.evaluation.statistics import Estimate


def heads() -> HeadReading:
    """Two pictures with a word each: the second head of the only layer wins on the first picture."""
    values = np.array([[[0.2, 0.6]], [[0.4, 0.8]]], dtype=np.float32)
    flat = values.mean((1, 2))
    return HeadReading(
        layers=(4,),
        ids=("a/fish/0", "b/fish/0"),
        images=("a", "b"),
        phrases=("fish", "fish"),
        heads=dict.fromkeys(MEASURES, values),
        mean=dict.fromkeys(MEASURES, flat),
        on_picture=values,
        sunk=values,
        area=flat,
        touched=flat,
    )


def exam(**parts: Any) -> Examination:
    asked = {"kind": "pope.random"}
    answers = Answers({condition: [asked] for condition in ("picture", "blank", "other")}, None)
    return replace(Examination("some", answers, "no", heads(), "no", "no"), **parts)


def known(means: dict[str, float]) -> dict[str, Estimate]:
    """Figures without any width."""
    return {name: Estimate(mean, mean, mean, (mean,), (0,)) for name, mean in means.items()}


def answering(accuracy: float, exchanged: float, unparsed: tuple[float, float], **auroc: float) -> dict[str, Estimate]:
    of_picture, of_other = unparsed
    means = {"picture.random.accuracy": accuracy, "other.random.accuracy": exchanged}
    means |= {"picture.random.unparsed_ratio": of_picture, "other.random.unparsed_ratio": of_other}
    means |= {f"{condition}.random.auroc": value for condition, value in auroc.items()}
    return known({f"answers.{name}": mean for name, mean in means.items()})


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (answering(0.9, 0.5, (0.0, 0.0)), "It answers from the picture: 90% of the random questions"),
        (answering(0.65, 0.5, (0.2, 0.2)), "It answers in part from the picture: 65%"),
        (answering(0.5, 0.5, (0.1, 0.1)), "It answers from the question alone: 50%"),
        (
            answering(0.0, 0.0, (1.0, 1.0), picture=0.95, other=0.5),
            "100% of its answers say neither yes nor no, and its P(yes) tells from the picture what is there: "
            "AUROC 0.95 with it, 0.50 with another picture in its place.",
        ),
        (answering(0.0, 0.0, (1.0, 1.0), picture=0.52, other=0.5), "does not tell from the picture what is there: AUR"),
        (answering(0.9, 0.3, (0.0, 0.6), picture=0.7, other=0.5), "30% of its answers say neither yes nor no, and its"),
        (answering(0.0, 0.0, (1.0, 1.0)), "whether its P(yes) comes from the picture is not measured"),
    ],
)
def test_where_few_answers_say_yes_or_no_the_verdict_goes_by_p_yes(found: dict[str, Estimate], sentence: str) -> None:
    said = verdict(exam(), found)[0]
    assert sentence in said
    assert ("question alone" in said) is ("question alone" in sentence)


def accuracies(**known: tuple[float, float, float]) -> dict[str, Estimate]:
    """Accuracies of the conditions with their intervals."""
    found = answering(0.5, 0.5, (0.0, 0.0))
    for condition, (mean, low, high) in known.items():
        found[f"answers.{condition}.random.accuracy"] = Estimate(mean, low, high, (mean,), (0,))
    return found


@pytest.mark.parametrize(
    ("picture", "other", "blank", "how"),
    [
        ((0.528, 0.4, 0.643), (0.417, 0.289, 0.5), (0.5, 0.5, 0.5), "It is not clear whether it answers from the pict"),
        ((0.528, 0.5, 0.55), (0.417, 0.4, 0.43), (0.5, 0.5, 0.5), "It answers from the question alone: 53%"),
        ((0.7, 0.65, 0.75), (0.5, 0.45, 0.55), (0.7, 0.65, 0.75), "It answers from the question alone: 70%"),
        ((0.7, 0.65, 0.75), (0.3, 0.25, 0.35), (0.5, 0.5, 0.5), "It answers in part from the picture: 70%"),
        ((0.9, 0.5, 1.0), (0.5, 0.3, 0.7), (0.5, 0.5, 0.5), "It is not clear whether it answers from the picture: 90"),
        ((0.9, 0.85, 0.95), (0.5, 0.4, 0.6), (0.5, 0.5, 0.5), "It answers from the picture: 90%"),
    ],
)
def test_the_picture_must_do_better_than_a_blank_one_and_a_guess_too(
    picture: tuple[float, float, float], other: tuple[float, float, float], blank: tuple[float, float, float], how: str
) -> None:
    said = verdict(exam(), accuracies(picture=picture, other=other, blank=blank))[0]
    assert said.startswith(how)
    assert said.endswith(f"{other[0]:.0%} with another picture in its place, {blank[0]:.0%} with a blank one.")


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (
            {"p_no": 0.95, "entropy": 0.5},
            "Whether a thing is made up shows, most in its probability of no (AUROC 0.95).",
        ),
        ({"p_no": 0.8}, "Whether a thing is made up shows in part, most in its probability of no (AUROC 0.80)."),
        (
            {"p_no": 0.66},
            "Nothing tells whether a thing is made up: the best of what is measured is its probability of "
            "no (AUROC 0.66).",
        ),
    ],
)
def test_whether_what_is_made_up_shows_is_a_sentence(scores: dict[str, float], sentence: str) -> None:
    found = answering(0.9, 0.5, (0.0, 0.0)) | known({f"made_up.{name}.auroc": mean for name, mean in scores.items()})
    assert verdict(exam(), found)[2] == sentence


@pytest.mark.parametrize(
    ("best", "chance", "how"),
    [
        (0.05, 0.01, "looks at"),
        (0.045, 0.01, "hardly looks at"),
        (0.015, 0.01, "does not look at"),
        (0.95, 0.25, "looks at"),
        (0.5, 0.25, "hardly looks at"),
        (0.3, 0.25, "does not look at"),
        (1.0, 0.9, "looks at"),
        (0.0, 0.0, "does not look at"),
    ],
)
def test_a_model_can_look_at_large_things_too(best: float, chance: float, how: str) -> None:
    found = answering(0.9, 0.5, (0.0, 0.0))
    found |= known({f"looking.{who}.mass": m for who, m in (("best_head", best), ("mean", chance), ("chance", chance))})
    assert verdict(exam(), found)[1].startswith(f"It {how} what it is asked about: ")


def test_heads_and_layers_are_shown_of_the_pictures_that_did_not_rank_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def head_grid(values: Any, layers: Any, best: Any, label: str, theme: Any) -> None:
        seen.update(grid=values, best=best, label=label)

    monkeypatch.setattr("agevlm.diagnosis.page.chart", lambda draw, label: draw("light"))
    monkeypatch.setattr("agevlm.diagnosis.page.drawings.head_grid", head_grid)
    monkeypatch.setattr("agevlm.diagnosis.page.drawings.layer_lines", lambda lines, *_: seen.update(lines=lines))
    shown = _looking([Diagnosed(exam(), known({"looking.mean.mass": 0.5}))])
    assert shown is not None and shown["num_words"] == 1
    np.testing.assert_allclose(seen["grid"], [[0.4, 0.8]])
    assert seen["best"] == (0, 1) and seen["label"] == "mass in the mask, without sinks"
    for layers, values in seen["lines"].values():
        assert layers == (4,) and values == pytest.approx([0.6])


def test_models_are_called_by_what_tells_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("r1", "r2"):
        (tmp_path / run / "model").mkdir(parents=True)
    one, two = tmp_path / "r1" / "model", tmp_path / "r2" / "model"
    assert names_of([one]) == ["model"]
    assert names_of([one, two]) == ["r1/model", "r2/model"]
    assert names_of([one, "tiny"]) == ["model", "tiny"]
    assert names_of([one, one])[1].endswith("r1/model (2)") and len(set(names_of([one, one]))) == 2
    assert names_of(["some/net", "other/net"]) == ["some/net", "other/net"]
    monkeypatch.chdir(one)
    assert names_of(["."]) == ["model"]
    assert names_of([".", "../../r2/model"]) == ["r1/model", "r2/model"]
    assert names_of([(1, None), (2, None)]) == ["int", "int (2)"]
