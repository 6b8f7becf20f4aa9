"""What the room does beyond one picture a row: several pictures, variants of processors, maps, fallbacks, bad input."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_models import make_picture, make_text_config

from agevlm.analysis.attention import look
from agevlm.checkpoints import load_model
from agevlm.data.schema import Message
from agevlm.evaluation.answering import Asker
from agevlm.evaluation.questions import Prompt
from agevlm.vlms import AttentionUnreadableError, Vlm, attention_maps, maps_of, occlusion_map
from agevlm.vlms.attention import _READER, RowReader, attend, rows_of
from agevlm.vlms.families import FAMILIES, family_of
from agevlm.vlms.inputs import _places

from . import tiny_families as tiny
from .tiny_families import MAKERS, made

QUESTION = "is there a fish in the picture ?"


def states_of(vlm: Vlm, pictures: list[Image.Image]) -> tuple[Any, torch.Tensor]:
    """The pictures as seen in one row, and what goes into the decoder (or into its keys) of it, (X, W)."""
    inputs = vlm.encode([vlm.prompt(QUESTION, len(pictures))], [pictures])
    reading = vlm.read(inputs, states=[0])
    if reading.image_states is None:
        return inputs, reading.states[0][0]
    states = reading.image_states.flatten(0, -2)
    if inputs.null_columns:  # the keys have one more behind those of each picture
        states = torch.cat(
            [states.unflatten(0, (len(pictures), -1)), torch.zeros(len(pictures), 1, states.shape[-1])], 1
        )
        states = states.flatten(0, 1)
    return inputs, states


@pytest.mark.parametrize("name", list(MAKERS))
def test_each_of_two_pictures_of_a_row_has_its_own_tokens(name: str) -> None:
    vlm = Vlm(*made(name))
    pictures = [make_picture(0, (72, 40)), make_picture(1, (50, 90))]
    inputs, before = states_of(vlm, pictures)
    for place in range(2):
        other = list(pictures)
        other[place] = make_picture(9, pictures[place].size)
        moved = (states_of(vlm, other)[1] - before).abs().amax(-1).numpy() > 1e-4
        seen = inputs.pictures[0][place]
        with_pixels = seen.columns[~np.isnan(seen.boxes[:, 0])]
        assert moved[with_pixels].all()
        assert set(np.flatnonzero(moved)) <= set(seen.columns)


VARIANTS = {
    "llava squeezes": lambda: tiny.llava(size={"height": 64, "width": 64}, do_center_crop=False),
    "llava cuts closer": lambda: tiny.llava(size={"shortest_edge": 80}),
    "llava pads to a square": lambda: _padding(tiny.llava()),
    "onevision thins its grid": lambda: tiny.llava_onevision(max_tiles=1),
    "gemma pans and scans": lambda: tiny.gemma3(pan_and_scan=True),
    "idefics does not split": lambda: _with(tiny.idefics3(), do_image_splitting=False),
    "internvl does not split": lambda: _not_cropping(tiny.internvl()),
}


def _with(pair: tuple[Any, Any], **settings: Any) -> tuple[Any, Any]:
    for name, value in settings.items():
        setattr(pair[1].image_processor, name, value)
    return pair


def _padding(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    size = {"shortest_edge": 64}
    pair[1].image_processor = tiny.pixels_class("LlavaImageProcessor")(
        size=size, crop_size={"height": 64, "width": 64}, do_pad=True
    )
    return pair


def _not_cropping(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    pair[1].images_kwargs = pair[1].images_kwargs | {"crop_to_patches": False}
    return pair


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.parametrize("size", [(160, 64), (64, 192), (96, 96)])
def test_variants_of_processors(name: str, size: tuple[int, int]) -> None:
    vlm = Vlm(*VARIANTS[name]())
    picture = make_picture(0, size)
    inputs, before = states_of(vlm, [picture])
    seen = inputs.pictures[0][0]
    real = np.flatnonzero(~np.isnan(seen.boxes[:, 0]))
    for token in np.random.default_rng(0).choice(real, min(5, len(real)), replace=False):
        top, left, bottom, right = seen.boxes[token]
        y, x = int((top + bottom) / 2), int((left + right) / 2)
        pixels = np.array(picture)
        pixels[y - 1 : y + 1, x - 1 : x + 1] = 255 - pixels[y - 1 : y + 1, x - 1 : x + 1] // 2
        moved = (states_of(vlm, [Image.fromarray(pixels)])[1] - before).abs().amax(-1).numpy()[seen.columns]
        assert moved[token] > 1e-4
        cell_y, cell_x = max(view.cell for view in seen.views)
        boxes = seen.boxes[real]
        far = (boxes[:, 0] > y + cell_y) | (boxes[:, 2] < y - cell_y)
        far |= (boxes[:, 1] > x + cell_x) | (boxes[:, 3] < x - cell_x)
        assert far.any() or len(real) == 4
        assert moved[real[far]].max(initial=0) < 1e-6


def test_variants_are_what_they_say() -> None:
    picture = make_picture(0, (160, 64))

    def grids(pair: tuple[Any, Any]) -> list[tuple[int, int]]:
        vlm = Vlm(*pair)
        return [view.grid for view in vlm.encode([vlm.prompt(QUESTION)], [[picture]]).pictures[0][0].views]

    assert grids(VARIANTS["gemma pans and scans"]()) == [(4, 4)] * 4
    assert grids(VARIANTS["idefics does not split"]()) == [(2, 2)]
    assert grids(VARIANTS["onevision thins its grid"]()) != grids(tiny.llava_onevision())


def without_family(name: str, monkeypatch: pytest.MonkeyPatch) -> Vlm:
    """A model whose family is not in the table."""
    monkeypatch.setattr("agevlm.vlms.families.FAMILIES", ())
    vlm = Vlm(*made(name))
    monkeypatch.undo()
    assert vlm.family is None
    return vlm


def test_a_family_that_is_not_known_answers_and_shows_rows_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm, known = without_family("qwen2_vl", monkeypatch), Vlm(*made("qwen2_vl"))
    text, pictures = known.prompt(QUESTION), [make_picture(0, (96, 60))]
    inputs, expected = vlm.encode([text], [pictures]), known.encode([text], [pictures])
    assert vlm.answers(inputs, 4) == known.answers(expected, 4)
    assert vlm.yes_no(inputs) == known.yes_no(expected)
    rows = vlm.read(inputs, positions=[[inputs.text_len - 1]]).rows
    torch.testing.assert_close(rows[0], known.read(expected, positions=[[inputs.text_len - 1]]).rows[0])
    np.testing.assert_array_equal(inputs.pictures[0][0].columns, expected.pictures[0][0].columns)
    with pytest.raises(ValueError, match=r"not known for this family.*occlusion"):
        _ = inputs.pictures[0][0].boxes
    assert vlm.note is not None and "'qwen2_vl'" in vlm.note and "occlusion" in vlm.note
    assert known.note is None


def test_maps_of_words_are_of_attention_where_it_can_be_read() -> None:
    vlm = Vlm(*made("llava_next"))
    text, picture = vlm.prompt(QUESTION), make_picture(0, (96, 60))
    start = text.index("fish")
    (found,) = maps_of(vlm, text, [picture], [(start, start + 4)])
    assert found is not None and (found.kind, found.note, found.null_mass) == ("attention", None, None)
    inputs = vlm.encode([text], [[picture]])
    (token,) = inputs.tokens_of(vlm.processor.tokenizer, 0, start, start + 4)
    rows = vlm.read(inputs, positions=[[token]]).rows
    mean = torch.stack([weights[0, :, 0].mean(0) for weights in rows.values()]).mean(0).numpy()
    seen = inputs.pictures[0][0]
    np.testing.assert_allclose(found.maps[0], seen.map(mean[seen.columns]), atol=1e-6)


@pytest.mark.parametrize("name", ["agevlm", "agevlm_concat"])
def test_ours_give_the_row_weights_that_they_give_by_themselves(name: str) -> None:
    vlm = Vlm(*made(name))
    inputs = vlm.encode([vlm.prompt(QUESTION), vlm.prompt("no fish")], [[make_picture(0)], [make_picture(1)]])
    positions = [[inputs.text_len - 1, inputs.text_len - 3]] * 2
    reading = vlm.read(inputs, positions=positions)
    words = [[[inputs.text_len - 1, inputs.text_len - 3]]] * 2
    found = attention_maps(inputs, reading, positions, words, of_pictures=True)
    own = vlm.model(**inputs.tensors, attention_rows=torch.tensor(positions)).row_weights
    mean = torch.stack([layer.mean(dim=(1, 2)) for layer in own]).mean(0).detach().numpy()
    for row in range(2):
        word = found[row][0]
        assert word is not None
        np.testing.assert_allclose(word.maps[0].ravel(), mean[row, :16], atol=1e-6)
        if name == "agevlm":
            assert word.null_mass == pytest.approx(mean[row, 16], abs=1e-6)


@pytest.mark.parametrize("name", ["agevlm", "agevlm_concat", "internvl"])
def test_kept_pictures_are_the_pictures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = Vlm(*made(name))
    pictures = [make_picture(0, (96, 60)), make_picture(1, (60, 60))]
    texts = [vlm.prompt(QUESTION), vlm.prompt("no boat"), vlm.prompt("red fish ?"), vlm.prompt(QUESTION, 2)]
    shown = [[0], [1], [0], [1, 0]]
    if vlm.family is not None and vlm.family.same_num_pictures:
        texts, shown = [vlm.prompt(QUESTION, 2), vlm.prompt("no boat", 2)], [[0, 1], [1, 0]]
    plain = vlm.encode(texts, [[pictures[i] for i in row] for row in shown])
    positions = [[plain.text_len - 1]] * len(texts)
    expected, kept = vlm.read(plain, positions=positions), vlm.keep(pictures)
    if name != "internvl":
        monkeypatch.setattr(vlm.model, "encode_images", None)  # it has done that
    inputs = vlm.encode(texts, [[kept[i] for i in row] for row in shown])
    found = vlm.read(inputs, positions=positions)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for layer, weights in expected.rows.items():
        torch.testing.assert_close(found.rows[layer], weights, atol=1e-6, rtol=0)
    assert [[p.size for p in row] for row in inputs.pictures] == [[p.size for p in row] for row in plain.pictures]
    monkeypatch.undo()
    assert vlm.answers(inputs, 3) == vlm.answers(plain, 3)
    texts, shown = [vlm.prompt(QUESTION), vlm.prompt("no boat"), vlm.prompt("red fish ?")], [[0], [1], [0]]
    alike, three = (vlm.encode(texts, [[of[i]] for (i,) in shown]) for of in (pictures, kept))
    positions = [[three.text_len - 1]] * 3
    answers, asked = vlm.ask(three, positions=positions, max_new_tokens=2)
    assert answers == vlm.answers(alike, 2)
    for layer, weights in vlm.read(alike, positions=positions).rows.items():
        torch.testing.assert_close(asked.rows[layer], weights, atol=1e-5, rtol=0)


def test_the_packaged_model_is_seen_as_look_and_the_evaluation_see_it() -> None:
    model, processor = load_model("tiny", "cpu")
    vlm, picture, question = Vlm(model, processor), make_picture(0, (80, 64)), "is there a fish in the picture?"
    text = vlm.prompt(question)
    start = text.index("fish")
    (found,) = maps_of(vlm, text, [picture], [(start, start + 4)])
    seen = look(model, processor, picture, question)
    (word,) = [word for word in seen.words if word.word == "fish"]
    np.testing.assert_allclose(found.maps[0], word.map, atol=1e-6)
    assert found.null_mass == pytest.approx(word.null_mass, abs=1e-6)
    inputs = vlm.encode([text], [[picture]])
    assert vlm.answers(inputs)[0].text == seen.answer
    (reply,) = Asker(vlm, 1).ask([Prompt(0, "0", text, 1, (), 8)], [vlm.keep([picture])])
    assert vlm.yes_no(inputs)[0].p_yes == pytest.approx(reply.p_yes, abs=1e-6)


def test_text_before_a_picture_looks_at_nothing_in_cross_attention() -> None:
    for name in ("agevlm", "mllama"):
        vlm = Vlm(*made(name))
        text = f"is there a fish {vlm.processor.image_token} ?"
        inputs = vlm.encode([text], [[make_picture(0, (96, 60))]])
        start = inputs.sees_from[0]
        assert start > 2
        for weights in vlm.read(inputs, positions=[[start - 1, start]]).rows.values():
            assert not weights[0, :, 0].any()
            assert weights[0, :, 1].any()


def test_attention_that_does_not_come_by_falls_back_to_occlusion_and_says_so() -> None:
    vlm = Vlm(*made("llava"))
    vlm.family = replace(vlm.family, looking=lambda model: ())  # as if its layers did not use the interface
    text, picture = vlm.prompt(QUESTION), make_picture(0, (96, 60))
    inputs = vlm.encode([text], [[picture]])
    with pytest.raises(ValueError, match=r"AttentionInterface.*occlusion"):
        vlm.read(inputs, positions=[[3]])
    start = text.index("fish")
    (found,) = maps_of(vlm, text, [picture], [(start, start + 4)], grid=(2, 3))
    assert found is not None and found.kind == "occlusion" and "AttentionInterface" in (found.note or "")
    np.testing.assert_array_equal(found.maps[0], occlusion_map(vlm, text, [picture], grid=(2, 3)))


def test_occlusion_is_the_drop_of_the_answers_probability() -> None:
    vlm = Vlm(*made("agevlm"))
    text, picture = vlm.prompt(QUESTION), make_picture(0, (40, 40))
    dropped = occlusion_map(vlm, text, [picture], "yes", grid=(2, 2), batch_size=3)
    greyed = picture.copy()
    greyed.paste((127, 127, 127), (20, 0, 40, 20))
    before, after = (float(vlm.log_probs(vlm.encode([text], [[p]]), ["yes"])[0].exp()) for p in (picture, greyed))
    assert dropped.shape == (2, 2) and dropped[0, 1] == pytest.approx(before - after, abs=1e-6)
    assert abs(dropped).max() > 0


def test_rows_of_soft_capped_and_masked_attention_by_hand() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.rand(2, 1, 5, 5) > 0.3
    mask[..., 0] = True
    positions = torch.tensor([[4, 1], [2, -1]])
    logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.3
    whole = ((logits / 2.0).tanh() * 2.0).masked_fill(~mask, -torch.inf).softmax(-1)
    rows = rows_of(query, key, mask, positions, scaling=0.3, softcap=2.0)
    torch.testing.assert_close(rows[0], whole[0, :, [4, 1]])
    torch.testing.assert_close(rows[1, :, 0], whole[1, :, 2])
    assert not rows[1, :, 1].any()
    added = torch.zeros(2, 1, 5, 5).masked_fill(~mask, torch.finfo(torch.float32).min)
    torch.testing.assert_close(rows_of(query, key, added, positions, scaling=0.3, softcap=2.0), rows)
    causal = rows_of(query, key, None, positions, is_causal=True)
    assert not causal[0, :, 1, 2:].any() and causal[0, :, 0].all()


def test_a_conversation_tells_where_its_contents_stand() -> None:
    for name in ("llava", "paligemma", "agevlm"):
        vlm = Vlm(*made(name))
        messages = [Message("user", QUESTION, 1)]
        if name != "paligemma":
            messages += [Message("assistant", "yes"), Message("user", "how many ?")]
        chat = vlm.chat(messages)
        spans = zip(chat.content_starts, chat.content_ends, strict=True)
        assert [chat.text[a:b] for a, b in spans] == [message.content for message in messages]
        assert chat.text.count(vlm.processor.image_token) == 1
    with pytest.raises(ValueError, match="no chat template"):
        Vlm(*made("paligemma")).chat(messages)


def test_some_layers_are_read() -> None:
    vlm = Vlm(*made("llava"))
    inputs = vlm.encode([vlm.prompt(QUESTION)], [[make_picture()]])
    reading = vlm.read(inputs, positions=[[3]], layers=[2], projections=True)
    assert list(reading.rows) == list(reading.queries) == list(reading.keys) == [2]


def test_attention_with_a_bias_of_its_own_is_not_read_wrongly() -> None:
    module, states = torch.nn.Identity(), torch.randn(1, 2, 3, 4)
    with (
        pytest.raises(AttentionUnreadableError, match="Identity biases its attention"),
        watching(RowReader({module: 0}, torch.zeros(1, 1).long())),
    ):
        attend(module, states, states, states, None, position_bias=torch.zeros(1, 2, 3, 3))


@contextmanager
def watching(reader: RowReader) -> Iterator[None]:
    token = _READER.set(reader)
    try:
        yield
    finally:
        _READER.reset(token)


def test_what_a_reading_does_not_have_is_an_error() -> None:
    vlm = Vlm(*made("agevlm"))
    inputs = vlm.encode([vlm.prompt(QUESTION)], [[make_picture()]])
    reading = vlm.read(inputs, positions=[[3]])
    with pytest.raises(ValueError, match=r"layers \[0\] look at no picture: choose from \[1, 4\]"):
        attention_maps(inputs, reading, [[3]], [[[3]]], layers=[0])
    with pytest.raises(ValueError, match=r"no head \[4\]: the model has 4"):
        attention_maps(inputs, reading, [[3]], [[[3]]], heads=[4])
    with pytest.raises(ValueError, match=r"no hidden states \[7\]: the model has 0 to 6"):
        vlm.read(inputs, states=[7])


def test_bad_input_is_one_clear_line() -> None:
    from transformers import AutoModelForCausalLM

    model, processor = made("llava")
    text_model = AutoModelForCausalLM.from_config(make_text_config())
    bare = SimpleNamespace(tokenizer=processor.tokenizer, image_processor=processor.image_processor)
    with pytest.raises(ValueError, match=r"no image token.*AutoModelForImageTextToText"):
        Vlm(text_model, bare)
    with pytest.raises(ValueError, match="takes no pictures"):
        Vlm(model, processor.tokenizer)
    vlm = Vlm(model, processor)
    with pytest.raises(ValueError, match=r"2 texts and 1 lists of pictures"):
        vlm.encode(["a", "b"], [[]])
    with pytest.raises(ValueError, match=r"has \d+ tokens .* context takes 512"):
        vlm.encode(["fish " * 600], [[]])
    with pytest.raises(ValueError, match=r"tokens with those of its pictures, .* show fewer or smaller pictures"):
        vlm.encode([vlm.prompt(QUESTION, 9)], [[make_picture()] * 9])  # 64 tokens each
    ours = Vlm(*made("agevlm"))
    with pytest.raises(ValueError, match="keep them together"):
        ours.encode([ours.prompt(QUESTION)] * 2, [ours.keep([make_picture()]), ours.keep([make_picture()])])
    with pytest.raises(ValueError, match="has no token"):
        vlm.answer_ids("fish", "")
    template, vlm.processor.chat_template = vlm.processor.chat_template, None
    try:
        with pytest.raises(ValueError, match=r"no chat template: put one .* chat_template.jinja; .* the whole prompt"):
            vlm.prompt(QUESTION)
    finally:
        vlm.processor.chat_template = template


def test_facts_that_are_wrong_are_an_error_at_the_first_picture() -> None:
    vlm = Vlm(*made("llava"))
    vlm.family = replace(vlm.family, views=family_of(made("qwen2_vl")[0]).views)
    with pytest.raises(KeyError):
        vlm.encode([vlm.prompt(QUESTION)], [[make_picture()]])
    right = family_of(made("llava")[0]).views
    vlm.family = replace(vlm.family, views=lambda shown: [*right(shown), *right(shown)])
    with pytest.raises(ValueError, match=r"64 image tokens .* 'llava' give \[128\]: correct its entry"):
        vlm.encode([vlm.prompt(QUESTION)], [[make_picture()]])


def test_text_without_a_picture_is_read_too() -> None:
    for name in ("llava", "agevlm", "agevlm_concat", "qwen3_vl"):
        vlm = Vlm(*made(name))
        inputs = vlm.encode([vlm.prompt(QUESTION, 0)], [[]])
        assert inputs.pictures == ((),)
        assert vlm.read(inputs).logits.shape[:2] == (1, 1)
        assert vlm.answers(inputs, 2)


def test_the_guide_lists_the_families_and_its_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "vlms.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ((?:`\w+`(?:, )?)+) \|", guide, re.MULTILINE)
    listed = [kind for row in rows for kind in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(kind for family in FAMILIES for kind in family.model_types)
    model, processor = made("qwen2_vl")
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lambda name: model)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: processor)
    monkeypatch.setattr(Image, "open", lambda name: make_picture(0, (96, 60)))
    example = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[0]
    assert len(example.splitlines()) <= 12
    scope: dict[str, Any] = {}
    exec(example, scope)
    assert scope["cat"].kind == "attention" and scope["cat"].maps[0].shape == (4, 6)


def test_every_type_is_in_the_table_once_and_says_little() -> None:
    types = [kind for family in FAMILIES for kind in family.model_types]
    assert len(types) == len(set(types))
    longest = max(len(inspect.getsource(family.views).splitlines()) for family in FAMILIES)
    assert longest < 60


def test_words_of_equal_tokens_in_a_row_are_found_again() -> None:
    for name in ("llava", "idefics3", "paligemma", "qwen2_vl"):
        vlm = Vlm(*made(name))
        text = f"{vlm.processor.image_token} is there a wug wug wug or a fish fish ?"  # three unknown words: one token
        if name == "qwen2_vl":
            text = f"<|vision_start|>{text.replace(' is', '<|vision_end|> is', 1)}"
        inputs = vlm.encode([text], [[make_picture(0, (96, 60))]])
        ids = inputs.tensors["input_ids"][0].tolist()
        spans = [(text.index(word), text.index(word) + len(word)) for word in ("wug wug wug", "fish fish")]
        wug, fish = inputs.words_of(vlm.processor.tokenizer, 0, spans)
        assert len(wug) == 3 and len(fish) == 2
        assert [ids[place] for place in wug + fish] == vlm.processor.tokenizer.convert_tokens_to_ids(
            ["<unk>"] * 3 + ["fish"] * 2
        )


def test_text_tokens_are_laid_beside_a_row_with_repeated_ones() -> None:
    image, one, word = 9, 1, 5
    assert _places([image, one, one, word], [2, image, image, image, one, one, word, 3]) == {0: 1, 1: 4, 2: 5, 3: 6}
    assert _places([image, image, word, one], [image] * 6 + [7, 7, word, one, 3]) == {0: 0, 1: 1, 2: 8, 3: 9}


def test_log_probs_of_a_model_that_gives_logits_of_all_tokens() -> None:
    model, processor = made("llava")
    plain, all_tokens = Vlm(model, processor), Vlm(*tiny.llava())
    forward = all_tokens.model.forward
    all_tokens.model.forward = lambda *args, logits_to_keep=0, **kwargs: forward(*args, **kwargs)
    for vlm in (plain, all_tokens):
        inputs = vlm.encode([vlm.prompt(QUESTION), vlm.prompt("no boat")], [[make_picture()], [make_picture(1)]])
        assert vlm.read(inputs, num_logits=2).logits.shape[1] == 2
        (one, two) = vlm.log_probs(inputs, ["yes it is", "no"])
        if vlm is plain:
            expected = (one, two)
    torch.testing.assert_close((one, two), expected)


def test_positions_are_left_to_a_model_that_makes_them_itself() -> None:
    vlm = Vlm(*tiny.llava())
    forward, given = vlm.model.forward, []
    vlm.model.forward = lambda *args, **kwargs: given.append("position_ids" in kwargs) or forward(*args, **kwargs)
    inputs = vlm.encode([vlm.prompt(QUESTION)], [[make_picture()]])
    vlm.read(inputs)
    vlm.model.get_rope_index = lambda: None  # as that of Qwen2.5-Omni's thinker
    vlm.read(inputs)
    assert given == [True, False]


def test_rows_of_different_numbers_of_pictures_are_refused_where_they_change_each_other() -> None:
    for name in ("agevlm_concat", "mllama", "agevlm", "llava"):
        vlm = Vlm(*made(name))
        texts = [vlm.prompt(QUESTION, 2), vlm.prompt(QUESTION, 1)]
        pictures = [[make_picture(0, (96, 60)), make_picture(1)], [make_picture(2)]]
        if name in ("agevlm_concat", "mllama"):
            with pytest.raises(ValueError, match=rf"'{name}' take rows of equally many pictures .* have 2, 1: encode"):
                vlm.encode(texts, pictures)
        else:
            both = vlm.read(vlm.encode(texts, pictures)).logits
            alone = [vlm.read(vlm.encode([text], [row])).logits[0] for text, row in zip(texts, pictures, strict=True)]
            torch.testing.assert_close(both, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_greedy_answers_do_not_depend_on_generation_settings() -> None:
    vlm = Vlm(*tiny.llava())
    inputs = vlm.encode([vlm.prompt(QUESTION)], [[make_picture()]])
    ids: list[int] = []
    for _ in range(6):
        logits = vlm.read(inputs.answered([ids], vlm.family) if ids else inputs).logits[0, -1].clone()
        logits[vlm.image_token_id] = -torch.inf
        ids.append(int(logits.argmax()))
    settings = {
        "do_sample": True,
        "num_beams": 2,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "num_return_sequences": 2,
        "stop_strings": ["fish"],
        "begin_suppress_tokens": ids[:1],
        "min_new_tokens": 20,
        "guidance_scale": 3.0,
    }
    for name, value in settings.items():
        setattr(vlm.model.generation_config, name, value)
        assert list(vlm.answers(inputs, 6)[0].ids) == ids[: ids.index(2) if 2 in ids else 6], name


def test_what_a_model_does_not_take_names_the_pictures() -> None:
    vlm = Vlm(*tiny.llava())
    inputs = vlm.encode([vlm.prompt(QUESTION)], [[make_picture(0, (1, 3))]])

    def refusing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("split_with_sizes expects\nmore")

    vlm.model.model.language_model.forward = refusing
    said = r"the model does not take this: split_with_sizes expects more \(pictures of 1×3 pixels\)"
    for asked in (vlm.read, vlm.answers):
        with pytest.raises(ValueError, match=said):
            asked(inputs)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    vlm.model.model.language_model.forward = full
    with pytest.raises(torch.OutOfMemoryError):
        vlm.read(inputs)
    narrow = Vlm(*made("qwen2_vl"))
    with pytest.raises(ValueError, match=r"aspect ratio must be smaller than 200.* \(pictures of 2×900 pixels\)"):
        narrow.encode([narrow.prompt(QUESTION)], [[make_picture(0, (2, 900))]])


def test_log_probs_of_video_llama_3_are_those_of_its_own_pass() -> None:
    vlm = Vlm(*tiny.video_llama_3())
    inputs = vlm.encode([vlm.prompt(QUESTION)], [[make_picture(0, (64, 48))]])
    ids = vlm.answer_ids(inputs.texts[0], "yes it is")
    (found,) = vlm.log_probs(inputs, [ids])
    with torch.inference_mode():
        every = vlm.model(**inputs.answered([ids], None).tensors, use_cache=False).logits[0].float().log_softmax(-1)
    before = inputs.text_len - 1
    torch.testing.assert_close(found, torch.stack([every[before + place, token] for place, token in enumerate(ids)]))
