"""The diagnosis: figures worked out by hand, and the whole of it on models of several families."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_picture
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import agevlm
from agevlm.cli import app
from agevlm.data.images import MAX_PIXELS, open_image
from agevlm.data.parquet import Record, write_parquet
from agevlm.data.schema import ImageSource, Sample
from agevlm.diagnosis.asking import CONDITIONS, REQUEST, ask, presence_samples
from agevlm.diagnosis.captions import CaptionReading, CaptionWord, _batch, read_captions
from agevlm.diagnosis.figures import CalibrationError, _caption_figures, differences_of, figures_of
from agevlm.diagnosis.heads import HeadReading, read_heads, without_sinks
from agevlm.diagnosis.lens import Lens, lens_of, read_lens
from agevlm.diagnosis.pictures import _both_maps
from agevlm.diagnosis.run import _examine
from agevlm.evaluation import benchmarks
from agevlm.evaluation.benchmarks import Settings, caption_samples
from agevlm.evaluation.detection import calibration_error, reliability
from agevlm.evaluation.localisation import map_entropy
from agevlm.evaluation.questions import questions_of
from agevlm.vlms import Answer, Inputs, Vlm
from tests.vlms import tiny_families

SETTINGS = Settings(num_images=3)
FAMILIES = ("llava", "qwen2_vl", "mllama")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return presence_samples(benchmarks.test_samples("tiny", "scenes", SETTINGS))


@pytest.fixture(scope="module")
def tiny() -> Vlm:
    return Vlm(*agevlm.load_model("tiny", "cpu"))


def test_sinks_are_what_the_words_of_a_picture_share() -> None:
    sink, one, two = np.zeros((3, 2, 2), dtype=np.float32)
    sink[0, 0], one[0, 1], two[1, 0] = 0.6, 0.4, 0.4
    maps = np.stack([sink + one, sink + two])[:, None, None]  # one layer, one head
    left = without_sinks(maps, ["cup", "fish"])[:, 0, 0]
    np.testing.assert_allclose(left, np.stack([one, two]) / 0.4, atol=1e-6)
    np.testing.assert_allclose(without_sinks(maps, ["cup", "cup"]), maps, atol=1e-6)


def test_calibration_error_is_that_of_its_bins() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.random(60), rng.random(60) < 0.5
    found = CalibrationError([str(n) for n in range(60)], [str(n // 6) for n in range(60)], p, y)
    assert found.value == pytest.approx(calibration_error(reliability(p, y)))


def test_another_picture_and_a_blank_one_take_away_what_the_picture_tells(tiny: Vlm, samples: list[Sample]) -> None:
    answers = ask(tiny, samples, None, None)
    accuracy = {c: np.mean([record["correct"] for record in answers.records[c]]) for c in CONDITIONS}
    assert accuracy["picture"] > 0.85 > max(accuracy["blank"], accuracy["other"]) + 0.1
    ids = [[record["id"] for record in answers.records[c]] for c in CONDITIONS]
    assert ids[0] == ids[1] == ids[2]


def test_the_taught_model_looks_at_what_it_is_asked_about(tiny: Vlm, samples: list[Sample]) -> None:
    heads = read_heads(tiny, samples, None, None)
    assert isinstance(heads, HeadReading)
    assert heads.layers == (1, 4)
    place, head = heads.ranked()[0]
    told = ~heads.is_ranking
    assert heads.heads["mass"][told, place, head].mean() > 5 * heads.area[told].mean()
    llava = read_heads(Vlm(*tiny_families.made("llava")), samples[:2], None, None)
    assert isinstance(llava, HeadReading)
    assert llava.mean["mass"].mean() == pytest.approx(llava.heads["mass"].mean(), abs=1e-4)  # no null token
    one_by_one = read_heads(tiny, samples, 1, None)
    assert isinstance(one_by_one, HeadReading)
    np.testing.assert_allclose(heads.heads["mass"], one_by_one.heads["mass"], atol=1e-4)


def test_the_lens_needs_image_tokens_in_the_decoder(tiny: Vlm, samples: list[Sample]) -> None:
    assert isinstance(read_lens(tiny, samples, None), str)
    found = read_lens(Vlm(*tiny_families.made("llava")), samples, None)
    assert isinstance(found, dict)
    assert {picture for picture, _ in found} == {sample.id for sample in samples}
    assert all(0 < confidence <= 1 for confidence in found.values())


def test_masks_in_one_picture_only_are_too_few_and_said_so(tiny: Vlm, samples: list[Sample]) -> None:
    bare = [replace(s, conversations=tuple(replace(c, groundings=()) for c in s.conversations)) for s in samples[1:]]
    found = read_heads(tiny, [samples[0], *bare], None, None)
    assert isinstance(found, str) and "masks in one picture only" in found


def test_a_word_that_is_not_found_again_leaves_the_others_as_they_are(
    tiny: Vlm, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    found_again = Inputs.words_of
    lost = {next(w.phrase for c in samples[0].conversations for w in c.groundings if w.present)}

    def words_of(inputs: Inputs, tokenizer: Any, row: int, spans: Any) -> list[list[int]]:
        places = found_again(inputs, tokenizer, row, spans)
        return [[] if inputs.texts[row][slice(*span)] in lost else of for span, of in zip(spans, places, strict=True)]

    monkeypatch.setattr(Inputs, "words_of", words_of)
    together, alone = (read_heads(tiny, samples[:2], size, None) for size in (None, 1))
    assert isinstance(together, HeadReading) and isinstance(alone, HeadReading)
    assert together.ids == alone.ids and lost.isdisjoint(together.phrases)
    np.testing.assert_allclose(together.heads["corrected_mass"], alone.heads["corrected_mass"], atol=1e-4)
    prompts = [prompt for prompt in questions_of(tiny, samples)[1] if len(prompt.words) == 1]
    prompt = next(prompt for prompt in prompts if prompt.words[0].phrase in lost)
    assert _both_maps(tiny, together, prompt, samples) == ()
    lost |= {prompt.words[0].phrase for prompt in prompts}
    found = read_heads(tiny, samples[:2], 1, None)
    assert found == "no word for a thing that is there was found again in what the processor makes of the prompts"


@pytest.mark.parametrize("name", ["llava", "paligemma", "lfm2_vl"])
def test_the_lens_is_the_same_whatever_is_asked(name: str, samples: list[Sample]) -> None:
    vlm = Vlm(*tiny_families.made(name))
    one, other = ([replace(s, conversations=s.conversations[::step]) for s in samples[:2]] for step in (1, -1))
    found, turned = read_lens(vlm, one, None), read_lens(vlm, other, None)
    assert isinstance(found, dict) and isinstance(turned, dict)
    assert found == pytest.approx(turned, abs=1e-6)
    lens = lens_of(vlm)
    assert isinstance(lens, Lens)
    inputs = vlm.encode([vlm.prompt(REQUEST)], [[make_picture()]])
    state = vlm.read(inputs, states=[len(vlm.layers)]).states[len(vlm.layers)]
    torch.testing.assert_close(lens.head(lens.norm(state[:, -1])), vlm.read(inputs).logits[:, -1], atol=1e-4, rtol=1e-3)


def test_the_lens_reads_through_the_final_norm_of_lfm2_too() -> None:
    config = AutoConfig.for_model("lfm2", **tiny_families.TEXT | {"vocab_size": 40}, layer_types=["full_attention"] * 3)
    model = AutoModelForCausalLM.from_config(config).eval()
    vlm: Any = SimpleNamespace(note=None, family=None, model=model)
    lens, kept = lens_of(vlm), []
    assert isinstance(lens, Lens)
    model.get_decoder().layers[-1].register_forward_hook(lambda _module, _args, output: kept.append(output))
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(3, 9)[None]).logits
    torch.testing.assert_close(lens.head(lens.norm(kept[0])), logits)


def test_the_words_of_a_caption_are_scored_where_the_model_first_says_them(tiny: Vlm, samples: list[Sample]) -> None:
    found = read_captions(tiny, samples)
    assert isinstance(found, CaptionReading)
    assert found.captions.keys() == {sample.id for sample in samples}
    known = {(s.id, w.phrase): bool(w.present) for s in samples for c in s.conversations for w in c.groundings}
    assert found.words and all(known[word.image, word.phrase] is word.present for word in found.words)
    word = next(word for word in found.words if word.present)
    seen = agevlm.look((tiny.model, tiny.processor), open_image(_picture(samples, word)), "describe the picture.")
    assert seen.answer == found.captions[word.image]
    of_look = next(w for w in seen.words if w.where == "answer" and w.word == word.phrase)
    assert word.scores["null_mass"] == pytest.approx(of_look.null_mass, abs=1e-5)
    assert word.scores["entropy"] == pytest.approx(map_entropy(of_look.map), abs=1e-4)
    assert 0 <= word.scores["p_no"] < 1 and "logit_lens" not in word.scores


def _picture(samples: list[Sample], word: CaptionWord) -> Any:
    return next(sample.images[0] for sample in samples if sample.id == word.image)


def test_the_probability_of_a_word_is_that_of_its_tokens_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says what we want it to say, word for word."""
    vlm = Vlm(*tiny_families.made("llava"))
    ids = tuple(vlm.processor.tokenizer.convert_tokens_to_ids(["a", "red", "fish", "a", "boat", "fish"]))
    monkeypatch.setattr(vlm, "answers", lambda inputs, limit: [Answer("a red fish a boat fish", ids)])
    pictures = [make_picture(0, (64, 64))]
    text = vlm.prompt("what is in the picture ?")
    ((number, caption, scores),) = _batch(vlm, text, pictures, ["fish", "boat", "house"], lens_of(vlm))
    assert (number, caption) == (0, "a red fish a boat fish")
    assert scores.keys() == {"fish", "boat"}
    log_probs = vlm.log_probs(vlm.encode([text], [pictures]), [ids])[0]
    for phrase, place in (("fish", 2), ("boat", 4)):
        assert scores[phrase]["p_no"] == pytest.approx(1 - float(log_probs[place].exp()), abs=1e-5)
        assert scores[phrase].keys() == {"p_no", "entropy", "logit_lens"}


