"""Figures show every word in its place, can be written in full or not at all, and curves are the log's."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agevlm.analysis.attention import Look
from agevlm.analysis.charts import loss_curves, pope_bars
from agevlm.analysis.figures import look_figure, mass_inside, overlay, peak, save_figure, word_colours

from .fakes import hot_map, make_image, make_logs, make_look, make_metrics


def texts(figure: object) -> list[str]:
    """All text in a figure."""
    from matplotlib.text import Text

    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]  # type: ignore[attr-defined]


def test_one_panel_for_the_picture_and_one_for_each_word() -> None:
    figure = look_figure(make_look(), make_image())
    assert len(figure.axes) == 1 + 3
    written = texts(figure)
    assert written.count("boat") == 4  # two titles, once in the question and once in the answer
    assert "Q · peak cell 75% · null 25%" in written


def test_no_panel_leaves_the_paper_and_none_overlap() -> None:
    look = make_look("is there a boat and a fish and a boat and a fish and a boat ?" * 2)
    figure = look_figure(look, make_image(640, 480))
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == 1 + len(look.words)
    assert all(box.x0 >= 0 and box.x1 <= 1 and box.y0 >= 0 and box.y1 <= 1 for box in boxes)
    assert all(a.y0 >= b.y1 or a.x1 <= b.x0 for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    width, height = figure.get_size_inches() * np.array([boxes[0].width, boxes[0].height])
    assert width / height == pytest.approx(640 / 480)


def test_words_left_out_are_counted() -> None:
    figure = look_figure(make_look(), make_image(), max_panels=1)
    assert len(figure.axes) == 2
    assert "".join(texts(figure)).replace(" ", "").count("2morewordsarenotdrawn") == 1


def test_long_lines_wrap_and_dollars_stay_dollars(tmp_path: Path) -> None:
    look = Look("what is it?", "a $x$ & <b> " * 40, (), (4, 4))
    figure = look_figure(look, make_image())
    renderer_width = figure.get_size_inches()[0] * figure.dpi
    assert all(text.get_window_extent().x1 <= renderer_width for text in figure.texts)
    assert save_figure(figure, tmp_path / "look.png").stat().st_size > 0


def test_the_brightest_change_is_at_the_hot_cell() -> None:
    image = make_image(200, 100)
    hot, cold = overlay(image, hot_map(1, 2)), overlay(image, np.zeros((4, 4), dtype=np.float32))
    change = np.abs(hot.astype(int) - cold.astype(int)).sum(axis=-1)
    y, x = np.unravel_index(change.argmax(), change.shape)
    assert hot.shape == (100, 200, 3)
    assert 25 <= y < 50 and 100 <= x < 150


def test_attention_that_went_to_the_null_token_stays_faint() -> None:
    image = make_image()
    nothing = overlay(image, np.zeros((4, 4), dtype=np.float32)).astype(int)
    faint, strong = (np.abs(overlay(image, hot_map(1, 1, mass=m)).astype(int) - nothing).max() for m in (0.01, 0.9))
    assert faint < strong / 3


def test_the_peak_is_the_centre_of_its_cell() -> None:
    assert peak(hot_map(1, 3), (80, 400)) == (30.0, 350.0)


def test_mass_inside_counts_cells_by_their_covered_share() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[:5, :10] = True  # half of the first cell
    assert mass_inside(hot_map(0, 0, mass=0.8), mask) == pytest.approx(0.4)
    look = make_look("how many boats are there?", "")
    for name in ("boat", "boats"):
        assert "Q · in mask 38% · peak cell 75% · null 25%" in texts(
            look_figure(look, make_image(), masks={name: mask})
        )


def test_the_same_word_has_the_same_colour() -> None:
    boat, fish, boat_again = word_colours(make_look())
    assert boat == boat_again != fish


def test_figures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "look.png"
    figure = look_figure(make_look(), make_image())
    save_figure(figure, path)
    with Image.open(path) as image:
        assert image.size[0] > 600
    with pytest.raises(ValueError, match=r"look\.bmpx.*\.png"):
        save_figure(figure, tmp_path / "look.bmpx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["look.png"]


def test_loss_curves_hold_the_logged_values_and_name_the_stages() -> None:
    figure = loss_curves(make_logs())
    above, below = figure.axes
    logged = np.concatenate([line.get_ydata() for line in above.lines[::2]])  # type: ignore[arg-type]
    np.testing.assert_allclose(logged, [line["lm_loss"] for line in make_logs()])
    assert len(below.lines) == 2 * 2
    assert {"align", "cross-attention", "ground", "instruct"} <= set(texts(figure))


def test_loss_curves_need_no_guidance_but_some_loss() -> None:
    unguided = [{**line, "guidance_loss": None} for line in make_logs()]
    assert len(loss_curves(unguided, theme="dark").axes) == 1
    with pytest.raises(ValueError, match="no line with a loss"):
        loss_curves([{"stage": "align", "lm_loss": None}])


def test_pope_bars_show_what_is_there() -> None:
    pope = make_metrics()["pope"]
    assert texts(pope_bars(pope)).count("0.912") == 3
    assert texts(pope_bars({"random": {"accuracy": 0.5}}, other=pope)).count("0.500") == 1


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (9000, 8000)])
def test_thin_and_huge_pictures_make_figures_of_the_usual_size(size: tuple[int, int], tmp_path: Path) -> None:
    path = save_figure(look_figure(make_look(), Image.new("RGB", size, "red")), tmp_path / "look.png")
    with Image.open(path) as figure:
        assert max(figure.size) < 4000


def test_an_overlay_takes_little_memory_beside_its_picture() -> None:
    picture, attention = Image.new("RGB", (2000, 2000)), np.eye(12, dtype=np.float32)
    tracemalloc.start()
    shown = overlay(picture, attention)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shown.shape == (2000, 2000, 3)
    assert most < 40 * 2000 * 2000, "bytes a pixel"
