"""Object words are found, their maps are the model's own, and a cell is where it is in the picture."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_model, make_picture, make_processor

from agevlm.analysis.attention import look, object_words, save_maps, to_pixels, words_and_learned
from agevlm.data.chat import render_conversation
from agevlm.data.schema import Message
from agevlm.vlms import Vlm, attention_maps
from tests.vlms import tiny_families

from .fakes import hot_map, make_image, make_look

CATEGORIES = ["boat", "dog", "hot dog", "person", "knife", "wine glass", "ski", "skis", "sheep", "cup"]


def words(text: str, vocabulary: list[str] | None = None) -> list[str]:
    return [phrase for _, _, phrase in object_words(text, vocabulary)]


def test_words_of_a_vocabulary_are_whole_words_in_any_case() -> None:
    text = "Is there a BOAT near the boathouse or the Cup?"
    found = object_words(text, CATEGORIES)
    assert [(text[start:end], phrase) for start, end, phrase in found] == [("BOAT", "boat"), ("Cup", "cup")]


def test_the_longest_entry_wins() -> None:
    assert words("a hot dog and a dog", CATEGORIES) == ["hot dog", "dog"]


def test_plurals_give_the_entry() -> None:
    text = "two boats, three wine  glasses, knives, people and sheep"
    assert words(text, CATEGORIES) == ["boat", "wine glass", "knife", "person", "sheep"]


def test_an_entry_that_is_anothers_plural_stays_itself() -> None:
    assert words("skis and a ski", CATEGORIES) == ["skis", "ski"]


def test_without_a_vocabulary_content_words_are_found() -> None:
    assert words("How many red boats are there in the picture, and is the dog's tail left of 2 cups?") == [
        "red",
        "boats",
        "dog's",
        "tail",
        "cups",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("is there a background?", ["background"]),
        ("Are there any  colours in the picture?", ["colours"]),
        ("do you see a can of soup?", ["can", "soup"]),
        ("can you see an image on the wall?", ["image", "wall"]),
        ("is there a left shoe or any other dog?", ["shoe", "dog"]),
        ("is there a lot of rust? are there any in the picture?", ["rust"]),
        ("what is in the background of a picture?", []),
    ],
)
def test_what_is_asked_for_is_an_object_word(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_learned_words_are_found_whatever_they_are() -> None:
    known = ["picture", "top", "stop sign"]
    text = "is the top left of the dog in the picture? a picture, the middle and two stop signs"
    found = [(phrase, learned) for (_, _, phrase), learned in words_and_learned(text, known=known)]
    picture, sign = ("picture", True), [("stop", True), ("signs", True)]
    assert found == [("top", True), ("dog", False), picture, *sign]
    assert [phrase for phrase, _ in found if phrase in words(text)] == ["dog", "stop", "signs"]
    assert words_and_learned("describe the picture. what is in a picture?", known=known) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("is there a dog-house?", {"dog-house": False}),
        ("is there a hot-dog or a boat-like T-shirt?", {"hot-dog": False, "boat-like": False, "t-shirt": True}),
        ("a dog--not a boat - or two T-shirts", {"dog": True, "boat": True, "t-shirts": True}),
    ],
)
def test_a_part_of_a_word_with_hyphens_is_not_learned(text: str, found: dict[str, bool]) -> None:
    known = ["dog", "boat", "T-shirt"]
    assert {phrase: learned for (_, _, phrase), learned in words_and_learned(text, known=known)} == found
    assert words("a dog-house", CATEGORIES) == []


def test_a_look_says_which_words_were_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_model(), make_processor()
    question = "is there a background left of the boat in the picture ?"
    assert look(model, processor, make_picture(), question, max_new_tokens=1).words[0].learned is None
    monkeypatch.setattr(model.config, "known_words", ["boat", "picture"])
    seen = look(model, processor, make_picture(), question, max_new_tokens=1)
    learned = [(word.word, word.learned) for word in seen.words if word.where == "question"]
    assert learned == [("background", False), ("boat", True)]
    assert seen.unlearned == ("background",)


@pytest.mark.parametrize("vocabulary", [[], ["", " "]])
def test_an_empty_vocabulary_finds_nothing(vocabulary: list[str]) -> None:
    assert object_words("a boat", vocabulary) == []


def test_spaces_in_a_vocabulary_do_not_matter() -> None:
    found = object_words("a cup, two cups, a dining table", [" cup ", "Dining  Table"])
    assert found == [(2, 5, " cup "), (11, 15, " cup "), (19, 31, "Dining  Table")]


def test_a_hot_cell_lands_in_its_place_of_a_wide_picture() -> None:
    pixels = to_pixels(hot_map(1, 3), (120, 400))
    assert pixels.shape == (120, 400)
    y, x = np.unravel_index(pixels.argmax(), pixels.shape)
    assert (30 <= y < 60) and (300 <= x < 400)
    assert pixels[44:46, 349:351] == pytest.approx(1.0, abs=0.03)  # the centre of the cell keeps the cell's value
    assert pixels[:10].max() == 0 and pixels[:, :240].max() == 0


def test_nearest_keeps_cells() -> None:
    pixels = to_pixels(hot_map(0, 1, (2, 2)), (6, 10), "nearest")
    expected = np.zeros((6, 10), dtype=np.float32)
    expected[:3, 5:] = 1
    np.testing.assert_array_equal(pixels, expected)


def test_bilinear_is_torchs_with_cell_centres() -> None:
    attention = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    options: dict[str, Any] = {"size": (64, 90), "mode": "bilinear", "align_corners": False}
    expected = torch.nn.functional.interpolate(torch.from_numpy(attention)[None, None], **options)[0, 0].numpy()
    np.testing.assert_allclose(to_pixels(attention, (64, 90)), expected, atol=1e-5)


def test_to_pixels_refuses_other_modes_and_shapes() -> None:
    with pytest.raises(ValueError, match="bilinear"):
        to_pixels(hot_map(0, 0), (8, 8), "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(h, w\)"):
        to_pixels(np.zeros((1, 2, 2), dtype=np.float32), (8, 8))


@pytest.mark.parametrize("null_token", [False, True])
def test_look_gives_the_weights_of_each_words_tokens(null_token: bool) -> None:
    model, processor = make_model(null_token=null_token), make_processor()
    question = "is the fish left of the boat ?"
    seen = look(model, processor, make_picture(), question, vocabulary=["fish", "boat", "house"], max_new_tokens=5)
    prompt = processor(text=[f"user: <image>{question}\nassistant:"], images=[[make_picture()]], return_tensors="pt")
    output = model.generate(
        **prompt, max_new_tokens=5, do_sample=False, output_attention_maps=True, return_dict_in_generate=True
    )
    maps = torch.stack([layer[0, :, :, 0] for layer in output.attention_maps]).mean(dim=(0, 1))
    ids = output.sequences[0].tolist()
    asked = [word for word in seen.words if word.where == "question"]
    assert [(word.word, question[word.start : word.end]) for word in asked] == [("fish", "fish"), ("boat", "boat")]
    for word in asked:
        position = ids.index(processor.tokenizer.convert_tokens_to_ids(word.word))
        np.testing.assert_allclose(word.map, maps[position].numpy(), rtol=1e-5)
        total = word.mass + (word.null_mass or 0.0)
        assert total == pytest.approx(1, abs=1e-4)
        assert (word.null_mass is not None) == null_token
    assert seen.grid == (4, 4)


def test_a_question_goes_on_from_the_messages_before_it() -> None:
    model, processor = make_model(), make_processor()
    before = (Message("user", "is there a boat ?", num_images=1), Message("assistant", "no"))
    seen = look(model, processor, make_picture(), "a fish ?", before=before, vocabulary=["fish", "boat"])
    chat = render_conversation(processor, [*before, Message("user", "a fish ?")], add_generation_prompt=True)
    prompt = processor(text=[chat.text], images=[[make_picture()]], return_tensors="pt", add_special_tokens=False)
    output = model(**prompt, output_attention_maps=True)
    (word,) = (word for word in seen.words if word.where == "question")
    position = prompt["input_ids"][0].tolist().index(processor.tokenizer.convert_tokens_to_ids("fish"))
    maps = torch.stack([layer[0, :, position, 0] for layer in output.attention_maps]).mean(dim=(0, 1))
    np.testing.assert_allclose(word.map, maps.detach().numpy(), rtol=1e-4)


def test_words_of_the_answer_are_read_at_their_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_model(), make_processor()
    said = processor.tokenizer.convert_tokens_to_ids(["no", "red", "fish", "<eos>"])
    real = type(model).forward

    @functools.wraps(real)
    def forward(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        output = real(self, input_ids, *args, **kwargs)
        if kwargs.get("use_cache") is not False:  # a pass of the answer, not the one that reads its words
            output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(said[next(count)]), output.logits.shape[-1])
        return output

    count = iter(range(9))
    monkeypatch.setattr(type(model), "forward", forward)
    monkeypatch.setattr(model.generation_config, "eos_token_id", said[-1])
    seen = look(model, processor, make_picture(), "what is in the picture ?", vocabulary=["fish"], max_new_tokens=9)
    assert seen.answer == "no red fish"
    (word,) = seen.words
    assert (word.where, seen.answer[word.start : word.end]) == ("answer", "fish")
    assert word.map.sum() == pytest.approx(1, abs=1e-4)


def test_an_answer_without_a_word_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_model(), make_processor()
    every_token = list(range(model.config.text_config.vocab_size))
    monkeypatch.setattr(model.generation_config, "eos_token_id", every_token)
    seen = look(model, processor, make_picture(), "is there a fish ?", vocabulary=["fish"])
    assert seen.answer == ""
    assert [(word.where, word.word) for word in seen.words] == [("question", "fish")]


def test_layers_and_heads_can_be_chosen() -> None:
    model, processor = make_model(), make_processor()
    question = "is there a boat ?"

    def one(**options: Any) -> np.ndarray:
        options = {"vocabulary": ["boat"], "max_new_tokens": 1, **options}
        return look(model, processor, make_picture(), question, **options).words[0].map

    looking = list(model.config.cross_attention_layers)  # numbered in the whole stack, as a diagnosis does
    each = [one(layers=[layer]) for layer in looking]
    np.testing.assert_allclose(np.mean(each, axis=0), one(), rtol=1e-4)
    assert not np.allclose(one(heads=[0]), one(heads=[1]))
    assert 0 not in looking
    names = ", ".join(map(str, looking))
    with pytest.raises(ValueError, match=rf"there is no layer \[0\] that looks at pictures: choose from {names}$"):
        one(layers=[0, looking[0]])
    with pytest.raises(ValueError, match="numbered from 0"):
        one(heads=[-1])
    other, processor = tiny_families.made("llava")
    with pytest.raises(ValueError, match=r"there is no layer \[3\] that looks at pictures: choose from 0 to 2$"):
        look(other, processor, make_picture(), question, layers=[3])


def test_a_layer_has_the_number_that_a_diagnosis_gives_it() -> None:
    model, processor = make_model(), make_processor()
    vlm, picture, question = Vlm(model, processor), make_picture(), "is there a boat ?"
    inputs = vlm.encode([vlm.prompt(question)], [[picture]])
    start = inputs.texts[0].index("boat")
    tokens = inputs.tokens_of(processor.tokenizer, 0, start, start + len("boat"))
    reading = vlm.read(inputs, positions=[tokens])
    assert list(reading.rows) == list(vlm.looking)
    for layer in reading.rows:
        ((seen,),) = attention_maps(inputs, reading, [tokens], [[tokens]], layers=[layer], of_pictures=True)
        assert seen is not None
        (word, *_) = look(model, processor, picture, question, layers=[layer], max_new_tokens=1).words
        np.testing.assert_allclose(word.map, seen.maps[0], atol=1e-6)


def test_a_question_needs_text_and_a_picture_must_be_one(tmp_path: Path) -> None:
    model, processor = make_model(), make_processor()
    with pytest.raises(ValueError, match="no text"):
        look(model, processor, make_picture(), "  \n")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        look(model, processor, broken, "is there a boat ?")


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("a" * 100_000, "the question has 100000 characters, the most are 20000"),
        ("is there a <image> ?", "the question says <image>, and the picture is shown without it"),
        ("is there a \ud83d ?", "halves of letters"),
    ],
)
def test_questions_that_no_model_can_be_asked_are_refused_at_once(question: str, fault: str) -> None:
    model, processor = make_model(), make_processor()
    started = time.monotonic()
    with pytest.raises(ValueError, match=fault):
        look(model, processor, make_picture(), question)
    assert time.monotonic() - started < 10


def test_a_picture_may_be_a_file_of_any_shape(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    make_image(90, 30).save(path)
    model, processor = make_model(), make_processor()
    seen = [look(model, processor, given, "a boat ?", max_new_tokens=1) for given in (path, Image.open(path))]
    np.testing.assert_array_equal(seen[0].words[0].map, seen[1].words[0].map)


def test_saved_maps_come_back_without_pickles(tmp_path: Path) -> None:
    seen = make_look()
    path = save_maps(seen, tmp_path / "maps.npz")
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["maps"], [word.map for word in seen.words])
        assert list(arrays["words"]) == ["boat", "fish", "boat"]
        assert arrays["spans"].tolist() == [[word.start, word.end] for word in seen.words]
        assert str(arrays["answer"]) == "no boat"
