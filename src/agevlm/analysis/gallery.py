"""The gallery of a report: which cases to show, by rule and never by hand, and how one case looks as HTML."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.analysis.attention import Look
from agevlm.analysis.figures import caption, enlarge, mask_of, overlay, peak, word_colours
from agevlm.analysis.html import Html, join, picture_uri, tag, text

RULE = (
    "Cases are chosen by rule, not by hand. All predictions are put in the order of a hash (SHA-256) of their ids. One "
    "case in six is kept for the worst attention: the predictions whose object words have the least attention on the "
    "thing that they name. The other places go round: the first right answer of each kind of question, the first wrong "
    "one of each kind, the second right one of each kind, and so on, always on a picture not shown yet."
)
NUM_CASES = 24
_WORST_RATIO = 1 / 6
_SIDE = 288  # pixels of a panel's longer side
_MAX_WORDS = 5  # attention panels of one case; the card says how many more there are


@dataclass(frozen=True)
class GalleryItem:
    """A case to show. `image` is a picture or an encoded file; `correct` None: not scored.

    `look` holds the attention, None: no panels. `masks` gives for a word, as listed or as written, where its
    thing is (height, width): drawn as an outline. `id` is the prediction's: by it the report tells why it was chosen.
    """

    image: Image.Image | bytes
    question: str
    answer: str
    truth: str
    kind: str
    correct: bool | None
    look: Look | None = None
    masks: Mapping[str, NDArray[np.bool_]] | None = None
    id: str = ""


def choose_cases(predictions: Sequence[Mapping[str, Any]], num: int = NUM_CASES) -> list[str]:
    """The ids of the predictions to show, at most `num`, by `RULE`, whatever the order they come in.

    Predictions are lines of predictions.jsonl with `id`, `kind`, `correct` and, if known, `image` and `words`, whose
    `mass` is the share of attention inside the mask (null for what is absent). Unscored ones (`correct` null) can only
    be chosen for their attention.
    """
    return list(chosen_because(predictions, num))


def chosen_because(predictions: Sequence[Mapping[str, Any]], num: int = NUM_CASES) -> dict[str, str]:
    """The ids of `choose_cases`, in order, each with the reason in words."""
    ordered = sorted(predictions, key=lambda row: (_hash(str(row["id"])), str(row["id"])))
    masses = [(mass, row) for row in ordered if (mass := _attention_mass(row)) is not None]
    masses.sort(key=lambda pair: pair[0])
    chosen: dict[str, str] = {}
    shown: set[str] = set()

    def take_first(rows: Iterator[tuple[Mapping[str, Any], str]]) -> bool:
        """Take the first row on a picture that is not shown yet; False where none is left."""
        for row, reason in rows:
            if _image_of(row) not in shown:
                chosen[str(row["id"])] = reason
                shown.add(_image_of(row))
                return True
        return False

    worst = ((row, f"least attention on the thing: {mass:.0%}") for mass, row in masses)
    while len(chosen) < round(num * _WORST_RATIO) and take_first(worst):
        pass
    queues = _queues(ordered)
    while queues and len(chosen) < num:
        queue = queues.pop(0)
        if take_first(queue):
            queues.append(queue)
    return chosen


def _queues(ordered: Sequence[Mapping[str, Any]]) -> list[Iterator[tuple[Mapping[str, Any], str]]]:
    """The right answers of each kind, then the wrong ones of each kind."""
    kinds = sorted({str(row["kind"]) for row in ordered})
    words = {True: "right", False: "wrong"}
    return [
        iter([(row, f"{kind}, {words[correct]}") for row in ordered if _is(row, kind, correct)])
        for correct in (True, False)
        for kind in kinds
    ]


def _is(row: Mapping[str, Any], kind: str, correct: bool) -> bool:
    return str(row["kind"]) == kind and row.get("correct") is correct


def _image_of(row: Mapping[str, Any]) -> str:
    return str(row.get("image") or row["id"])


def _attention_mass(row: Mapping[str, Any]) -> float | None:
    """Mean over the object words that name something present; None without any."""
    masses = [word["mass"] for word in row.get("words") or () if word.get("mass") is not None]
    return sum(masses) / len(masses) if masses else None


def _hash(identity: str) -> str:
    return hashlib.sha256(identity.encode("utf-8")).hexdigest()


def gallery_html(items: Sequence[GalleryItem], reasons: Mapping[str, str]) -> Html:
    """All cases as cards: the wrong answers, the right ones, and those that are not scored."""
    groups = (("Wrong answers", False), ("Right answers", True), ("Not scored", None))
    parts: list[object] = []
    for title, correct in groups:
        group = [item for item in items if item.correct is correct]
        if group:
            heading = tag("h3", title, " ", tag("span", len(group), class_="count"))
            parts += [heading, tag("div", *(_card(item, reasons.get(item.id)) for item in group), class_="cards")]
    return join(parts)


def _card(item: GalleryItem, reason: str | None) -> Html:
    mark = {True: ("✓", "right"), False: ("✗", "wrong"), None: ("–", "unscored")}[item.correct]
    head = tag(
        "header",
        tag("span", mark[0], " ", mark[1], class_=f"badge {mark[1]}"),
        tag("span", item.kind, class_="kind"),
        tag("span", reason, class_="reason") if reason and reason.startswith("least") else None,
    )
    facts = tag(
        "dl",
        tag("dt", "asked"),
        tag("dd", _marked(item.question, item.look, "question")),
        tag("dt", "said"),
        tag("dd", _marked(item.answer, item.look, "answer") if item.answer else tag("em", "nothing"), class_="said"),
        tag("dt", "truth"),
        tag("dd", item.truth),
    )
    return tag("article", head, _panels(item), facts, class_=f"card {mark[1]}")


def _marked(content: str, look: Look | None, where: str) -> Html:
    """`content` with the object words marked, where it is the text that `look` saw."""
    seen = {"question": look.question, "answer": look.answer}[where] if look else None
    if look is None or seen != content:
        return text(content)
    parts: list[object] = []
    at = 0
    for word, colour in zip(look.words, word_colours(look), strict=True):
        if word.where == where:
            parts += [content[at : word.start], tag("mark", content[word.start : word.end], style=f"--c:{colour}")]
            at = word.end
    return join([*parts, content[at:]])


def _panels(item: GalleryItem) -> Html:
    picture = _fit(item.image)
    figures = [_panel(picture, "picture")]
    words = item.look.words if item.look else ()
    colours = word_colours(item.look) if item.look else []
    for word, colour in list(zip(words, colours, strict=True))[:_MAX_WORDS]:
        assert item.look
        mask = mask_of(item.look, word, item.masks)
        y, x = peak(word.map, (100, 100))
        cross = tag("span", class_="cross", style=f"left:{x:.1f}%;top:{y:.1f}%")
        drawn = _outlined(Image.fromarray(overlay(picture, word.map)), mask)
        figures.append(_panel(drawn, tag("mark", word.word, style=f"--c:{colour}"), caption(word, mask), cross))
    more = len(words) - _MAX_WORDS
    note = tag("p", f"{more} more object words are not drawn", class_="faint") if more > 0 else None
    return join([tag("div", *figures, class_="panels three" if len(figures) == 3 else "panels"), note])


def _panel(image: Image.Image, title: object, subtitle: str = "", cross: Html | None = None) -> Html:
    shown = tag("img", src=picture_uri(image), alt="", width=image.width, height=image.height)
    return tag(
        "figure", tag("div", shown, cross, class_="frame"), tag("figcaption", title, " ", tag("small", subtitle))
    )


def _fit(image: Image.Image | bytes) -> Image.Image:
    """The picture with a longer side of about `_SIDE`: small ones enlarged by a whole factor, large ones reduced."""
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    image = enlarge(image, min_side=_SIDE)
    if max(image.size) > 2 * _SIDE:
        image.thumbnail((2 * _SIDE, 2 * _SIDE), Image.Resampling.LANCZOS)
    return image


def _outlined(image: Image.Image, mask: NDArray[np.bool_] | None) -> Image.Image:
    """`image` with the edge of `mask` in white, with black outside it so that it shows on any ground."""
    if mask is None or not mask.any():
        return image
    from scipy.ndimage import binary_dilation

    square = np.ones((3, 3))
    inside = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    white = binary_dilation(inside, square, iterations=2)
    pixels = np.array(image)
    pixels[binary_dilation(white, square) & ~white] = 0
    pixels[white & ~inside] = 255
    return Image.fromarray(pixels)
