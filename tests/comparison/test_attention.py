"""The same questions through every arm: chosen by a rule that nothing but the predictions decides, and drawn."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tiny_runs import make_foundation, make_recipe, run

from agevlm.comparison.attention import KIND, _draw_picture, choose_questions, write_attention
from agevlm.comparison.page import draw_attention


def make_rows(wrong: set[int], num: int = 40) -> list[dict[str, Any]]:
    """Questions, four a picture, the even ones about what is there; those with the numbers `wrong` answered wrongly."""
    return [
        {
            "id": f"scene-{number // 4}/{KIND}-{number % 4}",
            "image": f"scene-{number // 4}",
            "kind": KIND,
            "reference": "no" if number % 2 else "yes",
            "correct": number not in wrong,
        }
        for number in range(num)
    ]


def test_questions_are_disputed_half_present_and_one_a_picture() -> None:
    arms = {"age": make_rows({3}), "concat": make_rows(set(range(32)))}
    chosen = choose_questions(arms, 6)
    rows = {row["id"]: row for row in arms["age"]}
    assert [rows[key]["reference"] for key in chosen] == ["yes"] * 3 + ["no"] * 3
    assert len({rows[key]["image"] for key in chosen}) == 6
    disputed = {row["id"] for row in make_rows(set())[:32]} - {rows[f"scene-0/{KIND}-3"]["id"]}
    assert set(chosen) <= disputed
    pictures = [int(key.split("/")[0].removeprefix("scene-")) for key in chosen[:3]]
    assert pictures == [0, 4, 7]  # from the first to the last that is disputed, evenly


def test_questions_are_shown_whatever_was_answered_where_that_is_asked() -> None:
    arms = {"age": make_rows(set()), "concat": make_rows(set())}
    assert choose_questions(arms, 6) == []
    chosen = choose_questions(arms, 6, disputed=False)
    rows = {row["id"]: row for row in arms["age"]}
    assert [rows[key]["reference"] for key in chosen] == ["yes"] * 3 + ["no"] * 3
    assert len({rows[key]["image"] for key in chosen}) == 6
    assert choose_questions({"age": make_rows({3}), "concat": make_rows(set(range(32)))}, 6, disputed=False) == chosen


def test_the_order_of_predictions_and_arms_plays_no_part() -> None:
    arms = {"age": make_rows({1, 2, 9}), "concat": make_rows(set(range(5, 30)))}
    shuffled = {arm: random.Random(1).sample(arms[arm], len(arms[arm])) for arm in reversed(arms)}
    assert choose_questions(arms) == choose_questions(shuffled)


def test_questions_that_an_arm_was_not_asked_are_left_out() -> None:
    first, second = make_rows({0, 5, 8}), make_rows(set())
    ids = [first[number]["id"] for number in (0, 8, 5)]
    assert choose_questions({"age": first, "concat": second}) == ids
    assert choose_questions({"age": first, "concat": second[4:]}) == ids[1:]
    assert choose_questions({"age": first, "concat": first}) == []
    assert choose_questions({}) == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of two runs, one a concatenation, that disagree on the first questions."""
    out = tmp_path_factory.mktemp("runs")
    foundation = make_foundation(out / "foundation")
    evaluation = {"num_images": 4, "batch_size": 64}
    trainable = {"name": "align", "trainable": ["projector"], "kinds": {"caption": 1.0}}
    for arm, architecture in (("age", "cross_attention"), ("concat", "concat")):
        content = make_recipe(foundation, trainable, evaluation=evaluation)
        content["model"]["architecture"] = architecture
        run(content, out / arm / "0")
        path = out / arm / "0" / "predictions.jsonl"
        rows = [json.loads(line) | {"correct": arm == "age"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_the_figure_shows_every_arm(runs: Path, tmp_path: Path) -> None:
    arms = {arm: runs / arm / "0" for arm in ("age", "concat")}
    assert write_attention(arms, {"age": "guided", "concat": "in front"}, tmp_path / "attention.png", num=2)
    both = Image.open(tmp_path / "attention.png")
    assert write_attention(arms, {}, tmp_path / "four.png", num=4)
    assert Image.open(tmp_path / "four.png").height > both.height > both.width / 2
    assert (tmp_path / "four.png").stat().st_size < 400_000
    assert write_attention(arms, {}, tmp_path / "across.png", num=4, across=True)
    across = Image.open(tmp_path / "across.png")
    assert across.width > across.height  # four questions side by side, three panels each


def test_arms_that_agree_or_share_no_seed_have_no_figure(runs: Path) -> None:
    titles = {"age": "guided", "concat": "in front"}
    arms: dict[str, Any] = {"age": {}, "concat": {}}
    assert draw_attention({"arms": arms, "titles": titles, "runs": {"age": [0], "concat": [1]}}, runs) is None
    same = {"age": runs / "age" / "0", "again": runs / "age" / "0"}
    assert not write_attention(same, titles, runs / "attention.png")
    assert not (runs / "attention.png").exists()
    drawn = draw_attention({"arms": arms, "titles": titles, "runs": {"age": [0], "concat": [0, 1]}}, runs)
    assert drawn == runs / "attention.png" and drawn.exists()


def test_runs_whose_models_were_not_kept_are_passed_over(runs: Path, tmp_path: Path) -> None:
    titles = {"age": "guided", "concat": "in front"}
    for arm, seed in (("age", 1), ("concat", 0), ("concat", 1)):
        shutil.copytree(runs / arm / "0", tmp_path / arm / str(seed))
    shutil.copytree(runs / "age" / "0", tmp_path / "age" / "0", ignore=shutil.ignore_patterns("model"))
    both = {"arms": {"age": {}, "concat": {}}, "titles": titles, "runs": {"age": [0, 1], "concat": [0, 1]}}
    assert draw_attention(both, tmp_path) == tmp_path / "attention.png"
    shutil.rmtree(tmp_path / "age" / "1" / "model")
    (tmp_path / "attention.png").unlink()
    assert draw_attention(both, tmp_path) is None


def test_wide_photographs_are_not_squashed() -> None:
    figure = Figure(figsize=(2, 2), dpi=50)
    axes = figure.add_axes((0, 0, 1, 1))
    _draw_picture(axes, np.zeros((100, 200, 3), dtype=np.uint8), None)
    figure.draw_without_rendering()
    shown = axes.get_window_extent()
    assert shown.width == pytest.approx(2 * shown.height) and shown.y0 == pytest.approx(0)
