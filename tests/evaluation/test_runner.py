"""The runner on a tiny random model: independent of batches, equal to generate, honest in its records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agevlm.data.chat import render_conversation
from agevlm.data.images import open_image
from agevlm.data.masks import union_mask
from agevlm.data.schema import Conversation, Message, Sample
from agevlm.evaluation import runner
from agevlm.evaluation.localisation import localise, map_entropy
from agevlm.evaluation.results import Evaluation, metrics_table, provenance, write_evaluation
from agevlm.evaluation.runner import evaluate
from agevlm.vlms import Vlm
from agevlm.vlms.vlm import NO, YES

from .conftest import tiny_model


@pytest.fixture(scope="module")
def evaluation(model: Any, processor: Any, samples: list[Sample]) -> Evaluation:
    return evaluate(model, processor, samples, batch_size=3)


@pytest.mark.parametrize("batch_size", [1, 8, 512])
def test_scores_do_not_depend_on_batch_size(
    model: Any, processor: Any, samples: list[Sample], evaluation: Evaluation, batch_size: int
) -> None:
    other = evaluate(model, processor, samples, batch_size=batch_size)
    answers = [prediction.answer for prediction in evaluation.predictions]
    assert [prediction.answer for prediction in other.predictions] == answers
    assert len(set(answers)) > 3, "a model that always says the same tests nothing"
    assert _same(evaluation, other)


def test_scores_do_not_depend_on_image_blocks(
    model: Any, processor: Any, samples: list[Sample], evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "IMAGES_AT_ONCE", 2)
    calls: list[tuple[int, int]] = []
    other = evaluate(model, processor, samples, progress=lambda done, total: calls.append((done, total)))
    assert _same(evaluation, other)
    assert calls == [(2, 5), (4, 5), (5, 5)]


def _same(one: Evaluation, two: Evaluation) -> bool:
    """Equal records, floats up to rounding."""
    return all(_equal(a, b) for a, b in zip(one.records(), two.records(), strict=True))


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_equal(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(_equal, one, two))
    return abs(one - two) < 1e-4 if isinstance(one, float) else one == two


def test_answers_are_those_of_generate(
    model: Any, processor: Any, samples: list[Sample], evaluation: Evaluation
) -> None:
    answers = {prediction.question.id: prediction.answer for prediction in evaluation.predictions}
    sample = samples[1]
    pixels = processor.image_processor([open_image(sample.images[0])], return_tensors="pt")["pixel_values"]
    for conversation in sample.conversations[:6]:
        chat = render_conversation(processor, conversation.messages[:-1], add_generation_prompt=True)
        inputs = processor.tokenizer(chat.text, add_special_tokens=False, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        said = model.generate(**inputs, pixel_values=pixels, max_new_tokens=8, do_sample=False)
        text = processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answers[conversation.id] == text.strip()


def test_maps_and_p_yes_are_those_of_a_plain_forward(
    model: Any, processor: Any, samples: list[Sample], evaluation: Evaluation
) -> None:
    sample = samples[2]
    conversation = next(c for c in sample.conversations if c.kind == "pope.random")
    chat = render_conversation(processor, conversation.messages[:-1], add_generation_prompt=True)
    inputs = processor.tokenizer(chat.text, add_special_tokens=False, return_tensors="pt", return_offsets_mapping=True)
    pixels = processor.image_processor([open_image(sample.images[0])], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(input_ids=inputs["input_ids"], pixel_values=pixels, output_attention_maps=True)
    word = conversation.groundings[0]
    start, end = chat.content_starts[0] + word.start, chat.content_starts[0] + word.end
    tokens = [t for t, (a, b) in enumerate(inputs["offset_mapping"][0].tolist()) if a < end and b > start]
    map_hw = np.mean([layer[0, :, tokens, 0].numpy() for layer in output.attention_maps], axis=(0, 1, 2))
    null = np.mean([layer[0, :, tokens].numpy() for layer in output.null_attention])
    seen = evaluation.words[conversation.id][0]
    where = localise(map_hw, union_mask(word.masks))
    assert seen.where is not None
    assert (seen.where.pointing, seen.where.strict, seen.where.iou) == (where.pointing, where.strict, where.iou)
    assert (seen.where.mass, seen.where.share_mass) == pytest.approx((where.mass, where.share_mass), abs=1e-5)
    assert seen.null_mass == pytest.approx(float(null), abs=1e-5)
    assert seen.entropy == pytest.approx(map_entropy(map_hw), abs=1e-4)
    assert map_hw.sum() + null == pytest.approx(1, abs=1e-5)
    shares = output.logits[0, -1].softmax(-1)
    yes, no = (_first_tokens(processor.tokenizer, chat.text, words) for words in (YES, NO))
    yes, no = (float(shares[sorted(ids)].sum()) for ids in (yes - no, no - yes))
    prediction = next(p for p in evaluation.predictions if p.question.id == conversation.id)
    assert prediction.p_yes == pytest.approx(yes / (yes + no), abs=1e-5)


def _first_tokens(tokenizer: Any, text: str, words: tuple[str, ...]) -> set[int]:
    length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {tokenizer(text + word, add_special_tokens=False)["input_ids"][length] for word in words}


def test_present_words_are_localised_and_absent_ones_are_not(evaluation: Evaluation) -> None:
    for prediction in evaluation.predictions:
        words = evaluation.words[prediction.question.id]
        if prediction.question.kind.startswith("pope"):
            assert [word.where is not None for word in words] == [prediction.expected == "yes"]
        for word in words:
            assert word.null_mass is not None
            assert word.entropy is not None and 0 <= word.entropy <= 1
            if word.where:
                assert 0 <= word.where.mass <= 1 - word.null_mass + 1e-5
    assert set(evaluation.metrics) >= {"pope", "pointing", "attention", "null_token"}
    assert {"random", "popular", "adversarial", "mean"} <= set(evaluation.metrics["pope"])


def test_shared_positive_questions_are_asked_once(
    model: Any, processor: Any, samples: list[Sample], evaluation: Evaluation
) -> None:
    asked, prompts = runner.questions_of(Vlm(model, processor), samples)
    assert len(prompts) < len(asked) == len(evaluation.predictions)
    words = {word for item in asked for word in map(id, evaluation.words[item.question.id]) if word}
    counted = sum(
        word.where is not None
        for found in {i.key: evaluation.words[i.question.id] for i in asked}.values()
        for word in found
    )
    assert words
    assert evaluation.metrics["pointing"]["num_words"] == counted


def test_without_null_token_and_without_picture(processor: Any, samples: list[Sample]) -> None:
    blind = tuple(
        replace(c, id="blind/" + c.id, messages=tuple(replace(m, num_images=0) for m in c.messages), groundings=())
        for c in samples[0].conversations
    )
    mixed = [samples[0], Sample("blind", samples[0].images, blind)]
    evaluation = evaluate(tiny_model(processor, null_token=False), processor, mixed, batch_size=4)
    assert "null_token" not in evaluation.metrics
    assert "pointing" in evaluation.metrics
    assert evaluation.words["blind/" + samples[0].conversations[0].id] == []


def test_model_is_left_as_it_came(model: Any, processor: Any, samples: list[Sample]) -> None:
    model.train()
    evaluate(model, processor, samples[:1])
    assert model.training
    model.eval()


def test_wrong_benchmarks_are_errors(model: Any, processor: Any, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="asks nothing: 1 samples without questions"):
        evaluate(model, processor, [Sample("x", samples[0].images)])
    twice = replace(samples[1], conversations=samples[0].conversations)
    with pytest.raises(ValueError, match="unique"):
        evaluate(model, processor, [samples[0], twice])
    with pytest.raises(ValueError, match="unknown yes/no parser"):
        evaluate(model, processor, samples[:1], parser="loose")
    first = samples[0].conversations[0]
    open_ended = replace(first, messages=(Message("user", first.messages[0].content, 1),))
    with pytest.raises(ValueError, match=f"{first.id} does not end with an assistant"):
        evaluate(model, processor, [replace(samples[0], conversations=(open_ended,))])


def test_files(evaluation: Evaluation, tmp_path: Path) -> None:
    metrics = {**evaluation.metrics, "provenance": provenance(seed=3, num_questions=len(evaluation.predictions))}
    write_evaluation(tmp_path / "out", evaluation.records(), metrics)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == [p.question.id for p in evaluation.predictions]
    assert set(records[0]) >= {
        "image",
        "kind",
        "question",
        "answer",
        "reference",
        "parsed",
        "correct",
        "p_yes",
        "words",
    }
    assert all({"null_mass", "entropy"} <= word.keys() for record in records for word in record["words"])
    read = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps(metrics))
    assert read["provenance"]["versions"]["torch"]
    table = (tmp_path / "out" / "metrics.md").read_text(encoding="utf-8")
    assert table == metrics_table(metrics)
    assert "| pope.adversarial |" in table
    assert "| pointing.accuracy |" in table


def test_two_pictures_in_one_question(model: Any, processor: Any, samples: list[Sample]) -> None:
    one, two = (next(c for c in s.conversations if c.kind == "pope.random") for s in samples[:2])
    word = two.groundings[0]
    question = Message("user", one.messages[0].content + " and in the second, " + two.messages[0].content, num_images=2)
    shift = len(question.content) - len(two.messages[0].content)
    second = replace(word, start=shift + word.start, end=shift + word.end, image=1)
    both = Conversation("both", "pope.random", (question, two.messages[1]), (one.groundings[0], second))
    sample = Sample("pair", (samples[0].images[0], samples[1].images[0]), (both,))
    alone = evaluate(model, processor, [sample])
    mixed = evaluate(model, processor, [samples[2], sample, samples[3]], batch_size=5)
    assert _equal(next(alone.records()), next(record for record in mixed.records() if record["id"] == "both"))
    masses = [found.where.mass for found in alone.words["both"] if found.where]
    assert len(masses) == 2
    assert all(0 < mass < 1 for mass in masses)
    swapped = evaluate(model, processor, [replace(sample, images=sample.images[::-1])])
    assert not _equal(next(alone.records()), next(swapped.records()))
