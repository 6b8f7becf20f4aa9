"""The same pictures and questions through every arm, side by side: where each looks, and what it says.

Questions are chosen by a rule from the predictions, never by hand; each arm is then asked once more with its attention
kept. One picture: a row for each question, a column for each arm.
"""

# Shapes: H, W the picture's pixels.

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.analysis.attention import Look, WordMap, look
from agevlm.analysis.figures import enlarge, overlay
from agevlm.analysis.words import FAINT, INK
from agevlm.checkpoints import load_vlm
from agevlm.comparison.document import figure_png
from agevlm.comparison.run import tests_directory
from agevlm.data.images import open_image
from agevlm.data.masks import union_mask
from agevlm.data.schema import Conversation, Sample
from agevlm.evaluation.benchmarks import Settings, test_samples
from agevlm.files import read_json_lines, write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_QUESTIONS = 6
KIND = "pope.adversarial"
RULE = (
    "Questions are chosen by rule, not by hand: adversarial ones on which the arms disagree, of the first seed that "
    "all arms have. Half are about things that are there, half about things that are not. They are spread evenly in "
    "the order of their ids, and no picture comes twice."
)
_RIGHT, _WRONG = "#1c7c4a", "#b3261e"
_PANEL_IN, _GAP_IN, _TEXT_IN, _TITLE_IN, _DPI = 1.32, 0.1, 0.32, 0.58, 110
_LETTERS = 23  # of a line above a panel
_SIDE_IN, _SIDE_LETTERS = 0.85, 11  # the column of names where questions stand side by side

Records = Sequence[Mapping[str, Any]]  # lines of predictions.jsonl


@dataclass(frozen=True)
class Asked:
    """A question through every arm: the picture, the true mask (H, W; None where the thing is not there), the looks."""

    image: Image.Image
    question: str
    truth: str
    mask: NDArray[np.bool_] | None
    looks: Mapping[str, tuple[Look, bool]]  # arm → look, and whether the answer is right


