"""The runner asks any vision-language model of transformers, in its own words, and says what it cannot measure."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import agevlm
from agevlm.data.images import open_image
from agevlm.data.schema import ImageSource, Message, Sample
from agevlm.evaluation.runner import evaluate
from agevlm.vlms import Vlm, noised
from tests.vlms import tiny_families

FAMILIES = ("llava", "qwen2_vl", "paligemma", "mllama")


def presence(samples: list[Sample]) -> list[Sample]:
    return [
        replace(sample, conversations=tuple(c for c in sample.conversations if c.kind == "pope.random")[:2])
        for sample in samples[:2]
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_and_probabilities_are_those_of_the_room(name: str, samples: list[Sample]) -> None:
    vlm, asked = Vlm(*tiny_families.made(name)), presence(samples)
    found = evaluate(vlm.model, vlm.processor, asked, batch_size=3)
    assert found.note is None
    for sample in asked:
        for conversation in sample.conversations:
            text = vlm.prompt(conversation.messages[0].content)
            inputs = vlm.encode([text], [[open_image(sample.images[0])]])
            (prediction,) = [p for p in found.predictions if p.question.id == conversation.id]
            assert prediction.answer == vlm.answers(inputs, 8)[0].text
            assert prediction.p_yes == pytest.approx(vlm.yes_no(inputs)[0].p_yes, abs=1e-5)
            (word,) = found.words[conversation.id]
            assert word.null_mass is None
            assert (word.where is not None) == conversation.groundings[0].present
    assert found.metrics["pointing"]["num_words"] > 0


def test_a_conversation_of_several_turns_is_written_by_the_models_template(samples: list[Sample]) -> None:
    vlm, (sample, _) = Vlm(*tiny_families.made("llava")), presence(samples)
    first, second = sample.conversations
    turns = (*first.messages, replace(second.messages[0], num_images=0), second.messages[1])
    words = tuple(replace(word, message=2) for word in second.groundings)
    both = replace(first, id="both", messages=turns, groundings=words)
    found = evaluate(vlm.model, vlm.processor, [replace(sample, conversations=(both,))])
    text = vlm.chat([Message(m.role, m.content, m.num_images) for m in turns[:-1]]).text
    assert text.count("user :") == 2
    inputs = vlm.encode([text], [[open_image(sample.images[0])]])
    assert found.predictions[0].answer == vlm.answers(inputs, 8)[0].text
    assert len(found.words["both"]) == 1


def test_a_family_that_is_not_known_is_scored_without_its_words(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_families.made("llava")
    known = evaluate(model, processor, presence(samples))
    monkeypatch.setattr("agevlm.vlms.vlm.family_of", lambda model: None)
    found = evaluate(model, processor, presence(samples))
    assert [p.answer for p in found.predictions] == [p.answer for p in known.predictions]
    assert found.note is not None
    assert "'llava' are not known" in found.note
    assert "pointing" not in found.metrics
    assert not any(found.words.values())


@pytest.mark.parametrize(("template", "left_out"), [(True, []), (False, ["text perplexity"])])
def test_the_front_door_measures_another_family_and_says_what_is_left_out(
    tmp_path: Path, template: bool, left_out: list[str]
) -> None:
    model, processor = tiny_families.made("llava" if template else "paligemma")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    metrics: dict[str, Any] = agevlm.evaluate(tmp_path / "model", out=tmp_path / "out", num_images=1)
    assert metrics["pope"]["random"]["num_questions"] > 0
    assert [reason.partition(":")[0] for reason in metrics["provenance"].get("left_out", [])] == left_out
    assert ("after" in metrics["text_perplexity"]) is template


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "agevlm"])
def test_a_picture_of_one_pixel_is_asked_about(name: str, samples: list[Sample]) -> None:
    import io

    from PIL import Image

    model, processor = tiny_families.made(name)
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (200, 0, 0)).save(file, "PNG")
    (sample, *_), source = presence(samples), ImageSource("dot", 1, 1, data=file.getvalue())
    bare = tuple(replace(c, groundings=()) for c in sample.conversations)
    found = evaluate(model, processor, [replace(sample, images=(source,), conversations=bare)])
    assert len(found.predictions) == len(bare)


def test_a_picture_that_a_model_does_not_take_is_named_with_its_question(samples: list[Sample]) -> None:
    import io

    from PIL import Image

    model, processor = tiny_families.made("qwen2_vl")
    file = io.BytesIO()
    Image.new("RGB", (1, 300), (200, 0, 0)).save(file, "PNG")
    (first, *others), source = presence(samples), ImageSource("thin", 300, 1, data=file.getvalue())
    bare = tuple(replace(c, groundings=()) for c in first.conversations)
    asked = [*others, replace(first, images=(source,), conversations=bare)]
    question = re.escape(repr(bare[0].messages[0].content))
    said = rf"^sample {first.id}, {question}: absolute aspect ratio must .* \(pictures of 1×300 pixels\)$"
    with pytest.raises(ValueError, match=said):
        evaluate(model, processor, asked)


def test_an_answer_without_yes_or_no_is_counted(samples: list[Sample]) -> None:
    model, processor = tiny_families.made("llava")
    found = evaluate(model, processor, presence(samples))
    unparsed = [p for p in found.predictions if p.parsed is None]
    assert unparsed, "this model answers with random words"
    assert found.metrics["pope"]["random"]["unparsed_ratio"] == len(unparsed) / len(found.predictions)
    assert not any(p.correct for p in unparsed)


def test_a_processor_without_a_chat_template_is_one_clear_line(samples: list[Sample]) -> None:
    model, processor = tiny_families.made("llava")
    silent = copy.copy(processor)
    silent.chat_template = None
    with pytest.raises(ValueError, match="the processor of 'llava' has no chat template: put one into the model's"):
        evaluate(model, silent, presence(samples))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama", "agevlm", "agevlm_concat"])
def test_contrastive_decoding_is_that_of_its_formula(name: str, samples: list[Sample]) -> None:
    vlm, asked = Vlm(*tiny_families.made(name)), presence(samples)[:1]
    found = evaluate(vlm.model, vlm.processor, asked, answering="vcd")
    plain = evaluate(vlm.model, vlm.processor, asked)
    picture = open_image(asked[0].images[0])
    for conversation in asked[0].conversations:
        text = vlm.prompt(conversation.messages[0].content)
        own, noisy = vlm.encode([text], [[picture]]), vlm.encode([text], [[noised(picture)]])
        said: list[int] = []
        for step in range(8):
            one, two = (
                vlm.read(inputs.answered([said], vlm.family) if said else inputs).logits[0, -1]
                for inputs in (own, noisy)
            )
            one = one.clone()
            one[vlm._suppressed] = -torch.inf
            kept = one.softmax(-1) >= 0.1 * one.softmax(-1).max()
            logits = (2 * one - two).masked_fill(~kept, -torch.inf)
            if step == 0:
                p_yes = vlm.yes_no(own, logits[None])[0].p_yes
            said.append(int(logits.argmax()))
            if said[-1] in vlm.end_ids:
                break
        (prediction,) = [p for p in found.predictions if p.question.id == conversation.id]
        assert prediction.p_yes == pytest.approx(p_yes, abs=1e-4)
        ids = [token for token in said if token not in vlm.end_ids]
        assert prediction.answer == vlm.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert found.words == plain.words
    with pytest.raises(ValueError, match=r"no way to answer 'loud': choose one of plain, vcd, pai, vicrop, mask"):
        evaluate(vlm.model, vlm.processor, asked, answering="loud")


@pytest.mark.parametrize("name", ["llava", "mllama", "agevlm", "agevlm_concat"])
def test_every_way_to_answer_is_asked_in_batches_of_any_size(name: str, samples: list[Sample]) -> None:
    model, processor = tiny_families.made(name)
    asked = presence(samples)
    plain = evaluate(model, processor, asked)
    for way in ("pai", "vicrop", "mask"):
        found, alone = (evaluate(model, processor, asked, answering=way, batch_size=size) for size in (None, 1))
        for one, two in zip(found.predictions, alone.predictions, strict=True):
            assert one.p_yes == pytest.approx(two.p_yes, abs=1e-4)
        moved = [abs(a.p_yes - b.p_yes) for a, b in zip(found.predictions, plain.predictions, strict=True)]
        assert max(moved) > 1e-6, way
        if way == "vicrop":
            assert found.note is not None and "where its words look is not measured" in found.note
        else:
            assert found.note is None and found.words.keys() == plain.words.keys()


def test_a_mask_steers_only_questions_that_have_one(samples: list[Sample]) -> None:
    model, processor = tiny_families.made("llava")
    asked = presence(samples)
    plain, found = (evaluate(model, processor, asked, answering=way) for way in ("plain", "mask"))
    for sample in asked:
        for conversation in sample.conversations:
            one, two = (
                next(p.p_yes for p in e.predictions if p.question.id == conversation.id) for e in (plain, found)
            )
            assert one is not None and two is not None
            assert (abs(one - two) > 1e-5) == bool(conversation.groundings[0].present)
    bare = [replace(s, conversations=tuple(replace(c, groundings=()) for c in s.conversations)) for s in asked]
    with pytest.raises(ValueError, match=r"needs masks of what is asked, and these questions have none"):
        evaluate(model, processor, bare, answering="mask")