def test_made_up_words_of_captions_are_figures() -> None:
    """Two pictures; what is made up has the higher number but once in four."""
    rows = (("a", True, 0.1), ("a", False, 0.9), ("b", True, 0.5), ("b", False, 0.4))
    words = tuple(CaptionWord(i, f"w{n}", there, {"p_no": p}) for n, (i, there, p) in enumerate(rows))
    figures = dict(_caption_figures(CaptionReading(words, {}, 0)))
    assert figures["captions.made_up_ratio"].value == 0.5
    assert figures["captions.p_no.auroc"].value == pytest.approx(0.75)
    assert "captions.null_mass.auroc" not in figures


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_examined(name: str, samples: list[Sample]) -> None:
    vlm = Vlm(*tiny_families.made(name))
    captions = caption_samples("tiny", "scenes", SETTINGS)
    exam = _examine(vlm, name, samples[:2], captions[:2], SETTINGS, None)
    figures = figures_of(exam)
    words = "words of its own captions"  # a random model may name nothing that was asked for
    assert exam.left_out.keys() - {words} == ({"logit lens"} if name == "mllama" else set())
    wanted = ["calibration.error", "similarity.caption_likelihood.auroc", "looking.best_head.mass"]
    wanted += ["made_up.entropy.auroc", "made_up.p_no.auroc", "answers.blank.random.accuracy"]
    for figure in wanted:
        assert 0 <= figures[figure].value <= 1, figure
    assert ("made_up.logit_lens.auroc" in figures) is (name != "mllama")
    assert "made_up.null_mass.auroc" not in figures
    zero = differences_of(figures, figures)
    assert zero.keys() == {n for n, figure in figures.items() if np.isfinite(figure.value)}
    assert all(known.mean == known.low == known.high == 0 for known in zero.values())


