"""The runner of official benchmarks on tiny random models: every benchmark, killed, gone on with, in two processes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from launching import launch_command
from PIL import Image
from tiny_models import make_model, make_processor
from typer.testing import CliRunner

import agevlm
from agevlm.cli import app
from agevlm.evaluation.official import run
from agevlm.evaluation.official.files import open_source
from agevlm.evaluation.official.outcome import verdict
from agevlm.evaluation.official.run import Settings, evaluate_official
from agevlm.evaluation.official.store import AnswerStore
from agevlm.evaluation.official.table import BENCHMARKS
from agevlm.vlms import Vlm
from tests.vlms import tiny_families

from . import made

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ours")
    make_model().save_pretrained(directory)
    make_processor().save_pretrained(directory)
    return directory


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    (tmp_path / "pope").mkdir()
    return made.pope(tmp_path / "pope")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def save_llava(directory: Path) -> Path:
    """A tiny random LLaVA of transformers' own classes."""
    import torch
    import transformers
    from tiny_models import WORDS, make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.image_token = "<image>"
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=len(WORDS) + 8,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            eos_token_id=2,
            pad_token_id=0,
        ),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            patch_size=8,
            image_size=32,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(directory)
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        pixels, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    processor.chat_template = (
        "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
    )
    processor.save_pretrained(directory)
    return directory


