"""Every family, by a tiny random model: rows, boxes, batches, probabilities and memory are what they should be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_picture
from torch.utils._python_dispatch import TorchDispatchMode

from agevlm.vlms import Vlm
from agevlm.vlms.attention import IMPLEMENTATION

from .tiny_families import MAKERS, made

QUESTIONS = ("is there a fish in the picture ?", "no boat . is there a red house left of the blue fish ?")
SIZES = ((144, 96), (72, 120))  # (width, height)
ROWS_ATOL = 1e-5

families = pytest.mark.parametrize("name", list(MAKERS))


def vlm_of(name: str) -> Vlm:
    return Vlm(*made(name))


def both(vlm: Vlm) -> Any:
    """Two rows of different lengths about pictures of different shapes."""
    texts = [vlm.prompt(question) for question in QUESTIONS]
    return vlm.encode(texts, [[make_picture(i, size)] for i, size in enumerate(SIZES)])


@contextmanager
def eager(vlm: Vlm) -> Iterator[None]:
    holder = vlm.family.holder(vlm.model)
    before = holder.config._attn_implementation
    holder.set_attn_implementation({"": "eager"})
    try:
        yield
    finally:
        holder.set_attn_implementation({"": before})


def eager_weights(vlm: Vlm, inputs: Any) -> dict[int, torch.Tensor]:
    """The weights (R, H, X, N) that eager attention gives back in each layer that looks."""
    found: dict[int, torch.Tensor] = {}

    def hook(number: int) -> Any:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            if isinstance(output, tuple) and len(output) > 1 and getattr(output[1], "ndim", 0) == 4:
                found[number] = output[1].float()

        return keep

    handles = [m.register_forward_hook(hook(n)) for n in vlm.looking for m in vlm.layers[n].modules()]
    asked = {}
    if vlm.model.config.model_type == "agevlm":  # it gives back the rows that are asked for, and no others
        everything = torch.arange(inputs.text_len).expand(len(inputs.texts), -1)
        asked = {"attention_rows": everything, "output_attention_maps": False}
    with eager(vlm), torch.inference_mode():
        vlm.model(**inputs.tensors, use_cache=False, **asked)
    for handle in handles:
        handle.remove()
    return found


@families
def test_rows_are_those_of_eager_attention(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    mask = inputs.tensors["attention_mask"].bool()
    positions = [[t for t in range(inputs.text_len) if mask[r, t]][-7:] for r in range(2)]
    positions[1] = positions[1][:4]  # shorter lists are filled up
    rows = vlm.read(inputs, positions=positions).rows
    expected = eager_weights(vlm, inputs)
    assert rows.keys() == expected.keys() and rows
    for layer, weights in rows.items():
        for row, asked in enumerate(positions):
            wanted = expected[layer][row][:, [t + inputs.num_front for t in asked]]
            torch.testing.assert_close(weights[row, :, : len(asked)], wanted, atol=ROWS_ATOL, rtol=0)
            assert not weights[row, :, len(asked) :].any()
        sums = weights[0].sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)


@families
def test_reading_changes_nothing(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    holder = vlm.family.holder(vlm.model)
    before = holder.config._attn_implementation
    plain = vlm.read(inputs).logits
    read = vlm.read(inputs, positions=[[inputs.text_len - 1]] * 2, states=[0], projections=True).logits
    torch.testing.assert_close(read, plain, atol=1e-5, rtol=1e-5)
    assert holder.config._attn_implementation == before != IMPLEMENTATION


def image_states(vlm: Vlm, picture: Image.Image) -> tuple[Any, torch.Tensor]:
    """The picture as seen, and its image tokens (n, W) before anything mixes them."""
    inputs = vlm.encode([vlm.prompt(QUESTIONS[0])], [[picture]])
    seen = inputs.pictures[0][0]
    reading = vlm.read(inputs, states=[0])
    states = reading.states[0][0] if reading.image_states is None else reading.image_states.flatten(0, -2)
    return seen, states[seen.columns]


@families
@pytest.mark.parametrize("size", [*SIZES, (96, 60), (96, 96)])
def test_a_token_moves_with_the_pixels_of_its_box_and_with_no_others(name: str, size: tuple[int, int]) -> None:
    vlm = vlm_of(name)
    picture = make_picture(3, size)
    seen, states = image_states(vlm, picture)
    assert len(seen.columns) == len(seen.boxes)
    real = np.flatnonzero(~np.isnan(seen.boxes[:, 0]))
    views = np.repeat(range(len(seen.views)), [view.num_tokens for view in seen.views])
    margins = np.array([2.0 + 3.0 * max(1.0, max(seen.views[v].cell) / 8) if seen.views[v].box else 0 for v in views])
    rng = np.random.default_rng(0)
    for token in rng.choice(real, 8, replace=False):
        top, left, bottom, right = seen.boxes[token]
        down, along = rng.choice([0.3, 0.7], 2)  # away from the centre, which boxes of a wrong size may share
        y, x = round(top + down * (bottom - top)), round(left + along * (right - left))
        changed = np.array(picture)
        changed[y - 1 : y + 1, x - 1 : x + 1] = 255 - changed[y - 1 : y + 1, x - 1 : x + 1] // 2
        moved = (image_states(vlm, Image.fromarray(changed))[1] - states).abs().amax(-1).numpy()
        assert moved[token] > 1e-4
        for view in set(views[real]):
            inside = [t for t in real if views[t] == view]
            containing = [t for t in inside if _distance(seen.boxes[t], y, x) == 0]
            if containing:
                assert moved[inside].max() == moved[containing].max(), (view, token)
            far = [t for t in inside if _distance(seen.boxes[t], y, x) > margins[t]]
            assert not len(far) or moved[far].max() < 1e-6, (view, token)
        assert moved[np.setdiff1d(np.arange(len(moved)), real)].max(initial=0) < 1e-6


def _distance(box: Any, y: int, x: int) -> float:
    """How far the pixels around (y, x) lie from a box, 0 where they are all inside."""
    top, left, bottom, right = box
    if top <= y - 1 and bottom >= y + 1 and left <= x - 1 and right >= x + 1:
        return 0.0
    return max(top - y, y - bottom, left - x, x - right, 0.5)


@families
def test_pictures_of_every_shape_have_as_many_tokens_as_the_facts_say(name: str) -> None:
    vlm = vlm_of(name)
    text, rng = vlm.prompt(QUESTIONS[0]), np.random.default_rng(0)
    for _ in range(25):
        short, ratio = rng.integers(16, 120), rng.uniform(1, 4)
        size = (int(short), int(short * ratio))
        seen = vlm.encode([text], [[make_picture(0, size if rng.random() < 0.5 else size[::-1])]]).pictures[0][0]
        real = seen.boxes[~np.isnan(seen.boxes[:, 0])]
        assert len(seen.columns) == len(seen.boxes)
        np.testing.assert_allclose(seen.map(np.ones(len(seen.columns))).sum(), len(real), rtol=1e-5)
        covered = [real[:, 0].min(), real[:, 1].min(), real[:, 2].max() - seen.size[0], real[:, 3].max() - seen.size[1]]
        if name != "llava":  # it cuts out the centre
            np.testing.assert_allclose(covered, 0, atol=2)


@families
def test_maps_keep_the_mass_of_what_has_pixels(name: str) -> None:
    vlm = vlm_of(name)
    seen = both(vlm).pictures[1][0]
    weights = np.random.default_rng(0).random(len(seen.columns))
    weights_map = seen.map(weights)
    assert weights_map.shape == seen.grid
    np.testing.assert_allclose(weights_map.sum(), weights[~np.isnan(seen.boxes[:, 0])].sum(), rtol=1e-5)


@families
def test_a_batch_equals_its_members(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    last = inputs.text_len - 1
    batch = vlm.read(inputs, positions=[[last]] * 2)
    for row, (question, size) in enumerate(zip(QUESTIONS, SIZES, strict=True)):
        alone = vlm.encode([vlm.prompt(question)], [[make_picture(row, size)]])
        single = vlm.read(alone, positions=[[alone.text_len - 1]])
        torch.testing.assert_close(batch.logits[row], single.logits[0], atol=2e-5, rtol=1e-4)
        there, here = inputs.pictures[row][0], alone.pictures[0][0]
        np.testing.assert_array_equal(there.boxes, here.boxes)
        for layer, weights in single.rows.items():
            seen = batch.rows[layer][row, ..., there.columns]
            torch.testing.assert_close(seen, weights[0][..., here.columns], atol=ROWS_ATOL, rtol=0)


@families
def test_probabilities_of_yes_and_no_are_those_of_the_logits(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    shares = vlm.read(inputs).logits[:, -1].float().softmax(-1)
    words = vlm.processor.tokenizer.convert_tokens_to_ids
    unknown = words("<unk>")
    ids = {answer: {words(w) for w in (answer, answer.title())} - {unknown} for answer in ("yes", "no")}
    for row, found in enumerate(vlm.yes_no(inputs)):
        assert found.yes == pytest.approx(float(shares[row, sorted(ids["yes"])].sum()), abs=1e-6)
        assert found.no == pytest.approx(float(shares[row, sorted(ids["no"])].sum()), abs=1e-6)
        assert found.p_yes == pytest.approx(found.yes / (found.yes + found.no))


@families
def test_log_probabilities_are_those_with_which_the_answer_was_chosen(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    output = vlm.model.generate(
        **inputs.tensors, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True,
        pad_token_id=0, eos_token_id=None, suppress_tokens=vlm._suppressed or None,
    )  # fmt: skip
    ids = output.sequences[:, inputs.text_len :].tolist()
    scores = torch.stack(output.logits, dim=1).float().log_softmax(-1)
    for row, found in enumerate(vlm.log_probs(inputs, ids)):
        expected = scores[row, range(5), ids[row]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@families
def test_answers_are_those_of_generate(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    answers = vlm.answers(inputs, max_new_tokens=4)
    written = vlm.model.generate(
        **inputs.tensors, max_new_tokens=4, do_sample=False, pad_token_id=0, suppress_tokens=vlm._suppressed or None
    )
    for row, answer in enumerate(answers):
        assert list(answer.ids) == written[row, inputs.text_len :].tolist()[: len(answer.ids)]
        assert not set(answer.ids) & {vlm.image_token_id, *vlm.end_ids}


@families
def test_one_generation_gives_answers_rows_and_logits(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    positions = [[inputs.text_len - 1], [inputs.text_len - 2, inputs.text_len - 4]]
    answers, reading = vlm.ask(inputs, positions=positions, max_new_tokens=3)
    expected = vlm.read(inputs, positions=positions)
    assert answers == vlm.answers(inputs, max_new_tokens=3)
    torch.testing.assert_close(reading.logits, expected.logits, atol=2e-5, rtol=1e-4)
    assert reading.rows.keys() == expected.rows.keys()
    for layer, weights in reading.rows.items():
        torch.testing.assert_close(weights, expected.rows[layer], atol=ROWS_ATOL, rtol=0)


class Largest(TorchDispatchMode):
    """Notes the largest floating tensor that any operation gives, of those alone whose shape ends in `ends`."""

    def __init__(self, ends: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.ends = ends
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            counts = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
            if counts and tensor.shape[tensor.ndim - len(self.ends) :] == self.ends:
                self.largest = max(self.largest, tensor.numel())
        return output


@families
def test_memory_grows_with_the_asked_rows_and_not_with_the_square(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agevlm.vlms.attention._CHUNK", 16)  # of soft-capped attention
    vlm = vlm_of(name)
    inputs = both(vlm)
    positions = list(range(inputs.text_len - 8, inputs.text_len))

    def kept(num: int) -> int:
        rows = vlm.read(inputs, positions=[positions[-num:]] * 2).rows
        return sum(weights.numel() for weights in rows.values())

    assert kept(8) == 4 * kept(2) == 8 * kept(1)
    weights = next(iter(eager_weights(vlm, inputs).values()))
    assert weights.numel() >= 2 * 4 * inputs.text_len * weights.shape[-1]
    if vlm.family.cross:  # so few keys that other tensors are larger: those of text by keys are no more than masks
        with Largest(weights.shape[-2:]) as read:
            vlm.read(inputs, positions=[positions[-1:]] * 2)
        with Largest(weights.shape[-2:]) as openly:
            eager_weights(vlm, inputs)
        assert read.largest <= weights.numel() // 4 <= openly.largest // 4
        return
    with Largest() as read:
        vlm.read(inputs, positions=[positions[-1:]] * 2)
    with Largest() as plain:
        vlm.read(inputs)
    assert read.largest <= max(plain.largest, weights.numel() // 2)


@families
def test_words_are_found_again_behind_the_image_tokens(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    tokenizer = vlm.processor.tokenizer
    for row, word in enumerate(("fish", "house")):
        start = inputs.texts[row].index(word)
        (place,) = inputs.tokens_of(tokenizer, row, start, start + len(word))
        assert tokenizer.decode([int(inputs.tensors["input_ids"][row, place])]) == word


@families
def test_queries_and_keys_give_the_rows_where_nothing_turns_them(name: str) -> None:
    vlm = vlm_of(name)
    inputs = both(vlm)
    reading = vlm.read(inputs, projections=True)
    assert reading.queries.keys() == reading.keys.keys() and reading.queries
    for layer, query in reading.queries.items():
        key = reading.keys[layer]
        assert query.shape[0] == key.shape[0] == 2 and query.shape[1] == 2 * key.shape[1]
        assert query.shape[-1] == key.shape[-1]
    if vlm.family.cross:
        rows = vlm.read(inputs, positions=[[inputs.text_len - 1]] * 2).rows
        for layer, weights in rows.items():
            query, key = reading.queries[layer][:, :, -1:], reading.keys[layer].repeat_interleave(2, dim=1)
            logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
            allowed = weights > 0
            expected = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
            torch.testing.assert_close(weights, expected, atol=ROWS_ATOL, rtol=0)


@families
def test_names_of_special_tokens_in_a_question_are_text(name: str) -> None:
    """Other people's processors would put a picture's tokens where a question says `<image>`."""
    vlm = vlm_of(name)
    names = [token.content for token in vlm.processor.tokenizer.added_tokens_decoder.values() if token.special]
    known = {token for token in names if token.strip()} | {vlm.processor.image_token}
    special = {vlm.image_token_id, *vlm.processor.tokenizer.all_special_ids} - {vlm.processor.tokenizer.unk_token_id}
    pictures = [[make_picture(0, SIZES[0])]]

    def specials(question: str) -> list[int]:
        tokens = vlm.encode([vlm.prompt(question)], pictures).tensors["input_ids"][0].tolist()
        return [token for token in tokens if token in special]

    plain = specials("is there a fish ?")
    assert specials(f"is there {' '.join(sorted(known))} fish ?") == plain
    assert specials("is there a fish ?") == plain
