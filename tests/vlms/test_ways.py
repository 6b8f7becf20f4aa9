"""Ways to answer without training: each mechanism is that of its formula, and leaves the model as it was at zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_picture

from agevlm.cli.measure import Answering
from agevlm.data.schema import Message
from agevlm.vlms import WAYS, Inputs, Row, Vlm, attention, way_named
from agevlm.vlms.attention import _STEERING
from agevlm.vlms.crop import GENERAL, best_window, relative_maps
from agevlm.vlms.steering import Change, amplified, last_position, reweighted, steered, word_positions
from agevlm.vlms.views import SeenPicture, View

from .test_families import eager
from .tiny_families import MAKERS, made

QUESTIONS = ("is there a fish in the picture ?", "is there a red house left of the blue fish ?")
SIZES = ((144, 96), (72, 120))  # (width, height)
STEERED = ("llava", "llava_next", "qwen2_vl", "paligemma2", "gemma3", "mllama", "agevlm", "agevlm_concat")

families = pytest.mark.parametrize("name", list(MAKERS))


def rows_of(vlm: Vlm, masks: bool = False) -> list[Row]:
    kept = vlm.keep([make_picture(number, size) for number, size in enumerate(SIZES)])
    rows = []
    for question, picture in zip(QUESTIONS, kept, strict=True):
        messages = (Message("user", question, 1),)
        mask = np.zeros((picture.picture.height, picture.picture.width), dtype=bool)
        mask[: mask.shape[0] // 2, : mask.shape[1] // 3] = True
        text = vlm.chat(messages).text
        start = text.index("fish")
        rows.append(Row(text, messages, (picture,), (mask,) if masks else (), ((start, start + 4),)))
    return rows


def words_and_last(vlm: Vlm, inputs: Inputs) -> list[list[int]]:
    spans = [[(text.index("fish"), text.index("fish") + 4)] for text in inputs.texts]
    return word_positions(vlm, inputs, spans)


def asked(vlm: Vlm, inputs: Inputs, positions: Any = None, change: Change | None = None) -> torch.Tensor:
    """Logits of the first token of the answers."""
    if change is None:
        return vlm.ask(inputs, max_new_tokens=1)[1].logits[:, -1]
    with steered(vlm, inputs, positions, change):
        return vlm.ask(inputs, max_new_tokens=1)[1].logits[:, -1]


@families
def test_a_way_that_changes_nothing_gives_the_plain_answer(name: str) -> None:
    vlm = Vlm(*made(name))
    rows = rows_of(vlm)
    inputs = WAYS["plain"](vlm, rows).inputs
    plain = asked(vlm, inputs)
    everywhere = [[None if inputs.null_columns else np.ones(p.size, dtype=bool) for p in of] for of in inputs.pictures]
    for positions, change in (
        (last_position(inputs), amplified(inputs, 0.0)),
        (words_and_last(vlm, inputs), amplified(inputs, 0.0)),
        (words_and_last(vlm, inputs), reweighted(inputs, everywhere, 0.01)),
        (words_and_last(vlm, inputs), reweighted(inputs, [[None], [None]], 0.01)),
    ):
        torch.testing.assert_close(asked(vlm, inputs, positions, change), plain, atol=2e-5, rtol=1e-4)
    assert asked(vlm, inputs, last_position(inputs), amplified(inputs, 3.0)).sub(plain).abs().max() > 1e-4
    assert _STEERING.get() is None


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3"])
def test_steered_attention_is_that_of_the_formula_in_eager_attention(name: str) -> None:
    """The same change made in the open, on the weights of transformers' own eager attention."""
    vlm = Vlm(*made(name))
    inputs = WAYS["plain"](vlm, rows_of(vlm)).inputs
    is_image = torch.zeros(2, inputs.text_len)
    for row, (picture,) in enumerate(inputs.pictures):
        is_image[row, picture.columns] = 1.0
    halved = 0.5 ** is_image[:, None, None]
    behind = words_and_last(vlm, inputs)
    with eager_weights_changed(vlm, behind, lambda weights: renormed(weights * halved)):
        expected = vlm.ask(inputs, max_new_tokens=1)[1].logits[:, -1]
    bias = torch.log(halved)
    found = asked(vlm, inputs, behind, lambda logits: logits + bias)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    empty = [[np.eye(*p.size, k=10**6, dtype=bool) for p in of] for of in inputs.pictures]
    torch.testing.assert_close(asked(vlm, inputs, behind, reweighted(inputs, empty, 0.5)), asked(vlm, inputs))