def choose_questions(
    predictions: Mapping[str, Records], num: int = NUM_QUESTIONS, *, disputed: bool = True
) -> list[str]:
    """The ids of at most `num` questions, by `RULE`, from arm → predictions of one seed, in whatever order they come.

    Fewer where the arms disagree on fewer; with `disputed` false it does not matter whether they do. Questions that not
    every arm was asked are left out.
    """
    by_arm = [{str(row["id"]): row for row in rows if row["kind"] == KIND} for rows in predictions.values()]
    shared = set.intersection(*(set(rows) for rows in by_arm)) if by_arm else set()
    if disputed:
        shared = {key for key in shared if len({bool(rows[key]["correct"]) for rows in by_arm}) > 1}
    chosen: list[str] = []
    shown: set[str] = set()
    for truth, count in (("yes", num - num // 2), ("no", num // 2)):
        rows = [by_arm[0][key] for key in sorted(shared, key=_natural) if by_arm[0][key]["reference"] == truth]
        one_each = {str(row["image"]): str(row["id"]) for row in reversed(rows) if row["image"] not in shown}
        ids = sorted(one_each.values(), key=_natural)
        places = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)
        chosen += [ids[place] for place in places]
        shown |= {str(by_arm[0][key]["image"]) for key in chosen}
    return chosen


def _natural(identity: str) -> list[tuple[int, str]]:
    """Numbers inside ids by their value: picture 9 before picture 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", identity)]


def write_attention(
    runs: Mapping[str, Path],
    titles: Mapping[str, str],
    path: Path,
    num: int = NUM_QUESTIONS,
    *,
    across: bool = False,
    disputed: bool = True,
    test: str | None = None,
    pictures: Container[str] | None = None,
) -> bool:
    """Draw the figure of arm → finished run, all of one seed, to `path` (PNG); False where no question is to be shown.

    Questions are those of `choose_questions`. `titles` are the names of arms for people; with `across` questions stand
    side by side. `test` is the dataset that the runs were measured on besides; None: what each was measured on at its
    end. `pictures` are the ids of those that may be shown.
    """
    measured = {arm: tests_directory(run, test) if test else run for arm, run in runs.items()}
    predictions = {arm: read_json_lines(directory / "predictions.jsonl") for arm, directory in measured.items()}
    if pictures is not None:
        predictions = {arm: [row for row in rows if row["image"] in pictures] for arm, rows in predictions.items()}
    chosen = choose_questions(predictions, num, disputed=disputed)
    if not chosen:
        return False
    first = next(iter(runs))
    samples = _samples(runs[first], measured[first])
    figure = attention_figure(_ask(runs, predictions, _asked(samples, chosen)), titles, across=across)
    with write_beside(path) as beside:
        beside.write_bytes(figure_png(figure, photographs=True))
    return True


def _ask(runs: Mapping[str, Path], predictions: Mapping[str, Records], asked: Mapping[str, Asked]) -> list[Asked]:
    """Every chosen question through the model of every run."""
    looks: dict[str, dict[str, tuple[Look, bool]]] = {key: {} for key in asked}
    for arm, run in runs.items():
        model, processor = load_vlm(run / "model")
        rows = {str(row["id"]): row for row in predictions[arm]}
        for key in asked:
            question, phrase = rows[key]["question"], rows[key]["words"][0]["phrase"]
            seen = look(model, processor, asked[key].image, question, vocabulary=[phrase])
            looks[key][arm] = (seen, bool(rows[key]["correct"]))
    return [replace(question, looks=looks[key]) for key, question in asked.items()]


def _samples(run: Path, measured: Path) -> Sequence[Sample]:
    """The samples that a run's figures in the directory `measured` are of."""
    facts = json.loads((measured / "metrics.json").read_text(encoding="utf-8"))["provenance"]
    settings = Settings(**{name: facts[name] for name in ("seed", "num_images", "split")})
    return test_samples(run / "model", facts["benchmark"], settings)


def _asked(samples: Iterable[Sample], chosen: Sequence[str]) -> dict[str, Asked]:
    """Pictures, questions and truth by id; no looks yet."""
    wanted = set(chosen)
    found = {c.id: (sample, c) for sample in samples for c in sample.conversations if c.id in wanted}
    return {
        key: Asked(open_image(sample.images[0]), c.messages[0].content, c.messages[-1].content, _mask(c), {})
        for key, (sample, c) in ((key, found[key]) for key in chosen)
    }


def _mask(conversation: Conversation) -> NDArray[np.bool_] | None:
    return next((union_mask(g.masks) for g in conversation.groundings if g.masks), None)


def attention_figure(rows: Sequence[Asked], titles: Mapping[str, str], *, across: bool = False) -> Figure:
    """Question by question the picture with the true mask outlined, then each arm's map and answer beside it.

    A row for each question, or with `across` a column for each.
    """
    from matplotlib.figure import Figure

    arms = list(rows[0].looks)
    names = ["the picture", *(titles.get(arm, arm) for arm in arms)]
    heights = [_PANEL_IN * min(1.0, asked.image.height / asked.image.width) for asked in rows]
    lines = [max(heights)] * len(names) if across else heights  # as high as the tallest picture in it
    num_columns = len(rows) if across else len(names)
    left_in, top_in = (_SIDE_IN, _GAP_IN) if across else (_GAP_IN, _TITLE_IN)
    width = left_in + num_columns * (_PANEL_IN + _GAP_IN)
    height = top_in + sum(lines) + len(lines) * _TEXT_IN
    bottoms = [height - top_in - end - number * _TEXT_IN for number, end in enumerate(accumulate(lines))]
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    for number, name in enumerate(names):
        x = _GAP_IN if across else left_in + number * (_PANEL_IN + _GAP_IN)
        y = bottoms[number] + lines[number] / 2 if across else height - 0.9 * _TITLE_IN
        text = textwrap.fill(name, _SIDE_LETTERS if across else _LETTERS)
        figure.text(x / width, y / height, text, fontsize=8, color=INK, va="center" if across else "bottom")
    for question, asked in enumerate(rows):
        for panel in range(len(names)):
            column, line = (question, panel) if across else (panel, question)
            left = left_in + column * (_PANEL_IN + _GAP_IN)
            box = (left / width, bottoms[line] / height, _PANEL_IN / width, lines[line] / height)
            axes = figure.add_axes(box)
            if panel == 0:
                _draw_truth(axes, asked)
            else:
                _draw_look(axes, asked, *asked.looks[arms[panel - 1]])
    return figure


def _draw_truth(axes: Any, asked: Asked) -> None:
    _draw_picture(axes, np.asarray(enlarge(asked.image)), asked.mask)
    _caption(axes, asked.question, f"truth: {asked.truth}", INK)


def _draw_look(axes: Any, asked: Asked, seen: Look, correct: bool) -> None:
    word = _word(seen)
    picture = enlarge(asked.image)
    _draw_picture(axes, overlay(picture, word.map) if word else np.asarray(picture), asked.mask)
    null = f"null token {word.null_mass:.0%}" if word and word.null_mass is not None else ""
    colour = _RIGHT if correct else _WRONG
    _caption(axes, f"{'✓' if correct else '✗'} {seen.answer}", null, colour, bold=True)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.6)


def _word(seen: Look) -> WordMap | None:
    return next((word for word in seen.words if word.where == "question"), None)


def _draw_picture(axes: Any, pixels: NDArray[np.uint8], mask: NDArray[np.bool_] | None) -> None:
    height, width = pixels.shape[:2]
    axes.imshow(pixels, interpolation="antialiased", aspect="equal")
    axes.set_anchor("SW")  # above its caption
    if mask is not None:
        large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST), dtype=np.float32)
        for colour, line in (("black", 1.8), ("white", 0.9)):
            axes.contour(large, levels=[0.5], colors=colour, linewidths=line)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for spine in axes.spines.values():
        spine.set(color="#d1d5db", linewidth=0.8)


def _caption(axes: Any, first: str, second: str, colour: str, *, bold: bool = False) -> None:
    where = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top", "annotation_clip": False}
    first = "".join(filter(str.isprintable, first.replace(" in the picture?", "?")))
    weight = "bold" if bold else "normal"
    axes.annotate(first[:30], (0, 0), (0, -3), **where, fontsize=7.5, color=colour, fontweight=weight, parse_math=False)
    axes.annotate(second, (0, 0), (0, -12.5), **where, fontsize=6.5, color=FAINT, parse_math=False)
