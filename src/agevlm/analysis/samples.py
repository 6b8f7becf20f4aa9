"""A sheet of samples as a person would check them: the picture with the masks of its phrases, beside it the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from agevlm.analysis.figures import enlarge
from agevlm.analysis.words import FAINT, INK, LINE_IN, MARGIN_IN, WORD_COLOURS, Run, draw_line, runs, wrap
from agevlm.data.images import open_image
from agevlm.data.masks import union_mask
from agevlm.data.schema import Conversation, Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURE_IN, _TEXT_IN, _GAP_IN = 2.6, 6.6, 0.3
_MAX_CONVERSATIONS = 3
_ABSENT, _UNKNOWN = "#6b7280", "#b08900"  # words for what is not there, and for what nobody knows

_Line = list[tuple[float, Run]]


def samples_figure(samples: Sequence[Sample]) -> Figure:
    """One row for each sample: its first picture with an outline for each phrase, and its first conversations.

    A phrase has the colour of its outline; words for what is not there are grey, unknown ones ochre.
    """
    from matplotlib.figure import Figure

    texts = [_lines(sample) for sample in samples]
    pictures = [enlarge(open_image(sample.images[0])) for sample in samples]
    heights = [
        max(_PICTURE_IN * picture.height / picture.width, len(lines) * LINE_IN) + _GAP_IN
        for picture, lines in zip(pictures, texts, strict=True)
    ]
    width, height = 2 * MARGIN_IN + _PICTURE_IN + _GAP_IN + _TEXT_IN, sum(heights) + 2 * MARGIN_IN
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    top = height - MARGIN_IN
    for sample, picture, lines, own in zip(samples, pictures, texts, heights, strict=True):
        tall = _PICTURE_IN * picture.height / picture.width
        place = (MARGIN_IN / width, (top - tall) / height, _PICTURE_IN / width, tall / height)
        _draw_picture(figure.add_axes(place), picture, sample)
        for number, line in enumerate(lines):
            draw_line(figure, line, top - (number + 0.6) * LINE_IN, MARGIN_IN + _PICTURE_IN + _GAP_IN)
        top -= own
    return figure


def _draw_picture(axes: Any, picture: Image.Image, sample: Sample) -> None:
    axes.imshow(np.asarray(picture), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    colours = _colours(sample)
    drawn = set()
    for conversation in sample.conversations[:_MAX_CONVERSATIONS]:
        for known in conversation.groundings:
            if known.image or not known.masks or known.phrase in drawn:
                continue
            drawn.add(known.phrase)
            mask = Image.fromarray(union_mask(known.masks)).resize(picture.size, Image.Resampling.NEAREST)
            for colour, line in (("white", 2.6), (colours[known.phrase], 1.5)):
                axes.contour(np.asarray(mask, dtype=np.float32), levels=[0.5], colors=colour, linewidths=line)
    axes.set(xlim=(-0.5, picture.width - 0.5), ylim=(picture.height - 0.5, -0.5))


def _colours(sample: Sample) -> dict[str, str]:
    """Phrase → colour, for those that have masks, in order of appearance."""
    groundings = (known for conversation in sample.conversations for known in conversation.groundings)
    phrases = dict.fromkeys(known.phrase for known in groundings if known.masks)
    return {phrase: WORD_COLOURS[number % len(WORD_COLOURS)] for number, phrase in enumerate(phrases)}


def _lines(sample: Sample) -> list[_Line]:
    colours = _colours(sample)
    lines: list[_Line] = [*wrap([Run(sample.id, INK, "bold")], _TEXT_IN)]
    for conversation in sample.conversations[:_MAX_CONVERSATIONS]:
        for number, message in enumerate(conversation.messages):
            spans = _spans(conversation, number, colours)
            letter = {"user": "Q", "assistant": "A"}.get(message.role, message.role)
            lines += wrap([Run(letter + "  ", FAINT, "bold"), *runs(message.content, spans)], _TEXT_IN)
    if left := len(sample.conversations) - _MAX_CONVERSATIONS:
        lines += wrap([Run(f"and {left} more", FAINT)], _TEXT_IN) if left > 0 else []
    return lines


def _spans(conversation: Conversation, message: int, colours: Mapping[str, str]) -> list[tuple[int, int, str]]:
    spans: list[tuple[int, int, str]] = []
    for known in sorted(conversation.groundings, key=lambda known: known.start):
        if known.message == message and (not spans or known.start >= spans[-1][1]):
            plain = _UNKNOWN if known.present is None else _ABSENT
            spans.append((known.start, known.end, colours[known.phrase] if known.masks else plain))
    return spans
