"""The gallery of a report: which cases to show, by rule and never by hand, and what their cards hold."""

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
from agevlm.analysis.html import Line, Piece, picture_uri

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


def gallery_groups(items: Sequence[GalleryItem], reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """All cases as gallery.html.jinja shows them: the wrong answers, the right ones, and those that are not scored."""
    named = (("Wrong answers", False), ("Right answers", True), ("Not scored", None))
    groups = [(title, [item for item in items if item.correct is correct]) for title, correct in named]
    return [
        {"title": title, "cards": [_card(item, reasons.get(item.id, "")) for item in group]}
        for title, group in groups
        if group
    ]


def _card(item: GalleryItem, reason: str) -> dict[str, Any]:
    mark, verdict = {True: ("✓", "right"), False: ("✗", "wrong"), None: ("–", "unscored")}[item.correct]
    return {
        "mark": mark,
        "verdict": verdict,
        "kind": item.kind,
        "reason": reason if reason.startswith("least") else "",
        "panels": list(_panels(item)),
        "more": max(0, len(item.look.words) - _MAX_WORDS) if item.look else 0,
        "question": _marked(item.question, item.look, "question"),
        "answer": _marked(item.answer, item.look, "answer"),
        "truth": item.truth,
    }


def _marked(content: str, look: Look | None, where: str) -> Line:
    """`content` with the object words marked, where it is the text that `look` saw."""
    seen = {"question": look.question, "answer": look.answer}[where] if look else None
    if look is None or seen != content:
        return content
    parts: list[str | Piece] = []
    at = 0
    for word, colour in zip(look.words, word_colours(look), strict=True):
        if word.where == where:
            parts += [content[at : word.start], Piece("mark", content[word.start : word.end], colour)]
            at = word.end
    return [part for part in (*parts, content[at:]) if part]


def _panels(item: GalleryItem) -> Iterator[dict[str, Any]]:
    """The picture, then the picture for each object word: bright where the model looked."""
    picture = fit(item.image)
    yield panel(picture, "picture")
    if item.look is None:
        return
    for word, colour in list(zip(item.look.words, word_colours(item.look), strict=True))[:_MAX_WORDS]:
        mask = mask_of(item.look, word, item.masks)
        y, x = peak(word.map, (100, 100))
        drawn = outlined(Image.fromarray(overlay(picture, word.map)), mask)
        title = [Piece("mark", word.word, colour)]
        yield panel(drawn, title, caption(word, mask), (f"{x:.1f}", f"{y:.1f}"))


def panel(image: Image.Image, title: Line, subtitle: str = "", peak: tuple[str, str] | None = None) -> dict[str, Any]:
    """A panel of a card; `peak` is where the cross stands, in per cent of width and height."""
    place = {"src": picture_uri(image), "width": image.width, "height": image.height}
    return {**place, "title": title, "subtitle": subtitle, "peak": peak}


def fit(image: Image.Image | bytes) -> Image.Image:
    """The picture with a longer side of about `_SIDE`: small ones enlarged by a whole factor, large ones reduced."""
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    image = enlarge(image, min_side=_SIDE)
    if max(image.size) > 2 * _SIDE:
        image.thumbnail((2 * _SIDE, 2 * _SIDE), Image.Resampling.LANCZOS)
    return image


def outlined(image: Image.Image, mask: NDArray[np.bool_] | None) -> Image.Image:
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
