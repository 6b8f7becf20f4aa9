"""Scores of given answers: by hand, and beside the reference's rule restated another way on random answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agevlm.evaluation.official import amber, chair
from agevlm.evaluation.official.benchmark import Marked
from agevlm.evaluation.official.files import open_source
from agevlm.evaluation.official.measures import records
from agevlm.evaluation.official.table import BENCHMARKS

from . import made

ANSWERS = ["yes", "no", "Yes.", "No, none", "A", "(B)", "C", "a fish", "", "Yes", "No", "the answer is D", "left", "2"]


def marked(tmp_path: Path, name: str, protocol: str, answers: Sequence[str], write: Any = None) -> list[Marked]:
    """The questions of the made files, marked with these answers in turn."""
    benchmark = BENCHMARKS[name]
    chosen = benchmark.protocol(protocol)
    questions = benchmark.read(open_source((write or made.ALL[name])(tmp_path))).questions
    questions = [question for question in questions if chosen.keep(question)]
    return [chosen.mark(q, a) for q, a in zip(questions, answers * len(questions), strict=False)]


def figures(name: str, protocol: str, marks: Sequence[Marked]) -> dict[str, dict[str, Any]]:
    return records(BENCHMARKS[name].protocol(protocol).figures(marks))


def test_pope_by_hand(tmp_path: Path) -> None:
    # adversarial, popular, random (the order of the files), in each: yes, no, yes, no are right
    answers = ["yes", "no", "no", "no", "yes", "yes", "yes", "I see none", "Yes.", "it is not there", "no", "yes"]
    found = figures("pope", "official", marked(tmp_path, "pope", "official", answers))
    assert found["adversarial"]["accuracy"] == pytest.approx(3 / 4)
    assert found["adversarial"]["precision"] == 1
    assert found["adversarial"]["recall"] == pytest.approx(1 / 2)
    assert found["adversarial"]["f1"] == pytest.approx(2 / 3)
    assert found["popular"]["yes_ratio"] == 1  # an answer without yes or no is taken for yes
    assert found["popular"]["unparsed_ratio"] == pytest.approx(1 / 4)
    assert found["random"]["accuracy"] == pytest.approx(2 / 4)
    assert found["mean"]["accuracy"] == pytest.approx((3 / 4 + 2 / 4 + 2 / 4) / 3)
    assert found["mean"]["num_questions"] == 12
    low, high = found["mean"]["accuracy_interval"]
    assert 0 <= low <= found["mean"]["accuracy"] <= high <= 1


def test_pope_as_the_official_script_counts(tmp_path: Path) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        marks = marked(tmp_path / str(seed), "pope", "official", rng.choices(ANSWERS, k=12), write=_in_new(made.pope))
        found = figures("pope", "official", marks)
        for split in ("random", "popular", "adversarial"):
            own = [m for m in marks if m.question.facts["split"] == split]
            said = [_official_pope(m.answer) for m in own]
            true = [m.question.answer == "yes" for m in own]
            pairs = list(zip(said, true, strict=True))
            tp, fp, tn, fn = (pairs.count(p) for p in ((True, True), (True, False), (False, False), (False, True)))
            assert found[split]["accuracy"] == pytest.approx((tp + tn) / 4)
            assert found[split]["yes_ratio"] == pytest.approx(sum(said) / 4)
            assert found[split]["precision"] == (pytest.approx(tp / (tp + fp)) if tp + fp else None)
            assert found[split]["recall"] == pytest.approx(tp / (tp + fn))


def _in_new(write: Any) -> Any:
    def write_new(directory: Path) -> Path:
        directory.mkdir()
        return write(directory)

    return write_new


def _official_pope(answer: str) -> bool:
    first = answer[: answer.find(".")] if "." in answer else answer
    return all(word not in ("No", "no", "not") for word in first.replace(",", "").split(" "))


def test_pope_as_lmms_eval_counts(tmp_path: Path) -> None:
    answers = ["yes", "no", "a house", "Yes.", "yes", "yes", "no", "no", "no", "no", "maybe", "no"]
    marks = marked(tmp_path, "pope", "lmms-eval", answers)
    found = figures("pope", "lmms-eval", marks)["all"]
    gold = [m.question.answer for m in marks]
    pairs = list(zip(gold, [a.lower().strip() for a in answers], strict=True))
    tp, fp, fn = pairs.count(("yes", "yes")), pairs.count(("no", "yes")), pairs.count(("yes", "no"))
    assert (tp, fp, fn) == (2, 1, 2)  # two yes's were answered with something else: no missed yes's to lmms-eval
    assert found["precision"] == pytest.approx(tp / (tp + fp))
    assert found["recall"] == pytest.approx(tp / (tp + fn))
    assert found["f1"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / 12)
    assert found["yes_ratio"] == pytest.approx(1 / 2)  # of the references
    assert found["unparsed_ratio"] == pytest.approx(3 / 12)
    nothing = figures("pope", "lmms-eval", marked(tmp_path, "pope", "lmms-eval", ["nothing"]))["all"]
    assert (nothing["precision"], nothing["recall"], nothing["f1"]) == (0, 0, 0)


def test_pope_as_vlmevalkit_counts(tmp_path: Path) -> None:
    # a question of several splits is one row of VLMEvalKit's file, and counts once a split in "Overall"
    answers = ["yes", "no", "no", "no", "yes", "no", "no", "no", "yes", "no", "no", "no"]
    marks = marked(tmp_path, "pope", "vlmevalkit", answers)
    found = figures("pope", "vlmevalkit", marks)
    assert found["overall"]["num_questions"] == 12
    assert found["distinct"]["num_questions"] == len({(m.question.unit, m.question.text) for m in marks}) == 6
    assert found["overall"]["recall"] == pytest.approx(1 / 2)
    assert found["distinct"]["recall"] == pytest.approx(1 / 2)
    assert found["overall"]["accuracy"] == pytest.approx(9 / 12)
    assert found["distinct"]["accuracy"] == pytest.approx(5 / 6)


def test_cv_bench_weighs_the_sources_or_does_not(tmp_path: Path) -> None:
    # references C, A, B | A, B, B: right are ADE20K 1 of 1, COCO 1 of 2, Omni3D 1 of 3
    answers = ["(C)", "A", "A", "B", "(B) boat", "no idea"]
    marks = marked(tmp_path, "cv-bench", "official", answers)
    assert [m.correct for m in marks] == [True, True, False, False, True, False]
    official = figures("cv-bench", "official", marks)
    assert official["2D"]["accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert official["3D"]["accuracy"] == pytest.approx(1 / 3)
    assert official["overall"]["accuracy"] == pytest.approx(((1 + 1 / 2) / 2 + 1 / 3) / 2)
    assert official["plain"]["accuracy"] == pytest.approx(3 / 6)
    assert official["overall"]["unparsed_ratio"] == pytest.approx(1 / 6)
    lmms = figures("cv-bench", "lmms-eval", marked(tmp_path, "cv-bench", "lmms-eval", answers))
    assert lmms["overall"]["accuracy"] == pytest.approx(3 / 6)
    assert lmms["2D"]["accuracy"] == pytest.approx(2 / 3)
    kit = figures("cv-bench", "vlmevalkit", marked(tmp_path, "cv-bench", "vlmevalkit", answers))
    assert kit["2D"]["accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert "overall" not in kit  # two benchmarks there


def test_cv_benchs_parts_are_benchmarks_too(tmp_path: Path) -> None:
    marks = marked(tmp_path, "cv-bench-3d", "official", ["(A)"])
    assert {m.question.facts["type"] for m in marks} == {"3D"}
    assert figures("cv-bench-3d", "official", marks)["3D"]["accuracy"] == pytest.approx(1 / 3)
    (tmp_path / "test_3d.parquet").unlink()
    with pytest.raises(ValueError, match="no question of CV-Bench 3D"):
        BENCHMARKS["cv-bench-3d"].read(open_source(tmp_path))


@pytest.mark.parametrize(("protocol", "write"), [("cambrian", made.mmvp), ("lmms-eval", made.mmvp_parquet)])
def test_mmvp_counts_pairs(tmp_path: Path, protocol: str, write: Any) -> None:
    marks = marked(tmp_path, "mmvp", protocol, ["A", "(b)", "a", "(A)"], write)  # references a, b | b, a
    assert [m.correct for m in marks] == [True, True, False, True]
    found = figures("mmvp", protocol, marks)["all"]
    assert found["pair_accuracy"] == pytest.approx(1 / 2)
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["num_pairs"] == 2
    assert figures("mmvp", protocol, marks[:3])["all"]["num_pairs"] == 1  # half a pair is none


def test_mmvp_cambrian_takes_the_options_words(tmp_path: Path) -> None:
    marks = marked(tmp_path, "mmvp", "cambrian", ["red", "The answer is: blue", "Answer: blue.", "A. red"])
    assert [m.parsed for m in marks] == ["A", None, "B", None]  # behind "answer is" a colon is left, as there


def test_mmvp_pairs_as_cambrians_running_count(tmp_path: Path) -> None:
    for seed in range(30):
        answers = random.Random(seed).choices(["a", "b"], k=4)
        marks = marked(tmp_path / str(seed), "mmvp", "cambrian", answers, write=_in_new(made.mmvp))
        count = 0
        for number, mark in enumerate(marks):
            if mark.correct and (number % 2 == 0 or count % 2 == 1):
                count += 1
            elif not mark.correct and number % 2 == 1 and count % 2 == 1:
                count -= 1
        assert figures("mmvp", "cambrian", marks)["all"]["pair_accuracy"] == pytest.approx(count / 4)


def test_realworldqa_letters_and_words(tmp_path: Path) -> None:
    marks = marked(tmp_path, "realworldqa", "lmms-eval", ["A. fish", "It is C", "2.", "LEFT"])
    assert [m.correct for m in marks] == [True, True, True, True]
    found = figures("realworldqa", "lmms-eval", marks)
    assert (found["letter"]["num_questions"], found["word"]["num_questions"]) == (2, 2)
    marks = marked(tmp_path, "realworldqa", "cambrian", ["A. fish", "The answer is C", "2 fish.", "to the left"])
    assert [m.correct for m in marks] == [False, True, True, False]


def test_mmstar_average_of_kinds_or_of_questions(tmp_path: Path) -> None:
    answers = ["A", "(b", "the answer is c", "A"]  # geometry 2 of 2, statistical 1 of 1, common 0 of 1
    official = figures("mmstar", "official", marked(tmp_path, "mmstar", "official", answers))
    assert official["average"]["accuracy"] == pytest.approx(3 / 4)
    answers = ["A", "A", "C", "A"]  # 1 of 2, 1 of 1, 0 of 1
    lmms = figures("mmstar", "lmms-eval", marked(tmp_path, "mmstar", "lmms-eval", answers))
    assert lmms["average"]["accuracy"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert lmms["math"]["accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    other = tmp_path / "tsv"
    other.mkdir()
    kit = marked(other, "mmstar", "vlmevalkit", ["fish", "The boat", "C", "A or D"], made.mmstar_tsv)
    assert [m.correct for m in kit] == [True, True, True, False]
    assert figures("mmstar", "vlmevalkit", kit)["average"]["accuracy"] == pytest.approx(3 / 4)
    prompt = BENCHMARKS["mmstar"].protocol("vlmevalkit").prompt(kit[0].question)
    assert prompt.startswith("Question: what is there 0 ?\nOptions:\nA. fish\nB. boat\n")


def test_hallusionbench_counts_questions_figures_and_pairs(tmp_path: Path) -> None:
    # all: yes, no | no, yes | yes (no figure) | yes | no
    answers = ["yes", "no", "yes", "yes", "I cannot know", "yes", "no"]
    own = figures("hallusionbench", "rule-based", marked(tmp_path, "hallusionbench", "rule-based", answers))
    overall = own["overall"]
    assert overall["num_questions"] == 7
    assert overall["aAcc"] == pytest.approx(6 / 7)  # not to know without a figure is right
    assert overall["fAcc"] == pytest.approx(3 / 4)  # VD 0 right, VD 1 wrong, VS 1 and 2 right; VS 0 is no figure
    assert overall["qAcc"] == pytest.approx(2 / 3)  # VD question 0 wrong, VD 1 right, VS 0 right
    kit_answers = [a for a, row in zip(answers, made.HALLUSION, strict=True) if row[2] != "0"]
    kit = figures("hallusionbench", "vlmevalkit", marked(tmp_path, "hallusionbench", "vlmevalkit", kit_answers))
    assert kit["overall"]["num_questions"] == 6
    assert kit["overall"]["aAcc"] == pytest.approx(5 / 6)
    assert kit["overall"]["fAcc"] == pytest.approx(3 / 4)
    assert kit["overall"]["qAcc"] == pytest.approx(2 / 3)
    assert kit["VD_illusion"]["fAcc"] == pytest.approx(1 / 2)
    assert kit["overall"]["average"] == pytest.approx((5 / 6 + 3 / 4 + 2 / 3) / 3)


def test_hallusionbench_as_the_repository_counts(tmp_path: Path) -> None:
    for seed in range(20):
        answers = random.Random(seed).choices(["yes", "no", "who knows"], k=7)
        marks = marked(tmp_path / str(seed), "hallusionbench", "rule-based", answers, _in_new(made.hallusionbench))
        found = figures("hallusionbench", "rule-based", marks)["overall"]
        of_figure: Mapping[str, list[bool]] = defaultdict(list)
        of_pair: Mapping[str, list[bool]] = defaultdict(list)
        right = []
        for row, answer in zip(made.HALLUSION, answers, strict=True):
            category, subcategory, _, of_set, figure, question, truth = row
            judged = 2 if answer == "who knows" else int((answer == "yes") == (truth == "1"))
            without = category == "VS" and figure == "0"
            correct = judged == 1 or (without and judged == 2)
            right.append(correct)
            if not without:
                of_figure[f"{category}{subcategory}{of_set}{figure}"].append(correct)
            of_pair[f"{category}{subcategory}{of_set}{question}"].append(correct)
        assert found["aAcc"] == pytest.approx(sum(right) / 7)
        assert found["fAcc"] == pytest.approx(sum(map(all, of_figure.values())) / len(of_figure))
        assert found["qAcc"] == pytest.approx(sum(map(all, of_pair.values())) / len(of_pair))


def test_amber_counts_the_answer_no(tmp_path: Path) -> None:
    answers = ["Yes", "No.", "yes", "no", "No", "No"]  # truths: yes, no | no | no | no | yes
    marks = marked(tmp_path, "amber", "official", answers)
    found = figures("amber", "official", marks)
    assert found["all"]["accuracy"] == pytest.approx(4 / 6)
    precision, recall = round(3 / 4, 3), round(3 / 4, 3)
    assert found["all"]["precision"] == pytest.approx(3 / 4)
    assert found["all"]["f1"] == pytest.approx(2 * precision * recall / (precision + recall + 0.0001))
    assert found["existence"]["f1"] == pytest.approx(2 / 2.001)
    assert found["attribute"]["recall"] == pytest.approx(2 / 3)
    assert found["state"]["accuracy"] == 1
    assert found["relation"]["accuracy"] == 0
    kit = figures("amber", "vlmevalkit", marked(tmp_path / "kit", "amber", "vlmevalkit", answers, _in_new(made.amber)))
    assert kit["average"]["accuracy"] == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert amber.AMBER.protocol("vlmevalkit").prompt(marks[0].question).endswith("red?\nPlease answer yes or no.")


def test_chair_counts_captions_and_names(tmp_path: Path) -> None:
    answers = ["A man with two dogs sits on a bench.", "Ducks beside a stop sign and nothing else."]
    marks = marked(tmp_path, "chair", "official", answers)
    assert [m.parsed for m in marks] == ["person, dog, bench", "bird, stop sign"]
    found = figures("chair", "official", marks)["all"]
    assert found["chair_s"] == pytest.approx(1 / 2)
    assert found["chair_i"] == pytest.approx(1 / 5)
    assert found["recall"] == 1
    plain = figures("chair", "own-words", marked(tmp_path, "chair", "own-words", answers))["all"]
    assert plain["chair_s"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("A baby bird and an adult bear.", ["bird", "bear"]),
        ("The toilet seat is up; the seat of the toilet.", ["toilet", "toilet"]),
        ("A passenger train. A bow tie.", ["train", "tie"]),
        ("Three wine glasses and teddy bears", ["wine glass", "teddy bear"]),
        ("Puppies, people and children.", ["dog", "person", "person"]),
        ("Policemen, gentlemen and two persons", ["person"] * 3),
        ("Busses beside buses", ["bus", "bus"]),  # codespell:ignore busses
        ("Calves of buffaloes, buffalos and a ski beside skis.", ["cow", "cow", "cow", "skis", "skis"]),
        ("A cheesecake, cupcakes and a cake on a motor bike.", ["cake", "cake"]),  # as the list is parted there
        ("Motor cycles, scooters and bikes.", ["motorcycle", "motorcycle", "bicycle"]),
        ("A catalogue of benches-in-law", []),
        ("", []),
    ],
)
def test_chair_reads_names(tmp_path: Path, caption: str, names: list[str]) -> None:
    made.chair(tmp_path)
    assert chair.Synonyms.read(tmp_path / "synonyms.txt")(caption) == names


def test_an_interval_draws_pictures_and_holds_the_figure(tmp_path: Path) -> None:
    for name, benchmark in BENCHMARKS.items():
        for protocol in benchmark.protocols:
            write = made.mmstar_tsv if (name, protocol.name) == ("mmstar", "vlmevalkit") else made.ALL[name]
            directory = tmp_path / name / protocol.name
            directory.mkdir(parents=True)
            marks = marked(directory, name, protocol.name, ANSWERS, write)
            for section, figure in figures(name, protocol.name, marks).items():
                for key, value in figure.items():
                    if isinstance(value, float) and not key.startswith("num_"):
                        low, high = figure[f"{key}_interval"]
                        assert low <= value + 1e-9 and value <= high + 1e-9, (name, protocol.name, section, key)
            assert all(
                name.rpartition(".")[2] in figures(benchmark.name, protocol.name, marks)[name.rpartition(".")[0]]
                for name in protocol.headline
            )
