"""The file of figures: small, the same bytes for the same content, and nothing gone that a reader cannot tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agevlm.comparison.figures_file import compact, read_figures, write_figures
from agevlm.comparison.readings import difference, reading

from .fakes import estimate, make_analyses, make_content


def make_figure(**changes: Any) -> dict[str, Any]:
    return (
        estimate(0.123456789) | {"t": [0.12, 0.13], "bootstrap": [0.113456789, 0.133456789], "t_groups": None} | changes
    )


def test_what_stands_there_twice_is_left_out() -> None:
    content = {"runs": {"age": [0, 1, 2]}, "arms": {"age": {"counting": make_figure()}}}
    assert compact(content)["arms"]["age"]["counting"] == {
        "mean": 0.123457,
        "low": 0.113457,
        "high": 0.133457,
        "values": [0.118457, 0.123457, 0.128457],
        "t": [0.12, 0.13],  # the bootstrap's are low and high
    }


def test_seeds_stay_where_they_are_not_those_that_the_arms_ran_with() -> None:
    runs = {"age": [0, 1, 2], "concat": [0, 1]}
    pair = make_figure(seeds=[0, 1])
    content = {
        "runs": runs,
        "arms": {"age": {"a": make_figure(), "b": make_figure(seeds=[0, 2])}},
        "differences": {"age": {"concat": {"a": pair, "b": make_figure(seeds=[1])}}},
        "equal_time": {"runs": {"age": [0], "concat": [0]}, "arms": {"age": {"a": make_figure(seeds=[0])}}},
    }
    found = compact(content)
    assert "seeds" not in found["arms"]["age"]["a"] and found["arms"]["age"]["b"]["seeds"] == [0, 2]
    apart = found["differences"]["age"]["concat"]
    assert "seeds" not in apart["a"] and apart["b"]["seeds"] == [1]
    assert "values" not in apart["a"] and {"mean", "low", "high"} <= apart["a"].keys()
    assert "seeds" not in found["equal_time"]["arms"]["age"]["a"]


def test_a_file_is_read_as_it_was_written_and_a_figure_is_a_line(tmp_path: Path) -> None:
    content, path = {**make_content(), **make_analyses()}, tmp_path / "comparison.json"
    write_figures(content, path)
    text = path.read_text(encoding="utf-8")
    known = read_figures(path)
    assert known == json.loads(json.dumps(compact(content)))
    assert compact(known) == known, "written again it is the same"
    for name in ("arms.age.pope.adversarial.accuracy", "equal_time.arms.age.pointing.accuracy"):
        assert reading(known, name) == reading(content, name)
    gap, same = difference(content, "age_plus", "concat"), difference(known, "age_plus", "concat")
    assert gap is not None and same is not None
    assert (same.mean, same.low, same.high) == pytest.approx((gap.mean, gap.low, gap.high))
    lines = [line for line in text.splitlines() if '"mean":' in line]
    assert all(line.count('"mean":') <= 4 and len(line) < 280 for line in lines)
    assert len(text) < 0.5 * len(json.dumps(content, indent=1))


def test_what_is_not_finite_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_figures({"x": float("inf")}, tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "holds a list"), ('{"arms": {"a": {}}}', "holds no runs of arms")],
)
def test_files_that_are_no_figures_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"wrong\.json.*{message}"):
        read_figures(path)