def test_the_page_holds_everything_and_sets_two_models_side_by_side(tmp_path: Path) -> None:
    model, processor = tiny_families.made("llava")
    found = agevlm.diagnose("tiny", out=tmp_path, against=(model, processor), num_images=3, device="cpu")
    assert len(found.verdict) == 3
    record = json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))
    assert record["verdict"] == found.verdict
    assert record["against"]["model"] == "LlavaForConditionalGeneration"
    gap = record["differences"]["answers.picture.random.accuracy"]
    one, two = (r["figures"]["answers.picture.random.accuracy"]["mean"] for r in (record, record["against"]))
    assert gap["mean"] == pytest.approx(one - two)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    num_questions = sum(record["reliability"]["num_questions"])
    assert f"{num_questions} questions about 3 pictures" in html
    for title in ("Side by side", "Does it answer from the picture?", "Does it look?", "Which words are made up?"):
        assert title in html
    assert 'src="http' not in html
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert arrays["heads_mass"].shape[1:] == (2, 4)
        assert arrays["against/heads_mass"].shape[1:] == (3, 4)
        assert any(name.startswith("case_0/0/") for name in arrays)


def test_a_dataset_without_masks_and_captions_leaves_parts_out_and_says_so(
    tmp_path: Path, samples: list[Sample]
) -> None:
    bare = [
        replace(s, conversations=tuple(replace(c, groundings=()) for c in s.conversations[:4])) for s in samples[:3]
    ]
    write_parquet(tmp_path / "data", [Record(sample) for sample in bare])
    arguments = ["diagnose", "tiny", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "left out: where it looks: the dataset has no mask" in result.output
    assert "left out: matching pictures: mismatched pairs need two pictures with a caption" in result.output
    assert "Where it looks is not measured." in result.output
    assert (tmp_path / "out" / "index.html").is_file()


def test_questions_that_ask_of_no_thing_are_one_clear_line(samples: list[Sample]) -> None:
    silent: list[Any] = [replace(sample, conversations=()) for sample in samples]
    with pytest.raises(ValueError, match=r"and 0 of 3 samples have some.*\(`agevlm data coco` writes"):
        presence_samples(silent)


def test_a_family_that_is_not_known_gets_maps_by_occlusion_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agevlm.vlms.families.FAMILIES", ())
    monkeypatch.setattr("agevlm.diagnosis.pictures.NUM_CASES", 1)
    found = agevlm.diagnose(tiny_families.made("llava"), out=tmp_path, num_images=2, device="cpu")
    for part in ("where it looks", "matching pictures", "logit lens"):
        assert "models of the type 'llava' are not known" in found.record["left_out"][part]
        assert "maps are made by occlusion" in found.record["left_out"][part]
    assert found.verdict[1] == "Where it looks is not measured."
    html = found.page.read_text(encoding="utf-8")
    assert "by occlusion" in html and "are not known" in html
    assert "answers.picture.random.accuracy" in found.record["figures"]
    with np.load(tmp_path / "arrays.npz") as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files if name.endswith("by occlusion")}
    assert shapes and set(shapes.values()) == {(8, 8)}


