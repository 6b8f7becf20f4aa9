"""The pages of a comparison: rows from its file, what is missing left out, Markdown and HTML alike."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agevlm.comparison.analyses import breakdown_section
from agevlm.comparison.document import Page, Plot, Table, Text, markdown
from agevlm.comparison.groups import groups_section, winner
from agevlm.comparison.page import AGAIN, INDEX, Figures, build_site, load_figures, write_index, write_page
from agevlm.comparison.plots import Arm, Row, arms_of, colour_of, interval_plot
from agevlm.comparison.readings import ERROR, Reading, difference, percent, reading, signed, written

from .fakes import TITLES, estimate, make_analyses, make_content, make_groups, make_longer

EVERY_PLOT = {"error", "curves", "longer", "breakdown", "reliability", "similarity", "ablations"}
EVERY_PAGE = ["arms", "claims", "hallucination", "attention", "skills", "differences", "training", "costs"]


def make_png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    return data.getvalue()


def make_everything() -> Figures:
    return Figures({**make_content(), **make_analyses()}, [make_longer(), make_groups()], make_png())


def tables(page: Page) -> dict[str, Table]:
    """Section and caption → table."""
    return {f"{s.title}/{b.caption}": b for s in page.sections for b in s.blocks if isinstance(b, Table)}


def texts(page: Page) -> list[str]:
    return [block.content for block in page.blocks if isinstance(block, Text)]


# ---------------------------------------------------------------------------------------------------------- figures


def test_figures_are_written_with_their_interval() -> None:
    content = make_content()
    assert written(reading(content, "arms.age.pope.adversarial.accuracy")) == "0.900 (0.890 to 0.910)"
    error = reading(content, f"arms.age.{ERROR}")
    assert error is not None
    assert (error.mean, error.low, error.high) == pytest.approx((0.1, 0.09, 0.11))
    assert signed(Reading(-0.0001, -0.02, 0.01)) == "0.000 (−0.020 to +0.010)"
    assert written(Reading(0.5)) == "0.500"
    assert percent(Reading(0.355, 0.2, None)) == "36 % (20 to ∞ %)"
    assert reading(content, "arms.age.nothing") is None and written(None) == "–"


def test_a_difference_is_read_both_ways_round() -> None:
    content = make_content({"one": 0.5, "two": 0.75})
    content["differences"]["one"]["two"]["pope"]["adversarial"]["accuracy"] |= {"low": None, "high": -0.2}
    assert difference(content, "one", "two") == Reading(-0.25, None, -0.2, (-0.255, -0.25, -0.245))
    assert difference(content, "two", "one") == Reading(0.25, 0.2, None, (0.255, 0.25, 0.245))


@pytest.mark.parametrize(("num_arms", "plotted"), [(8, True), (9, False)])
def test_more_arms_than_an_eye_tells_apart_are_in_tables_alone(num_arms: int, plotted: bool) -> None:
    accuracy = {f"arm_{number}": 0.9 for number in range(num_arms)}
    found = breakdown_section({**make_content(accuracy), **make_analyses(accuracy)})
    assert found is not None
    assert any(isinstance(block, Plot) for block in found.blocks) == plotted
    assert all(len(block.rows) == num_arms for block in found.blocks if isinstance(block, Table))


def test_an_arm_has_one_colour_in_comparisons_that_extend_one_another() -> None:
    recipe = {"titles": {"one": "One", "two": "Two", "three": "Three"}}
    colours = [
        {arm: colour_of(drawn, "light") for arm, drawn in arms_of(make_content(accuracy) | recipe).items()}
        for accuracy in ({"one": 0.5, "two": 0.5}, {"two": 0.5, "three": 0.5})
    ]
    assert colours[0]["two"] == colours[1]["two"] and len({*colours[0].values(), *colours[1].values()}) == 3


# ---------------------------------------------------------------------------------------------------------- summary


def test_the_summary_has_a_table_three_plots_and_what_holds_and_does_not() -> None:
    summary = build_site(make_everything()).summary
    drawn = [block.name for block in summary.blocks if isinstance(block, Plot) or hasattr(block, "png")]
    assert drawn == ["error", "curves", "attention"]
    (main,) = (block for block in summary.head if isinstance(block, Table))
    assert main.headers[-1] == "error over that of cross-attention, unguided"
    assert [row[0] for row in main.rows] == list(TITLES.values())
    assert main.rows[-1] == [TITLES["age_plus"], "0.050 (0.040 to 0.060)", "0.970", "2.70", "13 % (10 to 16 %)"]
    found = tables(summary)
    assert [row[0] for row in found["What holds/"].rows] == [
        "Looks away",
        "Null token",
        "age errs less",
        "age is no worse (concatenation, pooled and guided)",
        "age points",
    ]
    assert [row[0] for row in found["What does not/"].rows] == [
        "age errs less than the best (concatenation, pooled and guided)"
    ]
    assert summary.verdict.endswith("Of 6 claims made beforehand, 5 hold. Of 4 claims added later, 4 hold.")


def test_what_a_recipe_notes_comes_before_the_verdict() -> None:
    summary = build_site(Figures(make_content() | {"note": "Of no weight."})).summary
    assert summary.verdict.startswith("**Of no weight.** Of ")


def test_title_and_introduction_come_from_the_recipe() -> None:
    words = {"title": "Red against blue", "about": "Red is warmer."}
    summary = build_site(Figures(make_content({"red": 0.6, "blue": 0.9}) | {"page": words, "claims": []})).summary
    assert (summary.title, summary.verdict) == ("Red against blue", "")
    assert texts(summary)[0] == "Red is warmer."
    assert not [section for section in summary.sections if section.title.startswith("What ")]


def test_the_verdict_begins_with_how_often_guided_and_unguided_arms_err() -> None:
    content = make_content({"one": 0.6, "two": 0.7, "three": 0.9})
    described = make_analyses()["described"]["age"]
    content["described"] = {arm: described | {"guided": {}} for arm in ("one", "two")}
    content["described"]["three"] = described
    told = "Unguided arms answer 30 to 40 % of them wrongly, guided ones 10 %.**"
    assert told in build_site(Figures(content)).summary.verdict
    for arm in content["arms"].values():
        arm["pope"]["adversarial"]["accuracy"] |= {"low": 0.2, "high": None}
    unclear = "guided ones 10 %. That is no clear difference: the intervals are 0 to 80 % and 0 to 80 %.**"
    assert unclear in build_site(Figures(content)).summary.verdict
    del content["arms"]["three"]
    assert "guided ones" not in build_site(Figures(content)).summary.verdict


def test_differences_of_shares_end_at_one() -> None:
    wide = {"mean": 0.4, "low": -1.3, "high": None}
    figures = {"pope": {"adversarial": {"accuracy": wide}}, "text_perplexity": {"after": wide}}
    content = {"differences": {"a": {"b": figures}}}
    assert signed(difference(content, "a", "b")) == "+0.400 (−1.000 to –)"
    assert signed(difference(content, "b", "a")) == "−0.400 (– to +1.000)"
    assert signed(difference(content, "a", "b", "text_perplexity.after")) == "+0.400 (−1.300 to –)"


# ------------------------------------------------------------------------------------------------- pages behind it


def test_the_pages_have_every_section_of_a_full_comparison() -> None:
    site = build_site(make_everything())
    assert list(site.parts) == [*EVERY_PAGE, "longer", "ablations", AGAIN]
    assert {block.name for block in site.whole.blocks if isinstance(block, Plot)} == EVERY_PLOT
    found = {name: tables(page) for name, page in site.parts.items()}
    assert found["arms"]["What each arm is/"].rows[-1][1:] == [
        "read by cross-attention",
        "yes",
        "ground, instruct",
        "yes",
        "instruct",
        "0.00075",
        "ground",
        "1860",
    ]
    assert found["training"]["At equal time/"].rows[0][1:3] == ["3", "× 1.20"]
    errs = found["hallucination"]
    assert errs["When does it err?/False yes, by co-occurrence"].headers == [
        "arm",
        "under 20 %",
        "20–60 %",
        "from 60 %",
    ]
    assert errs["When does it err?/Misses, by number of things"].headers == ["arm", "1–2", "3–4", "5 or more"]
    kept = found["skills"]["Language kept/"]
    assert kept.headers == ["arm", "before", "after align", "after instruct", "after"]
    step = found["costs"]["Time and memory/A step of training"]
    assert step.rows[1][1:] == ["576", "20.0 (× 1.25)", "20.0 (× 1.25)", "sdpa", "2.0"]
    looks = found["attention"]
    assert looks["Does the null token know?/"].rows[0][4] == "**+0.030 (+0.020 to +0.040)**"
    assert looks["Where it looks/"].headers[2] == "of perfect attention on its grid"
    assert looks["Where it looks/"].rows[1][2].startswith("0.840")
    apart = found["differences"]
    matrix = apart["Every two arms/Adversarial accuracy of the arm of a row minus that of a column"]
    assert matrix.rows[0][1] == "" and matrix.rows[4][1] == "**+0.100 (+0.090 to +0.110)**"
    of_focus = [caption for caption in apart if "The figures of" in caption]
    assert of_focus == [f"Every two arms/The figures of {TITLES[arm]} minus those of" for arm in ("age", "age_plus")]


def test_claims_that_came_later_are_marked() -> None:
    page = build_site(make_everything()).parts["claims"]
    rows = tables(page)["Every claim/"].rows
    assert [row[0] for row in rows if row[0].endswith(" †")] == [
        row[0] for row in rows if row[0].startswith("age_plus")
    ]
    assert {row[3] for row in rows} == {"**yes**", "**no**"}


def test_costs_say_on_what_they_were_measured() -> None:
    facts = {"git": "1a699b9+", "threads": 2, "device": "cpu"}
    settings = {"reference": "age", "settings": {"repetitions": 8}, "environment": facts}
    site = build_site(Figures({**make_content(), **make_analyses(), "costs_settings": settings}))
    (text,) = texts(site.parts["costs"])
    assert "8 turns of each arm (cpu, 2 threads, git 1a699b9+)" in text and f"ratio to {TITLES['age']}" in text


def test_pages_without_figures_are_left_out() -> None:
    site = build_site(Figures(make_content({"cross_attention": 0.6, "age": 0.9})))
    assert list(site.parts) == ["claims", "hallucination", "attention", "skills", "differences", AGAIN]
    assert {block.name for block in site.whole.blocks if isinstance(block, Plot)} == {"error"}


def test_remarks_of_every_file_stand_where_the_commands_do() -> None:
    content = make_content({"cross_attention": 0.6, "age": 0.9}) | {"remarks": ["One arm came later."]}
    again = build_site(Figures(content, [make_longer() | {"remarks": ["So did this one."]}])).parts[AGAIN]
    assert texts(again)[1:] == ["One arm came later.", "So did this one."]


def test_a_study_may_not_have_the_name_of_a_page() -> None:
    with pytest.raises(ValueError, match="a study cannot be called 'claims'"):
        build_site(Figures(make_content(), [make_groups() | {"name": "claims"}]))


# ---------------------------------------------------------------------------------------------------------- studies


def test_groups_are_set_against_their_first_arm_and_the_best_is_marked() -> None:
    content = make_groups()
    content["differences"]["age_plus"]["weight_3"] = {
        "pope": {"adversarial": {"accuracy": estimate(-0.01)}},
        "colour": {"accuracy": estimate(-0.2, 0.1)},
    }
    section = groups_section(content)
    assert section is not None
    loss, weight = (block for block in section.blocks if isinstance(block, Table))
    assert [row[2].startswith("**") for row in loss.rows] == [True, False]
    assert weight.rows[1][0] == "weights 3 and 1.8 ✓ chosen"
    assert weight.rows[1][3] == "+0.010 (0.000 to +0.020)"
    assert weight.rows[1][weight.headers.index("colour")].endswith(" ▲")
    assert loss.rows[1][3] == "−0.020 (−0.030 to −0.010) ▼"
    assert not [cell for row in (loss.rows[0], weight.rows[0]) for cell in row if cell.endswith(("▲", "▼"))]
    assert winner(content, ["age_plus", "weight_3"]) == "weight_3"
    assert groups_section({}) is None


def test_a_study_says_which_figures_are_paired_in_a_column_of_their_own() -> None:
    content = make_groups()
    content["page"]["paired"] = ["pope.adversarial.accuracy", "pointing.accuracy"]
    section = groups_section(content)
    assert section is not None
    headers = next(block for block in section.blocks if isinstance(block, Table)).headers
    assert [headers[place - 1] for place, name in enumerate(headers) if name == "minus the first"] == [
        "adversarial",
        "pointing",
    ]


def test_longer_training_is_drawn_over_its_steps_from_groups_that_differ_in_them() -> None:
    section = groups_section(make_longer())
    assert section is not None
    plot = section.blocks[0]
    assert isinstance(plot, Plot)
    (axes,) = plot.draw("light").axes
    steps = [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-"]
    assert steps == [[1860, 7440, 29760]], "a line for the group of one arm, none for that of several"
    assert len([line for line in axes.lines if line.get_linestyle() == "--"]) == 1  # the arm in focus


def test_long_titles_leave_room_to_the_axes() -> None:
    words = "learning rates of half the size, that of stage 3 stays, language model frozen until stage 4, and more"
    figure = interval_plot([Row(Arm(words, 0), Reading(0.8, 0.7, 0.9, (0.8,)))], "accuracy")
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.5


# ------------------------------------------------------------------------------------------------------------ files


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_site_is_markdown_with_light_plots_beside_it(tmp_path: Path) -> None:
    comparison = write_json(tmp_path / "results" / "comparison.json", {**make_content(), **make_analyses()})
    ablations = write_json(tmp_path / "results" / "ablations.json", make_groups())
    longer = write_json(tmp_path / "results" / "longer.json", make_longer())
    picture = tmp_path / "attention.png"
    picture.write_bytes(make_png())
    out, log = tmp_path / "docs" / "results" / "comparison.md", tmp_path / "docs" / "log.md"
    directory = out.with_suffix("")
    stale = [write_json(directory / name, {}) for name in ("old.png", "old.md")]
    log.write_text("What did not work.")
    write_page(load_figures([comparison, ablations, longer], picture, log), out)
    pages = [out, *sorted(directory.glob("*.md"))]
    assert {page.stem for page in pages[1:]} == {*EVERY_PAGE, "longer", "ablations", AGAIN}
    for page in pages:
        links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        assert links and all((page.parent / link).exists() for link in links), page
    pictures = list(directory.glob("*.png"))
    assert {path.stem for path in pictures} == EVERY_PLOT | {"attention"}
    assert max(path.stat().st_size for path in pictures) < 100_000
    assert not any(path.exists() for path in stale)
    write_page(load_figures([comparison]), out)
    assert "comparison/attention.png" in out.read_text(encoding="utf-8")  # the one that was there stays


@pytest.mark.parametrize(("threads", "jobs"), [(2, ""), (1, " --jobs 2")])
def test_commands_make_the_files_and_pages_from_where_they_lie(tmp_path: Path, threads: int, jobs: str) -> None:
    settings = {"environment": {"device": "cpu", "num_cores": 2, "threads": threads}}
    comparison = write_json(tmp_path / "results" / "main.json", make_content() | {"costs_settings": settings})
    ablations = write_json(tmp_path / "results" / "ablations.json", make_groups())
    out = write_page(load_figures([comparison, ablations]), tmp_path / "docs" / "main.md")
    text = out.with_suffix("").joinpath(f"{AGAIN}.md").read_text(encoding="utf-8")
    assert re.findall(r"```sh\n(.*?)\n```", text, re.DOTALL) == [
        f"agevlm compare run comparison --json results/main.json{jobs}\n"
        f"agevlm compare run ablations --json results/ablations.json{jobs}\n"
        "agevlm compare page results/main.json results/ablations.json \\\n  --out docs/main.md"
    ]


def test_html_and_markdown_have_the_same_cells(tmp_path: Path) -> None:
    run = tmp_path / "age" / "0"
    run.mkdir(parents=True)
    (run / "report.html").touch()
    titles = TITLES | {"age": "<AGE>"}
    write_json(tmp_path / "comparison.json", {**make_content(), **make_analyses(), "titles": titles})
    write_json(tmp_path / "ablations.json", make_groups())
    html = write_index(tmp_path).read_text(encoding="utf-8")
    whole = build_site(load_figures([tmp_path / "comparison.json", tmp_path / "ablations.json"])).whole
    rows = sum(1 + len(block.rows) for block in whole.blocks if isinstance(block, Table))
    assert html.count("<tr>") == rows + 2  # those of the links to reports
    assert "&lt;AGE&gt;" in html and "<AGE>" not in html
    assert 'href="age/0/report.html"' in html and 'href="age/1/report.html"' not in html
    assert "<td><strong>+0.040</strong><small> (+0.030 to +0.050)</small></td>" in html
    assert "<script" not in html
    assert not re.search(r'src="(?!data:)', html)
    lines = [line for line in markdown(whole, "x/").splitlines() if line.startswith("| ")]
    assert len(lines) == sum(2 + len(block.rows) for block in whole.blocks if isinstance(block, Table))
    anchors = re.findall(r'<h2 id="([^"]+)">', html)
    assert len(set(anchors)) == len(anchors) == len(whole.sections) + 1  # that of the links


def test_a_directory_of_groups_alone_has_a_page_of_tables(tmp_path: Path) -> None:
    write_json(tmp_path / "sweeps.json", {**make_groups(), "name": "sweeps"})
    html = write_index(tmp_path).read_text(encoding="utf-8")
    assert "Guidance weight" in html and "Every claim" not in html
    with pytest.raises(ValueError, match="no figures of a comparison"):
        write_index(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / INDEX).exists()


def test_what_is_not_for_the_page_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    comparison, again = (write_json(tmp_path / name, make_content()) for name in ("comparison.json", "again.json"))
    with pytest.raises(ValueError, match=r"comparison\.json and .*again\.json are figures of the same comparison"):
        load_figures([comparison, again])
    with pytest.raises(ValueError, match=r"again\.json is no PNG"):
        load_figures([comparison], again)
    for out in (tmp_path / "page.txt", tmp_path / "page"):
        with pytest.raises(ValueError, match=r"must end in \.md"):
            write_page(load_figures([comparison]), out)
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.json", "again.json"}
