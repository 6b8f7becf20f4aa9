"""The similarity analysis: its pairs, the tensors it reads in both networks, its figures, and what may not matter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY_SIZE
from tiny_runs import make_foundation

from agevlm import AgeVlmForConditionalGeneration, ConcatVlmForConditionalGeneration
from agevlm.analysis.charts import PairHistogram, pair_histograms, similarity_figure
from agevlm.analysis.similarity import Similarity, similarity, similarity_of_benchmark, write_similarity
from agevlm.analysis.similarity_measures import (
    CAPTION_GAIN,
    CAPTION_LIKELIHOOD,
    HIDDEN_MEAN,
    MEASURES,
    QUERY_KEY_COSINE,
    QUERY_KEY_LOGIT,
    Scores,
    hidden_similarity,
    overlap,
    query_key_similarity,
)
from agevlm.analysis.similarity_pairs import object_words, pair_captions
from agevlm.analysis.similarity_states import LayerStates, read_pass, states_of
from agevlm.data.chat import tokenise_conversation
from agevlm.data.images import open_image
from agevlm.data.scenes import WorldSpec
from agevlm.data.schema import Conversation, Grounding, ImageSource, Message, Sample
from agevlm.evaluation.benchmarks import Settings
from agevlm.evaluation.scenes import captioned_scenes
from agevlm.modeling.processing_agevlm import AgeVlmProcessor
from agevlm.vlms import Vlm

NUM_PAIRS = 9
IMAGE = VOCABULARY_SIZE


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_foundation(tmp_path_factory.mktemp("foundation"))


@pytest.fixture(scope="module")
def processor(foundation: Path) -> AgeVlmProcessor:
    return AgeVlmProcessor.from_backbones(foundation / "llama", foundation / "convnext")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return captioned_scenes(WorldSpec(max_objects=3), 0, NUM_PAIRS)


def join(network: type[Any], foundation: Path, processor: AgeVlmProcessor, gate: float = 0.8, **fields: Any) -> Any:
    torch.manual_seed(0)
    model = network.from_backbones(
        foundation / "llama", foundation / "convnext", image_token_id=processor.image_token_id, **fields
    )
    for layer in getattr(model, "cross_attention", ()):
        torch.nn.init.constant_(layer.attn_gate, gate)
        torch.nn.init.constant_(layer.mlp_gate, gate)
    return model


@pytest.fixture(scope="module", params=["cross_attention", "concat"])
def model(request: pytest.FixtureRequest, foundation: Path, processor: AgeVlmProcessor) -> Any:
    if request.param == "concat":
        return join(ConcatVlmForConditionalGeneration, foundation, processor)
    return join(AgeVlmForConditionalGeneration, foundation, processor, null_token=True)


@pytest.fixture(scope="module")
def found(model: Any, processor: AgeVlmProcessor, samples: list[Sample]) -> Similarity:
    return similarity(model, processor, samples, batch_size=4)


# ------------------------------------------------------------------------------------------------------------- pairs


def caption_of(name: str, *things: str) -> Sample:
    """A sample whose caption names things."""
    text = " ".join(things)
    words, at = [], 0
    for thing in things:
        words.append(Grounding(1, at, at + len(thing), thing, present=None))
        at += len(thing) + 1
    messages = (Message("user", "describe", num_images=1), Message("assistant", text))
    return Sample(name, (ImageSource(name, 1, 1),), (Conversation(name, "caption", messages, tuple(words)),))


def test_every_picture_and_caption_stands_in_one_pair_of_each_kind(samples: list[Sample]) -> None:
    pairs = pair_captions(samples, seed=3)
    assert sorted(pairs.others) == list(range(NUM_PAIRS))
    assert (pairs.others != np.arange(NUM_PAIRS)).all()
    assert (pair_captions(samples, seed=3).others == pairs.others).all()
    assert any((pair_captions(samples, seed=seed).others != pairs.others).any() for seed in (4, 5))


@pytest.mark.parametrize("seed", range(8))
def test_mismatched_captions_are_false_of_their_picture_where_they_can_be(seed: int) -> None:
    samples = [caption_of(str(number), *things) for number, things in enumerate([("Fish",), ("boats", "cup")] * 5)]
    assert pair_captions(samples, seed).num_maybe_true == 0
    samples[0] = caption_of("0", "fish", "boat", "cup")  # whatever is said is true of picture 0
    pairs = pair_captions(samples, seed)
    named = [{word.phrase.lower().rstrip("s") for word in object_words(s.conversations[0])} for s in pairs.samples]
    maybe_true = [named[caption] <= named[picture] for caption, picture in enumerate(pairs.others)]
    assert sum(maybe_true) == pairs.num_maybe_true >= 1
    assert sorted(pairs.others) == list(range(10))


def test_captions_that_are_all_alike_are_paired_and_counted() -> None:
    pairs = pair_captions([caption_of(str(n), "fish") for n in range(4)])
    assert pairs.num_maybe_true == 4
    assert (pairs.others != np.arange(4)).all()


def test_samples_without_a_caption_of_things_are_left_out_and_counted() -> None:
    silent = replace(caption_of("silent"), conversations=())
    pairs = pair_captions([caption_of("a", "fish"), silent, caption_of("nothing"), caption_of("b", "boat")])
    assert [sample.id for sample in pairs.samples] == ["a", "b"]
    assert pairs.num_left_out == 2


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two pictures with a caption .* got 1 in 2 samples"):
        pair_captions([caption_of("a", "fish"), caption_of("b")])
    two = caption_of("two", "fish")
    with pytest.raises(ValueError, match="sample two has 2 pictures"):
        pair_captions([replace(two, images=two.images * 2), caption_of("b", "boat")])


# ----------------------------------------------------------------------------------------------------------- figures


def test_figures_of_pairs_worked_out_by_hand() -> None:
    record = Scores(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 0.0, 3.5, 2.0]), layer=3).record()
    assert record["layer"] == 3
    assert record["auroc"] == pytest.approx((1.5 + 2.5 + 3 + 4) / 16)
    assert record["paired_accuracy"] == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert (record["mean_matching"], record["mean_mismatched"]) == (2.5, 1.625)
    assert len(record["histogram"]["edges"]) == 21
    assert record["overlap"] == pytest.approx(0.5)  # 1 and 2 lie in bins of both


def test_overlap_is_what_two_histograms_share() -> None:
    assert overlap([4, 0], [0, 7]) == 0
    assert overlap([3, 1], [6, 2]) == 1
    assert overlap([1, 1, 2], [0, 2, 2]) == pytest.approx(0.75)
    equal = Scores(np.full(5, 0.25), np.full(5, 0.25)).record()
    assert (equal["overlap"], equal["auroc"], equal["paired_accuracy"]) == (1, 0.5, 0.5)


def test_measures_on_tensors_worked_out_by_hand() -> None:
    image = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])  # mean (0.5, 1.5)
    text = torch.tensor([[[[5.0, 5.0], [2.0, 0.0], [0.0, -1.0]]]])  # the first token is none of the caption's
    said = torch.tensor([[[False, True, True]]])
    query = text[..., None, :].repeat(1, 1, 1, 2, 1) * torch.tensor([1.0, -1.0])[:, None]  # the second head turned
    states = LayerStates(0, image, text, query, image[:, None], scaling=0.5)
    hidden = hidden_similarity(states, said)
    assert hidden["hidden_mean"].item() == pytest.approx((0.5 * 1 - 1.5 * 0.5) / (2.5**0.5 * 1.25**0.5))
    assert hidden["hidden_max"].item() == pytest.approx((1 + 0) / 2)
    found = query_key_similarity(states, said)
    assert found["query_key_cosine"].item() == pytest.approx(((1 + 0) / 2 + (0 + 1) / 2) / 2)
    assert found["query_key_logit"].item() == pytest.approx(0.5 * ((2 + 0) / 2 + (0 + 3) / 2) / 2)
    with pytest.raises(ValueError, match="layer 7 looks at no image"):
        query_key_similarity(LayerStates(7, image, text), said)


# ----------------------------------------------------------------------------------------------------------- tensors


def share_of_images(states: LayerStates) -> torch.Tensor:
    """Attention (E, H, T, N) that queries and keys make, over image tokens alone."""
    assert states.query is not None
    assert states.key is not None
    key = states.key.repeat_interleave(states.query.shape[-2] // states.key.shape[1], dim=1)
    logits = states.scaling * torch.einsum("iethd,ihnd->iehtn", states.query, key)
    return logits.softmax(dim=-1)[0]


@pytest.mark.parametrize("network", [AgeVlmForConditionalGeneration, ConcatVlmForConditionalGeneration])
def test_states_are_those_that_attention_and_hidden_states_are_made_of(
    network: Any, foundation: Path, processor: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = join(network, foundation, processor).eval()
    vlm = Vlm(model, processor)
    if network is ConcatVlmForConditionalGeneration:  # queries and keys are read before it, and so are weights now
        rotary = model.language_model.model.rotary_emb
        turn = rotary.forward
        monkeypatch.setattr(
            rotary, "forward", lambda *a, **k: tuple(f(turn(*a, **k)[0]) for f in (torch.ones_like, torch.zeros_like))
        )
    texts = [vlm.prompt("is there a cup?"), vlm.prompt("where is the house?")]
    kept = vlm.keep([open_image(samples[0].images[0])])
    inputs = vlm.encode(texts, [kept, kept])
    last = [[inputs.text_len - 1]] * 2
    rows = vlm.read(inputs, positions=last, states=[len(vlm.layers)]).rows
    columns = inputs.pictures[0][0].columns
    with torch.no_grad():
        found = list(states_of(vlm, inputs, read_pass(vlm, inputs), [0, 1], kept[0].states))
    assert [layer.layer for layer in found] == sorted({*vlm.looking, len(vlm.layers) - 1})
    for layer in found:
        assert layer.looks == (layer.layer in rows)
        if layer.looks:
            seen = rows[layer.layer][:, :, 0, columns]
            expected = seen / seen.sum(-1, keepdim=True)
            torch.testing.assert_close(share_of_images(layer)[:, :, -1], expected, atol=1e-4, rtol=1e-3)
    logits = model.get_output_embeddings()(model.get_decoder().norm(found[-1].text[0, :, -1]))
    torch.testing.assert_close(logits, vlm.read(inputs).logits[:, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "mllama"])
def test_any_family_is_measured(name: str, samples: list[Sample]) -> None:
    from tests.vlms import tiny_families

    model, processor = tiny_families.made(name)
    found = similarity(model, processor, samples[:4], batch_size=3)
    other = similarity(model, processor, samples[:4], batch_size=1)
    assert set(found.scores) == set(MEASURES)
    for measure in MEASURES:
        one, two = found.headline(measure), other.headline(measure)
        assert np.isfinite(one.matching).all()
        np.testing.assert_allclose(one.matching, two.matching, atol=1e-4)
        np.testing.assert_allclose(one.mismatched, two.mismatched, atol=1e-4)


def test_where_a_text_needs_a_picture_the_gain_is_left_out_and_said_so(samples: list[Sample]) -> None:
    from tests.vlms import tiny_families

    found = similarity(*tiny_families.made("paligemma"), samples[:3])
    assert set(found.scores) == set(MEASURES) - {CAPTION_GAIN}
    record = found.record()
    assert record["left_out"].keys() == {CAPTION_GAIN}
    assert "takes no text without a picture" in record["left_out"][CAPTION_GAIN]
    assert record["measures"].keys() == found.scores.keys()


def test_without_queries_the_other_measures_remain(
    model: Any, processor: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agevlm.analysis.similarity_states._projects", lambda vlm: False)
    found = similarity(model, processor, samples[:3])
    assert set(found.scores) == set(MEASURES) - {QUERY_KEY_COSINE, QUERY_KEY_LOGIT}
    assert found.record()["headline_layer"] == found.headline_layer


# ------------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_changes_no_figure(
    model: Any, processor: Any, samples: list[Sample], found: Similarity, batch_size: int
) -> None:
    other = similarity(model, processor, samples, batch_size=batch_size)
    for name in MEASURES:
        for one, two in zip(found.scores[name], other.scores[name], strict=True):
            assert one.layer == two.layer
            np.testing.assert_allclose(one.values()["matching"], two.values()["matching"], atol=3e-5)
            np.testing.assert_allclose(one.values()["mismatched"], two.values()["mismatched"], atol=3e-5)


@torch.no_grad()
def test_likelihood_is_minus_the_loss_of_the_caption(
    model: Any, processor: Any, samples: list[Sample], found: Similarity
) -> None:
    number = 2
    for picture, values in (
        (number, found.headline(CAPTION_LIKELIHOOD).matching),
        (int(found.pairs.others[number]), found.headline(CAPTION_LIKELIHOOD).mismatched),
        (None, found.headline(CAPTION_LIKELIHOOD).matching - found.headline(CAPTION_GAIN).matching),
        (None, found.headline(CAPTION_LIKELIHOOD).mismatched - found.headline(CAPTION_GAIN).mismatched),
    ):
        caption = found.pairs.samples[number].conversations[0]
        images: dict[str, Any] = {}
        if picture is None:
            caption = replace(caption, messages=tuple(replace(m, num_images=0) for m in caption.messages))
        else:
            pictures = [open_image(samples[picture].images[0])]
            images["pixel_values"] = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        chat = tokenise_conversation(processor, caption)
        ids = torch.tensor([chat.input_ids])
        labels = ids.masked_fill(~torch.tensor([chat.supervised]), -100)
        loss = model(input_ids=ids, labels=labels, **images).loss
        assert values[number] == pytest.approx(-loss.item(), abs=3e-5)


def test_with_closed_gates_no_text_knows_its_picture(foundation: Path, processor: Any, samples: list[Sample]) -> None:
    found = similarity(join(AgeVlmForConditionalGeneration, foundation, processor, gate=0.0), processor, samples)
    for name in (CAPTION_LIKELIHOOD, CAPTION_GAIN):
        scores = found.headline(name)
        np.testing.assert_allclose(scores.matching, scores.mismatched, atol=2e-5)
    likelihood = found.headline(CAPTION_LIKELIHOOD)
    assert np.ptp(likelihood.matching) > 0.01, "captions that are all alike would test nothing"
    assert likelihood.record()["auroc"] == pytest.approx(0.5, abs=0.5 / NUM_PAIRS)
    cosine = found.headline(QUERY_KEY_COSINE)
    assert np.abs(cosine.matching - cosine.mismatched).max() > 1e-3, "keys are the picture's, whatever the gates"


def test_pictures_matter_to_every_measure(found: Similarity) -> None:
    for name in MEASURES:
        scores = found.headline(name)
        assert np.abs(scores.matching - scores.mismatched).max() > 1e-4, name


def test_each_picture_is_encoded_once_and_the_model_left_as_it_was(
    model: Any, processor: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: Counter[int] = Counter()
    encode: Callable[..., Any] = model.vision_features

    def count(pixel_values: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert not model.language_model.training
        encoded.update(hash(picture.numpy().tobytes()) for picture in pixel_values)
        return encode(pixel_values)

    monkeypatch.setattr(model, "vision_features", count)
    calls: list[tuple[int, int]] = []
    hooks = [len(module._forward_hooks) for module in model.modules()]
    model.train()
    similarity(model, processor, samples, batch_size=4, progress=lambda done, total: calls.append((done, total)))
    assert model.training
    model.eval()
    assert len(encoded) == NUM_PAIRS
    assert set(encoded.values()) == {1}
    assert calls == [(4, 9), (8, 9), (9, 9)]
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_the_headline_is_the_last_layer_that_looks_at_images(model: Any, found: Similarity) -> None:
    concat = isinstance(model, ConcatVlmForConditionalGeneration)
    looking = [0, 1, 2, 3] if concat else model.config.cross_attention_layers
    assert found.headline_layer == looking[-1]
    assert [scores.layer for scores in found.scores[QUERY_KEY_LOGIT]] == looking
    assert [scores.layer for scores in found.scores[HIDDEN_MEAN]] == (looking if concat else [*looking, 5])
    record = found.record()
    assert list(record["measures"]) == list(MEASURES)
    for name, measure in record["measures"].items():
        assert measure["layer"] == (None if name.startswith("caption") else looking[-1])
        assert len(measure["values"]["matching"]) == sum(measure["histogram"]["mismatched"]) == NUM_PAIRS
        of_layer = [layer["auroc"] for layer in measure["layers"] if layer["layer"] == found.headline_layer]
        assert of_layer == ([] if name.startswith("caption") else [measure["auroc"]])


def test_a_batch_of_nothing_is_refused(model: Any, processor: Any, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="batch_size is the number of pictures read at once, got 0"):
        similarity(model, processor, samples, batch_size=0)


# ------------------------------------------------------------------------------------------------------------- files


def test_a_checkpoint_is_measured_by_name_on_scenes_and_on_a_dataset(
    model: Any, processor: Any, samples: list[Sample], tmp_path: Path
) -> None:
    from agevlm.data.parquet import Record, write_parquet

    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    settings = Settings(seed=4, num_images=4, split="validation", batch_size=3)
    record = similarity_of_benchmark(tmp_path / "model", "scenes", settings)
    write_similarity(record, tmp_path / "similarity.json")
    assert json.loads((tmp_path / "similarity.json").read_text(encoding="utf-8")) == record
    assert record["num_pairs"] == 4
    assert record["provenance"]["architecture"] == type(model).__name__
    assert record["provenance"]["split"] == "validation"
    write_parquet(tmp_path / "data", [Record(sample) for sample in samples])
    stored = similarity_of_benchmark(tmp_path / "model", tmp_path / "data", Settings())
    assert stored["num_pairs"] == NUM_PAIRS
    direct = similarity(model, processor, samples).record()
    for name in MEASURES:
        assert stored["measures"][name]["auroc"] == pytest.approx(direct["measures"][name]["auroc"], abs=0.02)


def test_the_picture_has_a_panel_for_each_measure(found: Similarity) -> None:
    figure = similarity_figure(found.record())
    assert len([axes for axes in figure.axes if axes.get_visible()]) == len(MEASURES)
    shown = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert f"AUROC {found.headline(HIDDEN_MEAN).record()['auroc']:.3f}" in shown
    assert f"layer {found.headline_layer}" in shown
    panel = PairHistogram("only", "", [0, 1, 2], [1, 3], [4, 0])
    lone = pair_histograms([panel])
    assert sum(axes.get_visible() for axes in lone.axes) == 1
    with pytest.raises(ValueError, match="no histograms"):
        pair_histograms([])