def test_pictures_of_80_megapixels_and_of_one_pixel_are_diagnosed(tmp_path: Path, samples: list[Sample]) -> None:
    files = []
    for number, size in enumerate(((8944, 8944), (1, 1))):
        file = io.BytesIO()
        Image.new("RGB", size, (200, 30, 30)).save(file, "PNG", compress_level=1)
        files.append(ImageSource(f"picture {number}", size[1], size[0], data=file.getvalue()))
    assert 79_900_000 < files[0].width * files[0].height < MAX_PIXELS
    bare = [
        replace(s, images=(file,), conversations=tuple(replace(c, groundings=()) for c in s.conversations[:1]))
        for s, file in zip(samples, files, strict=False)
    ]
    write_parquet(tmp_path / "data", [Record(sample) for sample in bare])
    found = agevlm.diagnose("tiny", tmp_path / "data", out=tmp_path / "out", device="cpu")
    assert found.page.is_file()
    assert found.record["reliability"]["num_questions"] and len(found.verdict) == 3
    larger = ImageSource("picture", 9000, 9000, data=files[0].data)
    with pytest.raises(ValueError, match="its record says 9000 × 9000"):
        open_image(larger)


def test_a_processor_without_a_chat_template_is_one_clear_line(tmp_path: Path) -> None:
    model, processor = tiny_families.made("llava")
    silent = copy.copy(processor)
    silent.chat_template = None
    with pytest.raises(ValueError, match="the processor of 'llava' has no chat template: "):
        agevlm.diagnose((model, silent), out=tmp_path, num_images=2)