def short(name: str, protocol: str) -> Any:
    """A protocol with short answers: a random model does not end them."""
    from dataclasses import replace

    benchmark = BENCHMARKS[name]
    chosen = replace(benchmark.protocol(protocol), max_new_tokens=3)
    return replace(benchmark, protocols=(chosen,))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs(name: str, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = BENCHMARKS[name].protocols[0].name
    monkeypatch.setattr(run, "find_benchmark", lambda name: short(name, protocol))
    (tmp_path / "data").mkdir()
    data = made.ALL[name](tmp_path / "data")
    metrics = evaluate_official(ours, name, data, tmp_path / "out", Settings(device="cpu", batch_size=3))
    assert metrics is not None
    assert metrics["missing"]["num_questions"] == 0
    assert metrics["provenance"]["protocol"] == protocol
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    predictions = lines(tmp_path / "out" / "predictions.jsonl")
    assert len(predictions) == metrics["provenance"]["num_questions"] > 0
    assert all((record["p_yes"] is not None) == BENCHMARKS[name].yes_no for record in predictions)
    assert verdict(metrics).startswith(f"{name}, protocol {protocol}: ")
    assert "| part |" in (tmp_path / "out" / "metrics.md").read_text()


def test_a_model_of_transformers_is_measured_as_ours_is(tmp_path: Path) -> None:
    data = made.hallusionbench(_folder(tmp_path / "data"))
    found = agevlm.evaluate(
        save_llava(tmp_path / "llava"), "hallusionbench", out=tmp_path / "out", data=data, protocol="rule-based"
    )
    assert found is not None
    assert found["overall"]["num_questions"] == 7
    assert {record["image"] is None for record in lines(tmp_path / "out" / "predictions.jsonl")} == {True, False}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_parquet_and_json_lines_give_the_same_answers(ours: Path, pope: Path, tmp_path: Path) -> None:
    parquet = made.pope_parquet(_folder(tmp_path / "parquet"))
    settings = Settings(device="cpu")
    one, other = (
        evaluate_official(ours, "pope", data, tmp_path / f"out-{number}", settings)
        for number, data in enumerate((pope, parquet))
    )
    assert one is not None
    assert other is not None
    for split in ("random", "popular", "adversarial", "mean"):
        assert one[split] == other[split]


def test_batches_do_not_matter_and_a_prompt_of_several_splits_is_asked_once(
    ours: Path, pope: Path, tmp_path: Path
) -> None:
    shown: list[tuple[str, int, int]] = []
    for batch_size in (1, 16):
        evaluate_official(
            ours,
            "pope",
            pope,
            tmp_path / str(batch_size),
            Settings(device="cpu", batch_size=batch_size),
            progress=lambda *step: shown.append(step),
        )
    one, other = (lines(tmp_path / str(size) / "predictions.jsonl") for size in (1, 16))
    assert [r["answer"] for r in one] == [r["answer"] for r in other]
    assert [r["p_yes"] for r in one] == pytest.approx([r["p_yes"] for r in other], abs=1e-4)
    assert len(one) == 12
    assert shown[-1] == ("pope", 6, 6)


def test_a_benchmark_is_answered_in_other_ways(ours: Path, pope: Path, tmp_path: Path) -> None:
    found = {}
    for way in ("plain", "pai", "vicrop"):
        settings = Settings(device="cpu", answering=way)
        metrics = evaluate_official(ours, "pope", pope, tmp_path / way, settings)
        assert metrics is not None and metrics["provenance"]["answering"] == way
        found[way] = [row["p_yes"] for row in lines(tmp_path / way / "predictions.jsonl")]
    assert found["pai"] != pytest.approx(found["plain"]) and found["vicrop"] != pytest.approx(found["plain"])
    with pytest.raises(ValueError, match="holds another run"):
        evaluate_official(ours, "pope", pope, tmp_path / "pai", Settings(device="cpu"))
    with pytest.raises(ValueError, match="no benchmark by name has any"):
        evaluate_official(ours, "pope", pope, tmp_path / "mask", Settings(device="cpu", answering="mask"))


def test_a_killed_run_goes_on(ours: Path, pope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(device="cpu", batch_size=2)
    whole = evaluate_official(ours, "pope", pope, tmp_path / "whole", settings)
    asked: list[int] = []
    plain = run._ask_batch

    def killed(*args: Any) -> Any:
        asked.append(len(args[1]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(run, "_ask_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_official(ours, "pope", pope, tmp_path / "out", settings)
    part = tmp_path / "out" / "answers-0.jsonl"
    assert len(lines(part)) == 4
    with part.open("a") as file:
        file.write('{"key": "half a li')  # as a machine that goes out leaves it
    asked.clear()
    monkeypatch.setattr(run, "_ask_batch", lambda *args: asked.append(len(args[1])) or plain(*args))
    again = evaluate_official(ours, "pope", pope, tmp_path / "out", settings)
    assert sum(asked) == 2
    assert whole is not None
    assert again is not None
    assert again["mean"] == whole["mean"]
    assert not part.exists()
    asked.clear()
    evaluate_official(ours, "pope", pope, tmp_path / "out", settings)
    assert asked == []  # all is answered


def test_another_run_in_the_same_directory_is_refused(ours: Path, pope: Path, tmp_path: Path) -> None:
    evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu"))
    with pytest.raises(ValueError, match="its protocol is 'official', and this one's is 'lmms-eval'"):
        evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu", protocol="lmms-eval"))
    other = tmp_path / "other"
    shutil.copytree(ours, other)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="holds another run: its model is"):
        evaluate_official(other, "pope", pope, tmp_path / "out", Settings(device="cpu"))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "answers.jsonl").write_text('{"key": "a", "answer": "yes"}\n')
    with pytest.raises(ValueError, match="answers of which nothing is known"):
        evaluate_official(ours, "pope", pope, tmp_path / "strange", Settings(device="cpu"))


@pytest.mark.slow
def test_two_processes_answer_what_one_does(ours: Path, pope: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", str(ours), "--benchmark", "pope", "--data", str(pope), "--device", "cpu", "--out")
    done = subprocess.run(
        launch_command(2, *arguments, str(tmp_path / "two")), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pope, protocol official:") == 1
    one = evaluate_official(ours, "pope", pope, tmp_path / "one", Settings(device="cpu"))
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert one is not None
    assert two["mean"] == one["mean"]
    first, second = (lines(tmp_path / name / "predictions.jsonl") for name in ("one", "two"))
    assert [r["answer"] for r in first] == [r["answer"] for r in second]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "answers.jsonl",
        "metrics.json",
        "metrics.md",
        "predictions.jsonl",
        "run.json",
    ]


def test_answers_of_two_processes_become_one_file(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "out")
    store.begin({"model": "m"}, {"a", "b"})
    store.append(0, [{"key": "a", "answer": "one\u2028line"}])
    store.append(1, [{"key": "b", "answer": "two\nlines"}])
    assert store.gather() == {
        "a": {"key": "a", "answer": "one\u2028line"},
        "b": {"key": "b", "answer": "two\nlines"},
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers.jsonl", "run.json"]


def test_missing_and_damaged_pictures_are_counted_and_named(ours: Path, pope: Path, tmp_path: Path) -> None:
    (pope / "val2014" / "1.jpg").unlink()
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu"))
    assert metrics is not None
    assert metrics["missing"] == {
        "num_questions": 6,
        "num_questions_in_all": 12,
        "num_pictures": 1,
        "pictures": ["1.jpg"],
        "reasons": {"missing picture": 6},
        "first": "1.jpg: missing picture",
    }
    assert metrics["mean"]["num_questions"] == 6
    assert "6 of 12 questions (6 not asked, the first 1.jpg: missing picture)" in verdict(metrics)
    assert "6 of 12 questions were not asked: missing picture (6)." in (tmp_path / "out" / "metrics.md").read_text()
    left = [record for record in lines(tmp_path / "out" / "predictions.jsonl") if "problem" in record]
    assert {record["problem"] for record in left} == {"missing picture"}
    (pope / "val2014" / "1.jpg").write_bytes(b"no picture")
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "damaged", Settings(device="cpu"))
    assert metrics is not None
    assert metrics["missing"]["num_questions"] == 6
    left = [record for record in lines(tmp_path / "damaged" / "predictions.jsonl") if "problem" in record]
    assert {record["problem"] for record in left} == {"file that is no picture"}
    made.picture_files(pope / "val2014", ["1.jpg"])
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "damaged", Settings(device="cpu"))
    assert metrics is not None
    assert metrics["missing"]["num_questions"] == 0  # a picture that was mended is asked about
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu"))
    assert metrics is not None
    assert metrics["missing"]["num_questions"] == 0  # and so is one that was found


def left_out(out: Path) -> dict[str, str]:
    """The reason of each question that was not asked, by its id."""
    return {record["id"]: record["problem"] for record in lines(out / "predictions.jsonl") if "problem" in record}


def test_a_cell_without_a_picture_and_broken_base64_are_left_out(ours: Path, tmp_path: Path) -> None:
    parquet = made.pope_parquet(_folder(tmp_path / "parquet"))
    (path,) = parquet.rglob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    made.write_parquet(path, [row | ({"image": None} if row["image_source"] == "1" else {}) for row in rows])
    metrics = evaluate_official(ours, "pope", parquet, tmp_path / "nulls", Settings(device="cpu"))
    assert metrics is not None
    assert metrics["missing"]["reasons"] == {"cell without a picture": 6}
    assert "(6 not asked, the first 1: cell without a picture)" in verdict(metrics)
    tsv = made.mmstar_tsv(_folder(tmp_path / "tsv"))
    rows = [dict(row) for row in open_source(tsv).tables[0].rows]
    rows[2]["image"], rows[3]["image"] = rows[2]["image"][:401], ""
    made.write_delimited(tsv / "MMStar.tsv", rows)
    settings = Settings(device="cpu", protocol="vlmevalkit")
    metrics = evaluate_official(ours, "mmstar", tsv, tmp_path / "base64", settings)
    assert metrics is not None
    assert left_out(tmp_path / "base64") == {"3": "missing picture", "2": "broken base64"}


def answered_by(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Have a tiny model of a family answer, whatever model is named."""
    monkeypatch.setattr(run, "_load", lambda *args: Vlm(*tiny_families.made(family)))


def test_what_a_model_does_not_take_is_left_out(
    ours: Path, pope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered_by(monkeypatch, "qwen2_vl")
    Image.new("RGB", (2, 900)).save(pope / "val2014" / "1.jpg")
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "narrow", Settings(device="cpu"))
    assert metrics is not None
    assert metrics["mean"]["num_questions"] == 6
    assert "the first 1.jpg: absolute aspect ratio must be smaller than 200" in verdict(metrics)

    answered_by(monkeypatch, "llava")
    rows = lines(pope / "coco_pope_random.json")
    rows[3]["text"] = "is there a fish ? " * 300
    made.write_lines(pope / "coco_pope_random.json", rows)
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "long", Settings(device="cpu"))
    assert metrics is not None
    assert left_out(tmp_path / "long").keys() == {"random/4"}
    assert "and the context takes 512" in left_out(tmp_path / "long")["random/4"]
    for row in rows:
        row["text"] = "is there a fish ? " * 300
    for path in pope.glob("*.json"):
        made.write_lines(path, rows)
    with pytest.raises(ValueError, match=r"none of the questions of POPE can be asked .*the context takes 512"):
        evaluate_official(ours, "pope", pope, tmp_path / "all", Settings(device="cpu"))


def test_a_picture_at_which_a_model_fails_is_left_out(
    pope: Path, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    vlm = Vlm(*tiny_families.llava())
    generate, broken = vlm.model.generate, [RuntimeError("split_with_sizes expects\nmore")]

    def failing(*, pixel_values: torch.Tensor, **rest: Any) -> Any:
        if (pixel_values.std((2, 3)) < 1e-4).all(1).any():  # of one colour, as a picture of one pixel is
            raise broken[0]
        return generate(pixel_values=pixel_values, **rest)

    monkeypatch.setattr(vlm.model, "generate", failing)
    monkeypatch.setattr(run, "_load", lambda *args: vlm)
    Image.new("RGB", (1, 1)).save(pope / "val2014" / "1.jpg")
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu"))
    assert metrics is not None
    reason = "the model does not take this: split_with_sizes expects more (pictures of 1×1 pixels)"
    assert metrics["missing"]["reasons"] == {reason: 6}
    assert metrics["mean"]["num_questions"] == 6
    broken[0] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        evaluate_official(ours, "pope", pope, tmp_path / "full", Settings(device="cpu"))


def test_a_way_that_a_model_cannot_be_asked_in_stops_before_anything_is_asked(
    pope: Path, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered_by(monkeypatch, "paligemma2")
    monkeypatch.setattr(run, "_ask_batch", lambda *args: pytest.fail("something was asked"))
    with pytest.raises(ValueError, match=r"the processor of 'paligemma' takes no text alone: answer in another way"):
        evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu", answering="pai"))


def test_where_nothing_can_be_asked_the_reason_is_that_of_what_was_asked(
    pope: Path, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered_by(monkeypatch, "qwen2_vl")
    Image.new("RGB", (2, 900)).save(pope / "val2014" / "1.jpg")
    (pope / "val2014" / "2.jpg").unlink()
    with pytest.raises(ValueError, match=r"none of the questions of POPE can be asked \(absolute aspect ratio must be"):
        evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu"))


def test_a_model_that_takes_no_text_alone_is_asked_what_has_a_figure(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered_by(monkeypatch, "paligemma")
    data = made.hallusionbench(_folder(tmp_path / "data"))
    settings = Settings(device="cpu", protocol="rule-based")
    metrics = evaluate_official(ours, "hallusionbench", data, tmp_path / "out", settings)
    assert metrics is not None
    assert metrics["overall"]["num_questions"] == 6
    assert "6 of 7 questions (1 not asked, the first VS_chart_0_0_0_0: `images` are expected" in verdict(metrics)


def test_answers_about_other_pictures_of_the_same_names_are_refused(ours: Path, pope: Path, tmp_path: Path) -> None:
    settings = Settings(device="cpu", num_images=1)
    evaluate_official(ours, "pope", pope, tmp_path / "out", settings)
    moved = tmp_path / "moved"
    shutil.copytree(pope, moved)
    evaluate_official(ours, "pope", moved, tmp_path / "out", settings)  # the same pictures elsewhere
    made.picture_files(moved / "val2014", ["1.jpg", "2.jpg"], first_seed=7)
    with pytest.raises(ValueError, match=r"holds another run: 3 of its 3 answers are about .* other pictures"):
        evaluate_official(ours, "pope", moved, tmp_path / "out", settings)
    parquet = made.pope_parquet(_folder(tmp_path / "parquet"))
    evaluate_official(ours, "pope", parquet, tmp_path / "cells", settings)
    (path,) = parquet.rglob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    made.write_parquet(path, [row | {"image": made.cell(9)} for row in rows])
    with pytest.raises(ValueError, match="holds another run"):
        evaluate_official(ours, "pope", parquet, tmp_path / "cells", settings)


def test_a_model_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    found = SimpleNamespace(_commit_hash="abc123")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda name, **options: found)
    assert run._fingerprint("org/name") == "org/name (abc123)"
    found._commit_hash = None
    assert run._fingerprint("org/name") == "org/name"


def test_a_damaged_file_of_a_run_is_named(ours: Path, pope: Path, tmp_path: Path) -> None:
    settings = Settings(device="cpu", num_images=1)
    evaluate_official(ours, "pope", pope, tmp_path / "out", settings)
    answers, known = tmp_path / "out" / "answers.jsonl", tmp_path / "out" / "run.json"
    whole = answers.read_text()
    for damage, said in (("{\n", "line 4: not valid JSON"), ('{"a": 1}\n', "line 4: no answer with its key")):
        answers.write_text(whole + damage)
        with pytest.raises(ValueError, match=rf"answers.jsonl, {said}.*choose another --out"):
            evaluate_official(ours, "pope", pope, tmp_path / "out", settings)
    answers.write_text(whole)
    known.write_text("{")
    with pytest.raises(ValueError, match=r"run.json: not valid JSON .*choose another --out"):
        evaluate_official(ours, "pope", pope, tmp_path / "out", settings)


def test_files_that_cannot_be_read_are_left_out_and_said(ours: Path, pope: Path, tmp_path: Path) -> None:
    (pope / "notes.json").write_text('{"half')
    (pope / "empty.parquet").write_bytes(b"")
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu"))
    assert metrics is not None
    assert metrics["mean"]["num_questions"] == 12
    said = "2 damaged files left out, the first empty.parquet (cannot be read as parquet: "
    assert said in verdict(metrics)
    assert "notes.json (cannot be read as json: " in (tmp_path / "out" / "metrics.md").read_text()


def test_figures_come_with_paper_and_licence(ours: Path, pope: Path, tmp_path: Path) -> None:
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "out", Settings(device="cpu", num_images=1))
    assert metrics is not None
    facts = metrics["provenance"]
    assert (facts["paper"], facts["licence"]) == (BENCHMARKS["pope"].paper, BENCHMARKS["pope"].licence)


def test_pictures_may_lie_elsewhere_and_a_few_are_enough(ours: Path, pope: Path, tmp_path: Path) -> None:
    shutil.move(pope / "val2014", tmp_path / "pictures")
    settings = Settings(device="cpu", images=tmp_path / "pictures", num_images=1)
    metrics = evaluate_official(ours, "pope", pope, tmp_path / "out", settings)
    assert metrics is not None
    assert metrics["provenance"]["num_images"] == 1
    assert metrics["missing"]["num_questions"] == 0
    assert verdict(metrics).endswith("; 6 of 12 questions; 6 about pictures beyond --num-images")
    assert "6 questions are about pictures beyond `num_images`" in (tmp_path / "out" / "metrics.md").read_text()


def wrong(tmp_path: Path, *arguments: str) -> str:
    done = RUNNER.invoke(app, ["evaluate", "tiny", *arguments, "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code != 0
    assert isinstance(done.exception, ValueError), done.output
    assert not (tmp_path / "out").exists()
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_bad_input_is_one_line_before_anything_is_loaded(
    pope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_load", lambda *args: pytest.fail("a model was loaded"))
    data = ("--benchmark", "pope", "--data", str(pope))
    assert "no protocol 'theirs': choose one of official, lmms-eval, vlmevalkit" in wrong(
        tmp_path, *data, "--protocol", "theirs"
    )
    for name in ("poep", "POEP"):
        assert "Did you mean 'pope'?" in wrong(tmp_path, "--benchmark", name, "--data", str(pope))
    assert "no protocol 'theirs'" in wrong(tmp_path, "--benchmark", "POPE", "--data", str(pope), "--protocol", "theirs")
    assert "POPE needs --data: a directory with coco" in wrong(tmp_path, "--benchmark", "POPE")
    assert "pope needs --data: a directory with coco_pope_random.json" in wrong(tmp_path, "--benchmark", "pope")
    missing = wrong(tmp_path, "--benchmark", "pope", "--data", str(tmp_path / "nothing here"))
    assert "expected a directory, a file, or a hub id" in missing
    other = wrong(tmp_path, "--benchmark", "mmvp", "--data", str(pope))
    assert "holds no file of MMVP: found coco_pope_adversarial.json (question_id, image, text, label)" in other
    assert "expected the columns Correct Answer, Options, Question, image (the hub's Parquet)" in other
    shutil.rmtree(pope / "val2014")
    assert "no picture of the 12 questions of POPE is at hand: 1.jpg and 1 more are missing" in wrong(tmp_path, *data)
    assert "is no directory of pictures" in wrong(tmp_path, *data, "--images", str(tmp_path / "none"))
    (pope / "coco_pope_random.json").write_text(
        '{"question_id": 1, "image": "1.jpg", "text": "?", "label": "perhaps"}\n' * 2
    )
    assert "coco_pope_random.json, row 1 (the official JSON lines): the reference answer is 'perhaps'" in wrong(
        tmp_path, *data
    )
    for path in pope.glob("*.json"):
        path.write_text('{"question_id": 1, "im')
    assert "found coco_pope_adversarial.json (cannot be read as json: Unterminated" in wrong(tmp_path, *data)


def test_settings_of_the_other_kind_are_refused(pope: Path, tmp_path: Path) -> None:
    data = ("--benchmark", "pope", "--data", str(pope))
    kinds = "a benchmark by name takes --protocol, --images; scenes and datasets take --seed, --split, --parser"
    for option in (("--parser", "strict"), ("--seed", "1"), ("--split", "validation"), ("--correct-prior",)):
        assert f"{option[0]} cannot go with --data: {kinds}" in wrong(tmp_path, *data, *option)
    said = wrong(tmp_path, "--benchmark", "scenes", "--protocol", "official")
    assert f"--protocol goes only with --data: {kinds}" in said
    with pytest.raises(ValueError, match="evaluate has no setting 'parser': there are protocol, images"):
        agevlm.evaluate("tiny", "pope", out=tmp_path / "out", data=pope, parser="strict")


def test_a_picture_may_stand_in_another_row_of_a_tsv(tmp_path: Path) -> None:
    made.mmstar_tsv(tmp_path)
    (own,) = open_source(tmp_path).tables
    rows = [dict(row) for row in own.rows]
    rows[3]["image"] = rows[1]["index"]
    made.write_delimited(tmp_path / "MMStar.tsv", rows)
    (table,) = open_source(tmp_path).tables
    assert table.rows[3]["image"] == rows[1]["image"]


def test_a_hub_id_without_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    said = wrong(tmp_path, "--benchmark", "pope", "--data", "lmms-lab/POPE")
    assert said.startswith("the data set 'lmms-lab/POPE' cannot be had from the hub (Name or service not known)")
    assert "name a directory that holds its files" in said


def test_what_each_benchmark_lacks_is_said(tmp_path: Path) -> None:
    for name in ("amber", "chair", "cv-bench", "realworldqa", "mmstar", "hallusionbench", "repope"):
        directory = _folder(tmp_path / name)
        made.write_lines(directory / "other.jsonl", [{"a": 1, "b": 2}])
        said = wrong(tmp_path, "--benchmark", name, "--data", str(directory))
        assert f"{directory} holds no file" in said
        assert "other.jsonl (a, b)" in said
        assert "expected" in said


def test_protocols_that_need_other_files_say_so(tmp_path: Path) -> None:
    tsv = made.mmstar_tsv(_folder(tmp_path / "tsv"))
    assert "choose --protocol vlmevalkit" in wrong(tmp_path, "--benchmark", "mmstar", "--data", str(tsv))
    parquet = made.mmstar(_folder(tmp_path / "parquet"))
    said = wrong(tmp_path, "--benchmark", "mmstar", "--data", str(parquet), "--protocol", "vlmevalkit")
    assert "choose --protocol official or lmms-eval" in said
    tsv = made.hallusionbench_tsv(_folder(tmp_path / "figures"))
    asked = ("--benchmark", "hallusionbench", "--data")
    said = wrong(tmp_path, *asked, str(tsv), "--protocol", "rule-based")
    assert "counts questions without a figure too, and these files have none" in said
    hub = made.hallusionbench_parquet(_folder(tmp_path / "hub"))
    (hub / "data" / "image-00000-of-00001.parquet").unlink()
    assert "no question of HallusionBench that the protocol vlmevalkit is about" in wrong(tmp_path, *asked, str(hub))
    coco = made.chair(_folder(tmp_path / "coco"))
    (coco / "synonyms.txt").unlink()
    assert "put synonyms.txt of LisaAnne/Hallucination" in wrong(tmp_path, "--benchmark", "chair", "--data", str(coco))