def renormed(weights: torch.Tensor) -> torch.Tensor:
    return weights / weights.sum(-1, keepdim=True)


class eager_weights_changed:  # noqa: N801
    """Eager attention whose weights (R, H, T, N) are changed at some positions before they meet the values."""

    def __init__(self, vlm: Vlm, positions: list[list[int]], change: Change) -> None:
        self.vlm, self.positions, self.change = vlm, positions, change

    def __enter__(self) -> None:
        softmax = torch.nn.functional.softmax
        self.softmax = softmax

        def changed(weights: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            shares = softmax(weights, *args, **kwargs)
            if shares.ndim == 4:
                for row, places in enumerate(self.positions):
                    shares[row, :, places] = self.change(shares)[row, :, places]
            return shares

        self.eager = eager(self.vlm)
        self.eager.__enter__()
        torch.nn.functional.softmax = changed

    def __exit__(self, *error: Any) -> None:
        torch.nn.functional.softmax = self.softmax
        self.eager.__exit__(*error)


def test_amplified_logits_are_a_plus_alpha_times_their_size_at_image_tokens() -> None:
    vlm = Vlm(*made("llava"))
    inputs = WAYS["plain"](vlm, rows_of(vlm)).inputs
    logits = torch.randn(2, 4, 3, inputs.text_len + 2)  # two tokens of the answer have come
    found = amplified(inputs, 0.2)(logits)
    for row, (picture,) in enumerate(inputs.pictures):
        of_picture = logits[row, ..., picture.columns]
        torch.testing.assert_close(found[row, ..., picture.columns], of_picture + 0.2 * of_picture.abs())
        rest = np.setdiff1d(np.arange(logits.shape[-1]), picture.columns)
        assert torch.equal(found[row, ..., rest], logits[row, ..., rest])


def test_a_mask_weighs_a_token_by_what_of_its_box_it_covers() -> None:
    picture = SeenPicture((4, 6), np.arange(7), (View((2, 3), (0.0, 0.0, 4.0, 6.0), before=1),))
    mask = np.zeros((4, 6), dtype=bool)
    mask[:2, :3] = True
    shares = picture.shares(mask)
    assert np.isnan(shares[0])
    np.testing.assert_allclose(shares[1:], [1, 0.5, 0, 0, 0, 0], atol=1e-12)
    inputs = Inputs(("",), {}, ((picture,),), (0,))
    biases = reweighted(inputs, [[mask]], 0.01)(torch.zeros(1, 1, 1, 8))[0, 0, 0].exp()
    np.testing.assert_allclose(biases, [1, 1, 0.505, 0.01, 0.01, 0.01, 0.01, 1], rtol=1e-6)
    tall = SeenPicture((3, 3), np.arange(4), (View((2, 2), (0.0, 0.0, 3.0, 3.0)),))  # cells of 1.5 pixels
    np.testing.assert_allclose(tall.shares(np.eye(3, dtype=bool)), np.array([1.25, 0.25, 0.25, 1.25]) / 2.25)
    with pytest.raises(ValueError, match=r"a mask of \(6, 4\) pixels does not fit a picture of \(4, 6\)"):
        picture.shares(mask.T)


@pytest.mark.parametrize("name", STEERED)
def test_guided_rows_are_the_plain_ones_reweighted_toward_the_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = Vlm(*made(name))
    rows = rows_of(vlm, masks=True)
    asking = WAYS["mask"](vlm, rows)
    inputs, seen = asking.inputs, []

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = rows_of_attention(*args, **kwargs)
        if kwargs.get("change") is not None:
            seen.append(found)
        return found

    rows_of_attention = attention.rows_of
    monkeypatch.setattr(attention, "rows_of", watched)
    with asking.steer():
        vlm.ask(inputs, max_new_tokens=1)
    plain = vlm.ask(inputs, positions=last_position(inputs), max_new_tokens=1)[1].rows
    last = [len(places) - 1 for places in words_and_last(vlm, inputs)]
    for row, (picture,) in enumerate(inputs.pictures):
        shares = picture.shares(rows[row].masks[0])
        factors = torch.ones(plain[min(plain)].shape[-1])
        factors[list(inputs.null_columns)] = 0.01
        factors[picture.columns] = torch.from_numpy(np.where(np.isnan(shares), 1, 0.01 + 0.99 * shares)).float()
        expected = renormed(plain[min(plain)][row, :, 0] * factors)
        torch.testing.assert_close(seen[0][row, :, last[row]], expected, atol=1e-5, rtol=1e-4)
    assert len(seen) == len(plain)


@pytest.mark.parametrize("name", [name for name in STEERED if name != "paligemma2"])
def test_pai_is_steering_less_the_text_alone(name: str) -> None:
    vlm = Vlm(*made(name))
    rows = rows_of(vlm)
    asking = WAYS["pai"](vlm, rows)
    inputs, layers = asking.inputs, list(vlm.looking)
    assert round(2 / 32 * len(layers)) == 0  # of so few layers none is left out
    with asking.steer():
        answers, first = vlm.ask(inputs, max_new_tokens=3, change=asking.change)
    own = asked(vlm, inputs, last_position(inputs), amplified(inputs, 0.2))
    blind = vlm.encode([vlm.prompt(question, 0) for question in QUESTIONS], [[], []])
    expected = 1.1 * own - 0.1 * vlm.read(blind).logits[:, -1]
    kept = torch.isfinite(first.logits[:, -1])
    assert kept.any(-1).all()
    torch.testing.assert_close(first.logits[:, -1][kept], expected[kept], atol=5e-5, rtol=1e-4)
    for row, answer in enumerate(answers):
        token = int(expected[row].masked_fill(~kept[row], -torch.inf).argmax())
        assert (answer.ids or (token,))[0] == token
        if len(answer.ids) > 1:  # the second token is that after the first in both
            with steered(vlm, inputs, last_position(inputs), amplified(inputs, 0.2)):
                second = _second(vlm, inputs, [a.ids[:1] for a in answers])
            told = blind.answered([a.ids[:1] for a in answers], vlm.family)
            both = 1.1 * second[row] - 0.1 * vlm.read(told).logits[row, -1]
            assert answer.ids[1] == int(
                both.masked_fill(second[row] < second[row].max() + np.log(0.1), -torch.inf).argmax()
            )


def _second(vlm: Vlm, inputs: Inputs, firsts: list[Any]) -> torch.Tensor:
    """Logits of the second token where the first is given."""
    first = torch.tensor([list(ids) or [0] for ids in firsts])

    def force(said: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if said.shape[1] > inputs.text_len:
            return logits
        return torch.full_like(logits, -1e9).scatter(1, first, 0.0)

    seen: list[torch.Tensor] = []
    vlm.ask(inputs, max_new_tokens=2, change=lambda said, logits: seen.append(logits) or force(said, logits))
    return seen[1]


def test_every_later_token_is_steered_too() -> None:
    vlm = Vlm(*made("llava"))
    inputs = WAYS["plain"](vlm, rows_of(vlm)).inputs
    shapes: list[tuple[int, ...]] = []

    def change(logits: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(logits.shape))
        return amplified(inputs, 0.5)(logits)

    vlm.model.generation_config.eos_token_id, ends = None, vlm.model.generation_config.eos_token_id
    try:
        with steered(vlm, inputs, last_position(inputs), change):
            vlm.ask(inputs, max_new_tokens=3)
    finally:
        vlm.model.generation_config.eos_token_id = ends
    layers, length = 3, inputs.text_len
    assert shapes == [(2, 4, 1, length + step) for step in range(3) for _ in range(layers)]


def test_the_window_is_where_the_map_stands_out_most() -> None:
    found = np.zeros((12, 12))
    found[2:8, 5:11] = 1.0  # a square of six cells of eight pixels: half the side
    assert best_window(found, (96, 96)) == (16, 40, 64, 88)
    found = np.zeros((12, 12))
    found[3:10, 2:9] = 1.0  # of seven cells: .6 of the side is the nearest below
    top, left, bottom, right = best_window(found, (96, 96))
    assert bottom - top == right - left and top + 8 >= 3 * 8 and right <= 9 * 8 + 8
    corner = np.zeros((6, 9))
    corner[5, 8] = 1.0
    top, left, bottom, right = best_window(corner, (60, 90))
    assert (bottom, right) == (60, 90) and bottom - top == right - left == 30
    assert best_window(np.ones((1, 1)), (1, 1)) == (0, 0, 1, 1)
    assert best_window(np.random.default_rng(0).random((4, 4)), (2, 3)) is not None


@pytest.mark.parametrize("name", STEERED)
def test_vicrop_asks_about_the_picture_and_its_part(name: str) -> None:
    vlm = Vlm(*made(name))
    rows = rows_of(vlm)
    asking = WAYS["vicrop"](vlm, rows)
    maps = relative_maps(vlm, [r.text for r in rows], [r.messages for r in rows], [r.pictures for r in rows])
    texts = [row.text for row in rows]
    general = [vlm.prompt(GENERAL)] * 2
    for text, inputs in ((t, vlm.encode(t, [row.pictures for row in rows])) for t in (texts, general)):
        assert inputs.texts == tuple(text)
    for row, (whole, part) in enumerate(asking.inputs.pictures):
        box = best_window(maps[row], whole.size)
        assert part.size == (box[2] - box[0], box[3] - box[1])
        assert whole.size == (SIZES[row][1], SIZES[row][0])
        assert maps[row].shape == vlm.encode(texts, [r.pictures for r in rows]).pictures[row][0].grid
    assert vlm.ask(asking.inputs, max_new_tokens=2)[0]
    two = replace(rows[0], pictures=rows[0].pictures * 2)
    with pytest.raises(ValueError, match="vicrop cuts the one picture of a question, and this one has 2"):
        WAYS["vicrop"](vlm, [two])


def test_what_a_way_cannot_do_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agevlm.vlms.families.FAMILIES", ())
    unknown = Vlm(*made("qwen2_vl"))
    monkeypatch.undo()
    for way in ("pai", "vicrop", "mask"):
        with pytest.raises(ValueError, match=r"is not known of models of the type 'qwen2_vl'.* plain or vcd"):
            way_named(way, unknown)
    assert way_named("vcd", unknown)
    vlm = Vlm(*made("llava"))
    vlm.family = replace(vlm.family, looking=lambda model: ())  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"the processor of 'paligemma' takes no text alone: answer in another way"):
        WAYS["pai"](paligemma := Vlm(*made("paligemma2")), rows_of(paligemma))
    with pytest.raises(ValueError, match="takes no text alone"):
        way_named("pai", paligemma)
    asking = WAYS["mask"](vlm, rows_of(vlm))
    with pytest.raises(ValueError, match=r"cannot be steered: its layers do not .* AttentionInterface"), asking.steer():
        vlm.ask(asking.inputs, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"no way to answer 'loud': choose one of plain, vcd, pai, vicrop, mask"):
        way_named("loud", vlm)


def test_the_command_offers_every_way() -> None:
    assert [way.value for way in Answering] == list(WAYS)
