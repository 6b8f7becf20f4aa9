"""The report is one file that stands alone, escapes everything, names what is missing; cases are chosen by rule."""

from __future__ import annotations

import io
import json
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from agevlm.analysis.gallery import chosen_because
from agevlm.analysis.gallery_files import load_gallery, save_gallery
from agevlm.analysis.report import GalleryItem, _caution, _finding, choose_cases, write_report

from .fakes import make_image, make_look, make_metrics, make_predictions, write_run

VOID = {"img", "meta", "source"}


class Page(HTMLParser):
    """Checks that elements close in order; keeps tags, addresses and text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(content)
        assert not self.open, self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.addresses += [value or "" for key, value in attributes if key in ("src", "srcset", "href")]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data


def make_item(**changes: object) -> GalleryItem:
    look = make_look()
    mask = np.zeros((96, 96), dtype=bool)
    mask[10:40, 20:60] = True
    values = {
        "image": make_image(),
        "question": look.question,
        "answer": look.answer,
        "truth": "yes",
        "kind": "pope.random",
        "correct": False,
        "look": look,
        "masks": {"boat": mask},
        "id": "q0",
    }
    return GalleryItem(**{**values, **changes})  # type: ignore[arg-type]


def test_the_report_stands_alone(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "first"), [make_item(), make_item(correct=True), make_item(correct=None)])
    assert path == tmp_path / "first" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "url(" not in path.read_text(encoding="utf-8")
    for expected in ("rarely sees what is not there", "0.912", "0.704", "0.966", "0.877", "cross_attention", "56,789"):
        assert expected in page.text
    assert "Not on this page" not in page.text
    assert len(re.findall(r"✗ wrong|✓ right|– unscored", page.text)) == 3


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    look = make_look(question=f"a boat {evil}", answer=evil)
    item = make_item(question=look.question, answer=evil, truth=evil, kind=evil, look=look, id=evil)
    content = write_report(write_run(tmp_path / "<b>run&"), [item]).read_text(encoding="utf-8")
    page = Page(content)
    assert evil in page.text and evil not in content
    assert "<script>" in page.text and "script" not in page.tags
    assert "<b>run&" in page.text and "<b>run" not in content


def test_no_file_of_a_run_can_add_an_element(tmp_path: Path) -> None:
    """The same run with plain and with evil words in every text that its files hold gives the same elements."""
    evil = "\"><script>alert('1')</script>{{ 7 * 7 }}</style>&lt;b&gt;"

    def tags(name: str, word: str) -> list[str]:
        run = write_run(tmp_path / name)
        stage = {"name": word, "steps": word, "seconds": word, "trainable_modules": {word: 1, "other": word}}
        (run / "stages.json").write_text(json.dumps([stage]), encoding="utf-8")
        environment = {"seed": word, "git": word, "time": word, word: {word: [word]}}
        (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
        metrics = {**make_metrics(), "provenance": {word: word}, word: {word: word}}
        (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        (run / "recipe.yaml").write_text(f"name: {word}", encoding="utf-8")
        rows = [{"id": "q0", "kind": word, "image": word, "correct": None, "words": [{"phrase": word, "mass": 0.1}]}]
        (run / "predictions.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
        look = make_look(question=f"a boat {word}", answer=f"{word} no boat {word}")
        item = make_item(question=look.question, answer=look.answer, truth=word, kind=word, look=look)
        page = Page(write_report(run, [item]).read_text(encoding="utf-8"))
        assert page.text.count(word) >= 15
        return page.tags

    assert tags("evil", evil) == tags("plain", "words")


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "stages.json").write_text('[{"name": ', encoding="utf-8")
    os.mkfifo(tmp_path / "log.jsonl")
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    for name in ("recipe.yaml", "log.jsonl", "stages.json", "metrics.json", "predictions.jsonl", "environment.json"):
        assert name in text
    assert "it holds a list, not a dict" in text
    assert "a pipe or a device" in text
    assert "the gallery: no cases were given" in text
    assert "No verdict" in text


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no run"):
        write_report(tmp_path / "empty")
    with pytest.raises(ValueError, match="no directory"):
        write_report(tmp_path / "nowhere")


def test_partial_figures_make_a_partial_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(
        '{"pope": {"random": {"accuracy": 0.5}, "popular": null}, "colour": null, "biased": []}', encoding="utf-8"
    )
    (tmp_path / "stages.json").write_text('[{"name": "align"}]', encoding="utf-8")
    (tmp_path / "log.jsonl").write_text('{"stage": "align", "lm_loss": null}\n', encoding="utf-8")
    text = Page(write_report(tmp_path, out=tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "0.500" in text and "align" in text
    assert not (tmp_path / "report.html").exists()


def test_an_item_may_be_bytes_and_need_not_have_a_look(tmp_path: Path) -> None:
    png = io.BytesIO()
    make_image(640, 480).save(png, "PNG")
    item = make_item(image=png.getvalue(), look=None, masks=None, answer="")
    text = Page(write_report(tmp_path, [item]).read_text(encoding="utf-8")).text
    assert "nothing" in text


def test_a_report_can_be_written_again_from_the_saved_gallery(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    items = [make_item(), make_item(look=None, masks=None, id="q1")]
    fresh = write_report(run, items).read_text(encoding="utf-8")
    save_gallery(run, items)
    again = write_report(run).read_text(encoding="utf-8")
    assert again == fresh
    loaded = load_gallery(run)
    assert loaded[0].look is not None and loaded[0].look.words[1].null_mass == 0.25
    save_gallery(run, items[:1])
    assert len(load_gallery(run)) == 1 and not (run / "gallery" / "001.png").exists()


def test_cases_depend_on_the_predictions_and_not_on_their_order() -> None:
    rows = make_predictions()
    shuffled = random.Random(3).sample(rows, len(rows))
    assert choose_cases(rows) == choose_cases(shuffled)
    assert choose_cases([{**row, "id": f"other{row['id']}"} for row in rows]) != choose_cases(rows)


def test_cases_are_right_and_wrong_of_each_kind_and_the_worst_by_attention() -> None:
    rows = {row["id"]: row for row in make_predictions()}
    chosen = chosen_because(list(rows.values()), 24)
    assert len(chosen) == 24
    worst = [identity for identity, reason in chosen.items() if reason.startswith("least attention")]
    masses = sorted({row["words"][0]["mass"] for row in rows.values()} - {None})
    assert len(worst) == 4
    assert {rows[identity]["words"][0]["mass"] for identity in worst} <= set(masses[:3])
    others = [rows[identity] for identity in chosen if identity not in worst]
    assert {(row["kind"], row["correct"]) for row in others[:6]} == {
        (kind, correct) for kind in ("pope.random", "counting", "colour") for correct in (True, False)
    }
    assert len({rows[identity]["image"] for identity in chosen}) == 24


def test_the_page_says_the_rule_only_where_it_was_followed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    followed = write_report(run, [make_item(id=identity) for identity in choose_cases(make_predictions(), 6)])
    text = Page(followed.read_text(encoding="utf-8")).text
    assert "chosen by rule, not by hand" in text and "least attention on the thing: 2%" in text
    picked = Page(write_report(run, [make_item()]).read_text(encoding="utf-8")).text
    assert "chosen by rule, not by hand" not in picked and "caller of the report" in picked


def test_few_predictions_are_all_shown_and_unscored_ones_are_not_right_or_wrong() -> None:
    rows = [{"id": str(number), "kind": "counting", "correct": number > 1} for number in range(4)]
    assert sorted(choose_cases(rows, 24)) == ["0", "1", "2", "3"]
    assert choose_cases([{"id": "a", "kind": "caption", "correct": None}]) == []
    assert choose_cases([]) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"pope": {"adversarial": {"accuracy": 0.9, "accuracy_interval": ["a", null]}}}'),
        ("stages.json", '[{"seconds": 1e999, "steps": 1e999}, 5]'),
        ("log.jsonl", '{"lm_loss": 1.0, "step": []}\n'),
        ("predictions.jsonl", '{"nothing": 1}\n'),
        ("gallery/items.json", '[{"name": "000"}]'),
        ("environment.json", '{"git": "\\ud83d"}'),
        ("metrics.json", "[" * 50_000),
    ],
)
def test_values_that_are_damaged_are_named_on_the_page(name: str, content: str, tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    page = write_report(tmp_path).read_text("utf-8")
    assert "damaged" in page or "cannot be read" in page or "ud83d" in page


def written(run: Path, **metrics: object) -> str:
    """The text of the page of a run with these figures in place of its own."""
    write_run(run)
    (run / "metrics.json").write_text(json.dumps({**make_metrics(), **metrics}), encoding="utf-8")
    return " ".join(Page(write_report(run).read_text(encoding="utf-8")).text.split())


@pytest.mark.parametrize(
    ("yes", "false_yes", "missed", "unparsed", "finding"),
    [
        (0.0, 0.0, 1.0, 0.0, "says no to nearly everything"),
        (0.97, 0.95, 0.01, 0.0, "says yes to nearly everything"),
        (0.5, 0.08, 0.08, 0.0, "rarely sees what is not there"),
        (0.56, 0.2, 0.08, 0.0, "at times sees what is not there"),
        (0.65, 0.4, 0.1, 0.0, "often sees what is not there"),
        (0.3, 0.05, 0.45, 0.0, "rarely sees what is not there and often misses what is there"),
        (0.0, 0.0, 1.0, 0.9, "often says neither yes nor no"),
    ],
)
def test_the_verdict_tells_false_yes_from_false_no(
    yes: float, false_yes: float, missed: float, unparsed: float, finding: str
) -> None:
    assert _finding(yes, false_yes, missed, unparsed) == finding


@pytest.mark.parametrize(
    ("interval", "num", "caution"),
    [
        ([0.5, 0.5], 28, "On 28 questions that cannot be told from guessing."),
        ([0.45, 0.7], 1600, "On 1,600 questions that cannot be told from guessing."),
        ([0.8, 0.95], 28, "These are 28 questions only."),
        ([0.8, 0.95], 1600, None),
    ],
)
def test_the_verdict_warns_of_guesses_and_of_few_questions(
    interval: list[float], num: int, caution: str | None
) -> None:
    assert _caution({"accuracy_interval": interval, "num_questions": num}) == caution


def test_a_model_that_says_no_to_everything_is_said_to_do_so(tmp_path: Path) -> None:
    nothing = {
        "accuracy": 0.5,
        "accuracy_interval": [0.5, 0.5],
        "yes_ratio": 0.0,
        "false_yes_ratio": 0.0,
        "recall": 0.0,
    }
    text = written(tmp_path, pope={"adversarial": {**nothing, "num_questions": 28}})
    assert "It says no to nearly everything: 50.0% of the adversarial questions right, with a yes to 0.0% of" in text
    assert "to 0.0% of those about what is. On 28 questions that cannot be told from guessing. For 96.6%" in text
    assert "“rarely” up to 10% of the questions that allow it, “at times” up to 25%" in text
    assert "0.500 to 0.500" not in text and "±0.000" not in text


def test_the_top_of_the_page_shows_what_was_trained_and_asked(tmp_path: Path) -> None:
    provenance = {"benchmark": "my photographs", "num_questions": 84, "num_images": 14, "not_trained": ["counting"]}
    perplexity = {"before": 46794.1, "after": 15.03}
    text = written(tmp_path / "own", provenance=provenance, text_perplexity=perplexity)
    head, _, rest = text.partition("POPE asks")
    assert "measured on 84 questions about 14 pictures" in head
    assert "Colour" in head and "Counting" not in head and "Counting, accuracy, not trained" in rest
    assert "15.03 from 46,794.10 lower is better" in head
    assert "+2.9%: lower is better" in written(tmp_path / "scenes")


def test_only_scenes_are_called_scenes(tmp_path: Path) -> None:
    assert "Test scenes" in written(tmp_path / "scenes", provenance={"benchmark": "scenes"})
    metrics = {name: part for name, part in make_metrics().items() if name != "biased"}
    run = write_run(tmp_path / "own")
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "Test pictures" in text and "test pictures" in text and "est scenes" not in text


def test_the_probe_of_a_run_on_own_data_stands_beside_its_answers(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    scores = {"accuracy": 0.617, "accuracy_interval": [0.5, 0.7], "num_questions": 20}
    probe = {"pope": {"random": scores}, "num_pictures": {"train": 20, "test": 4}}
    (run / "probe.json").write_text(json.dumps(probe), encoding="utf-8")
    text = " ".join(Page(write_report(run).read_text(encoding="utf-8")).text.split())
    assert re.search("random, linear probe ?0.617 ±0.100", text)
    assert "measured on the 4 validation pictures, not on the test pictures" in text
