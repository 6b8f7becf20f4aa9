"""The page of a comparison: verdicts and rows from its JSON, what is missing left out, Markdown and HTML alike."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agevlm.comparison.analyses import breakdown_section
from agevlm.comparison.claims import claims
from agevlm.comparison.document import Code, Page, Plot, Table, Text, markdown
from agevlm.comparison.groups import groups_section, winner
from agevlm.comparison.page import INDEX, Figures, build_page, read_figures, write_index, write_page
from agevlm.comparison.plots import Row, interval_plot
from agevlm.comparison.readings import ERROR, Reading, percent, reading, signed, written

from .fakes import ACCURACY, TITLES, estimate, make_analyses, make_content, make_groups, make_longer

EVERY_PLOT = {"error", "curves", "compute", "breakdown", "reliability", "similarity", "ablations"}


def make_png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    return data.getvalue()


def make_everything() -> Figures:
    others = {"sweeps": make_groups(), "longer": make_longer(), "ablations": make_groups()}
    return Figures({**make_content(), **make_analyses()}, others, make_png())


def tables(page: Page) -> dict[str, Table]:
    """Section and caption → table."""
    return {f"{s.title}/{b.caption}": b for s in page.sections for b in s.blocks if isinstance(b, Table)}


def verdicts(content: dict[str, Any]) -> dict[str, tuple[bool | None, str]]:
    return {claim.what: (claim.holds, claim.beside) for claim in claims(content)}


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


@pytest.mark.parametrize(("num_arms", "plotted"), [(8, True), (9, False)])
def test_more_arms_than_an_eye_tells_apart_are_in_tables_alone(num_arms: int, plotted: bool) -> None:
    accuracy = {f"arm_{number}": 0.9 for number in range(num_arms)}
    found = breakdown_section({**make_content(accuracy), **make_analyses(accuracy)})
    assert found is not None
    assert any(isinstance(block, Plot) for block in found.blocks) == plotted
    assert all(len(block.rows) == num_arms for block in found.blocks if isinstance(block, Table))


# ----------------------------------------------------------------------------------------------------------- claims


def test_claims_hold_or_are_refuted_by_what_was_measured() -> None:
    found = verdicts({**make_content(), **make_analyses()})
    assert found["Adversarial error of AGE over that of unguided cross-attention"] == (True, "")
    best = "the best concatenation (concatenation, pooled and guided)"
    assert found[f"Adversarial error of AGE over that of {best}"] == (False, "")  # 0.10 over 0.14
    assert found[f"Adversarial error of AGE + over that of {best}"] == (True, "")  # 0.05 over 0.14
    unguided = "unguided concatenation (concatenation, a quarter of the tokens)"
    assert found[f"Adversarial error of AGE + over that of {unguided}"] == (True, "")  # 0.05 over 0.16
    assert found["Adversarial error of AGE over that of unguided concatenation (concatenation, all tokens)"][0] is True
    assert found["Pointing, AGE"] == (True, "")
    assert found["Pointing, cross-attention unguided"] == (True, "")
    assert found["Null token tells absent from present, random split, AUROC"][0] is True
    assert found[f"At equal time, adversarial accuracy of AGE minus that of {best}"][0] is True
    assert found[f"At equal time, adversarial accuracy of AGE minus that of {unguided}"][0] is True


def test_what_a_recipe_notes_comes_before_the_verdict() -> None:
    page = build_page(Figures(make_content() | {"note": "Of no weight."}))
    assert page.verdict.startswith("**Of no weight.** The error of AGE is ")


def test_the_verdict_begins_with_how_often_guided_and_unguided_arms_err() -> None:
    content = make_content({"cross_attention": 0.6, "concat": 0.7, "age": 0.9})
    described = make_analyses()["described"]["age"]
    content["described"] = {arm: described | {"guided": {}} for arm in ("cross_attention", "concat")}
    content["described"]["age"] = described
    assert (
        "Unguided arms answer 30 to 40 % of them wrongly, guided ones 10 %.**" in build_page(Figures(content)).verdict
    )
    del content["arms"]["age"]
    assert "guided ones" not in build_page(Figures(content)).verdict


def test_a_refuted_claim_is_told_in_the_verdict_of_the_page() -> None:
    content = make_content({"cross_attention": 0.6, "age": 0.7})
    page = build_page(Figures(content))
    assert "75 % (72 to 78 %) of that of unguided cross-attention" in page.verdict
    assert "Of the 3 claims made beforehand and measured 2 hold" in page.verdict


def test_claims_that_came_later_are_marked_and_not_counted() -> None:
    content = {**make_content(), **make_analyses()}
    added = [claim for claim in claims(content) if claim.added]
    assert all("unguided concatenation" in claim.what or "AGE +" in claim.what for claim in added)
    assert sum("AGE +" in claim.what for claim in added) == 10 and len(added) == 14
    assert sum("unguided concatenation" in claim.what for claim in added) == 8
    page = build_page(Figures(content))
    known = [claim for claim in claims(content) if claim.holds is not None and not claim.added]
    assert f"Of the {len(known)} claims made beforehand and measured" in page.verdict
    rows = tables(page)["What was claimed, and what holds/"].rows
    assert sum(row[0].endswith(" †") for row in rows) == len(added)


def test_a_difference_that_is_not_clear_of_zero_proves_nothing() -> None:
    content = make_content({"cross_attention": 0.60, "age": 0.90})
    content["differences"]["age"]["cross_attention"]["pope"]["adversarial"]["accuracy"] = estimate(0.3, 0.4)
    holds, beside = verdicts(content)["Adversarial error of AGE over that of unguided cross-attention"]
    assert (holds, beside) == (False, "its mean would: the difference is not clear of 0")


def test_an_interval_that_reaches_beyond_the_bound_is_said() -> None:
    content = make_content()
    content["arms"]["age"]["pointing"]["accuracy"] = estimate(0.962)
    content["arms"]["age_plus"]["pointing"]["accuracy"] = estimate(0.957)
    found = verdicts(content)
    assert found["Pointing, AGE"][0] is True and "reaches beyond" in found["Pointing, AGE"][1]
    assert found["Pointing, AGE +"][0] is False and "0.960 lies in the interval" in found["Pointing, AGE +"][1]


def test_what_was_not_measured_is_among_the_claims_and_says_so() -> None:
    found = claims(make_content({"age": 0.9}))
    unknown = {claim.what for claim in found if claim.holds is None}
    assert "Adversarial error of AGE over that of unguided cross-attention" in unknown
    assert "Caption likelihood tells matching from mismatched pairs, AGE, AUROC" in unknown
    assert all(claim.verdict == "not measured" for claim in found if claim.what in unknown)
    assert not any("AGE +" in claim.what for claim in found)  # never trained: nothing to say of it


# ------------------------------------------------------------------------------------------------------------- page


def test_the_page_has_every_section_of_a_full_comparison() -> None:
    page = build_page(make_everything())
    assert {block.name for block in page.blocks if isinstance(block, Plot)} == EVERY_PLOT
    found = tables(page)
    assert found["The arms/"].rows[-1][1:] == [
        "read by cross-attention",
        "yes",
        "ground, instruct",
        "yes",
        "instruct",
        "0.00075",
        "ground",
        "1860",
    ]
    main = next(block for block in page.head if isinstance(block, Table))
    assert [row[0] for row in main.rows][-1].startswith("AGE +") and len(main.rows) == len(ACCURACY)
    assert main.rows[-1][2] == "0.050 (0.040 to 0.060)"
    assert found["At equal time/"].rows[0][1:3] == ["3", "× 1.20"]
    assert found["What guidance is worth in compute/Adversarial error"].rows[2][1:] == [
        "0.400 (0.390 to 0.410)",
        "0.200 (0.190 to 0.210)",
        "0.030 (0.020 to 0.040)",
    ]
    assert found["When does it err?/False yes, by co-occurrence"].headers == [
        "arm",
        "under 20 %",
        "20–60 %",
        "from 60 %",
    ]
    assert found["When does it err?/Misses, by number of things"].headers == ["arm", "1–2", "3–4", "5 or more"]
    assert found["Language kept/"].headers == ["arm", "before", "after align", "after instruct", "after"]
    assert found["What the arms cost/A step of training"].rows[1][1:] == [
        "576",
        "20.0 (× 1.25)",
        "20.0 (× 1.25)",
        "sdpa",
        "2.0",
    ]
    assert found["Does the null token know?/"].rows[0][4] == "**+0.030 (+0.020 to +0.040)**"
    looking = found["The figures of every arm/Where it looks"]
    assert looking.headers[2] == "of perfect attention on its grid" and looking.rows[1][2].startswith("0.840")
    assert found["What guidance is worth in compute/Pointing"].rows[2][1:3] == [
        "0.400 (0.390 to 0.410)",
        "0.970 (0.960 to 0.980)",
    ]
    caption = "Adversarial accuracy of the guided arms, once as long, minus that of the others, on the seeds of both"
    gaps = found[f"What guidance is worth in compute/{caption}"]
    assert gaps.rows == [
        [
            "AGE minus cross-attention, unguided",
            "**+0.350 (+0.340 to +0.360)**",
            "**+0.150 (+0.140 to +0.160)**",
            "**−0.020 (−0.030 to −0.010)**",
        ],
        [
            "AGE + minus cross-attention, unguided",
            "**+0.375 (+0.365 to +0.385)**",
            "**+0.175 (+0.165 to +0.185)**",
            "+0.005 (−0.005 to +0.015)",
        ],
    ]
    matrix = found["Paired differences/Adversarial accuracy of the arm of a row minus that of a column"]
    assert matrix.rows[0][1] == "" and matrix.rows[4][1] == "**+0.100 (+0.090 to +0.110)**"


@pytest.mark.parametrize(("accuracy", "told"), [(0.95, False), (0.93, True)])
def test_longer_runs_that_are_others_than_the_page_s_are_named(accuracy: float, told: bool) -> None:
    content = make_content({"cross_attention": 0.6, "age": accuracy, "age_plus": 0.975})
    page = build_page(Figures(content, {"longer": make_longer()}))
    texts = [block.content for block in page.blocks if isinstance(block, Text)]
    assert any("are of other runs than those of the sections above" in text for text in texts) == told


def test_costs_say_on_what_they_were_measured() -> None:
    facts = {"git": "1a699b9+", "threads": 2, "device": "cpu"}
    settings = {"reference": "age", "settings": {"repetitions": 8}, "environment": facts}
    page = build_page(Figures({**make_content(), **make_analyses(), "costs_settings": settings}))
    texts = [block.content for block in page.blocks if isinstance(block, Text)]
    assert any("8 turns of each arm (cpu, 2 threads, git 1a699b9+)" in text for text in texts)


@pytest.mark.parametrize(("threads", "jobs"), [(2, ""), (1, " --jobs 2")])
def test_commands_say_how_many_runs_went_side_by_side(threads: int, jobs: str) -> None:
    content = make_content({"age": 0.9, "cross_attention": 0.6})
    content["costs_settings"] = {"environment": {"device": "cpu", "num_cores": 2, "threads": threads}}
    page = build_page(Figures(content))
    (commands,) = (block.content for block in page.blocks if isinstance(block, Code))
    made = "agevlm compare comparison --out runs/comparison --json results/comparison.json"
    assert commands.splitlines()[0] == made + jobs


def test_sections_without_figures_are_left_out() -> None:
    page = build_page(Figures(make_content({"cross_attention": 0.6, "age": 0.9})))
    assert [section.title for section in page.sections] == [
        "What was claimed, and what holds",
        "The figures of every arm",
        "Paired differences",
        "Language kept",
        "How sure, and how to make it again",
    ]
    assert {block.name for block in page.blocks if isinstance(block, Plot)} == {"error"}


def test_remarks_of_every_file_stand_where_the_commands_do() -> None:
    content = make_content({"cross_attention": 0.6, "age": 0.9}) | {"remarks": ["One arm came later."]}
    page = build_page(Figures(content, {"longer": make_longer() | {"remarks": ["So did this one."]}}))
    told = [block.content for block in page.sections[-1].blocks if isinstance(block, Text)]
    assert told[1:] == ["One arm came later.", "So did this one."]


def told_of_longer_training(longer: dict[str, Any]) -> str:
    page = build_page(Figures(make_content({"cross_attention": 0.6, "age": 0.9, "age_plus": 0.9}), {"longer": longer}))
    section = next(section for section in page.sections if section.title == "What guidance is worth in compute")
    assert isinstance(section.blocks[0], Text)
    return section.blocks[0].content


def test_longer_unguided_training_says_whether_the_gap_closes() -> None:
    longer = make_longer()
    longer["differences"]["age"]["cross_attention_16x"]["pointing"] = {"accuracy": estimate(0.0, 0.01)}
    told = told_of_longer_training(longer)
    reached = "With 16 times the steps (3 seeds) cross-attention, unguided has reached AGE in the mean"
    gap = "(AGE minus it −0.020 (−0.030 to −0.010))"
    assert f"{reached} {gap}." in told
    trails = "still trails AGE +, which is ahead by +0.005 (−0.005 to +0.015), not clear of 0: it may have caught up."
    assert trails in told
    longer["differences"]["age"]["cross_attention_16x"]["pointing"] = {"accuracy": estimate(0.4, 0.1)}
    assert f"{reached} {gap}, and AGE points 0.400 (0.300 to 0.500) better." in told_of_longer_training(longer)


def test_unguided_runs_reach_age_on_the_seeds_of_both() -> None:
    longer = make_longer()
    longer["differences"]["age"]["cross_attention_16x"]["pope"]["adversarial"]["accuracy"] = estimate(0.02)
    told = told_of_longer_training(longer)  # whose error with 16 times the steps is 0.03, that of AGE 0.1
    assert "(3 seeds) cross-attention, unguided still trails AGE, which is ahead by +0.020 (+0.010 to +0.030)." in told


def test_guided_arms_that_trained_longer_are_set_beside_others_that_did() -> None:
    accuracy = {"cross_attention": 0.6, "cross_attention_4x": 0.8, "age_plus": 0.9, "age_plus_4x": 0.97}
    content = make_content({"cross_attention": 0.6, "age_plus": 0.9})
    page = build_page(Figures(content, {"longer": make_content(accuracy)}))
    section = next(section for section in page.sections if section.title == "What guidance is worth in compute")
    tables = {block.caption: block for block in section.blocks if isinstance(block, Table)}
    assert tables["Adversarial error"].rows[0][1:] == ["0.100 (0.090 to 0.110)", "0.030 (0.020 to 0.040)"]
    as_long = tables["Adversarial accuracy of guided arms minus that of others that trained as long"]
    assert as_long.headers == ["", "4 × the steps"]
    assert as_long.rows == [["AGE + minus cross-attention, unguided", "**+0.170 (+0.160 to +0.180)**"]]
    gained = {row[0]: row[1] for row in tables["Adversarial accuracy minus that of the same arm once as long"].rows}
    assert list(gained) == ["cross-attention, unguided", TITLES["age_plus"]]
    assert gained[TITLES["age_plus"]] == "**+0.070 (+0.060 to +0.080)**"
    text = section.blocks[0]
    assert isinstance(text, Text) and "AGE + has reached" not in text.content  # itself is not asked


def test_groups_are_set_against_their_first_arm_and_the_best_is_marked() -> None:
    content = make_groups()
    content["differences"]["weight_3"]["age_plus"]["pope"]["adversarial"]["accuracy"] = estimate(0.01)
    content["differences"]["weight_3"]["age_plus"]["colour"] = {"accuracy": estimate(0.2, 0.1)}
    section = groups_section(content, "Ablations", "intro", "ablations")
    assert section is not None
    loss, weight = (block for block in section.blocks if isinstance(block, Table))
    assert [row[2].startswith("**") for row in loss.rows] == [True, False]
    assert weight.rows[1][0] == "weights 3 and 1.8 ✓ chosen"
    assert weight.rows[1][3] == "+0.010 (0.000 to +0.020)"
    assert weight.rows[1][weight.headers.index("colour")].endswith(" ▲")
    assert loss.rows[1][3] == "−0.020 (−0.030 to −0.010) ▼"
    assert not [cell for row in (loss.rows[0], weight.rows[0]) for cell in row if cell.endswith(("▲", "▼"))]
    assert winner(content, ["age_plus", "weight_3"]) == "weight_3"
    assert groups_section({}, "Ablations", "intro") is None


def test_long_titles_leave_room_to_the_axes() -> None:
    words = "learning rates of half the size, that of stage 3 stays, language model frozen until stage 4, and more"
    figure = interval_plot([Row("age", words, Reading(0.8, 0.7, 0.9, (0.8,)))], "accuracy")
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.5


# ------------------------------------------------------------------------------------------------------------ files


def test_how_long_and_how_guided_ablations_and_sweeps_are_comes_from_their_files() -> None:
    what = {"guided": {"ground": 2.0, "instruct": 1.2}, "language_model": ["ground", "instruct"], "steps": 300}
    groups = make_groups() | {"described": {"age_plus": what}}
    content = make_content({"age": 0.9, "age_plus": 0.95})

    def told(name: str, steps: int, **changes: Any) -> str:
        others = {name: groups | {"name": name} | changes}
        described = {"age_plus": make_analyses()["described"]["age"] | {"steps": steps}}
        page = build_page(Figures(content | {"described": described}, others))
        found = next(part for part in page.sections if part.title == name.capitalize())
        return next(block.content for block in found.blocks if isinstance(block, Text))

    ablations = told("ablations", 300, foundations=3)
    assert (
        "first arm, at the comparison’s 300 steps." in ablations and "weights 2 and 1.2 in stages 3 and 4" in ablations
    )
    assert "packaged foundation" not in ablations and "stage 4 alone" not in ablations
    assert "with 300 steps, where the comparison’s have 600." in told("ablations", 600)
    assert told("ablations", 600, note="Of an earlier recipe.").startswith("**Of an earlier recipe.** One thing")
    assert "packaged foundation" in told("ablations", 300)
    assert "shorter runs of one seed" in told("sweeps", 600) and told("sweeps", 600).endswith("is from.")
    assert told("sweeps", 300, note="The best counts best.").endswith("is from. The best counts best.")


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_page_is_markdown_with_light_plots_beside_it(tmp_path: Path) -> None:
    comparison = write_json(tmp_path / "results" / "comparison.json", {**make_content(), **make_analyses()})
    ablations = write_json(tmp_path / "results" / "ablations.json", {**make_groups(), "name": "ablations"})
    picture = tmp_path / "attention.png"
    picture.write_bytes(make_png())
    out = tmp_path / "docs" / "results" / "comparison.md"
    stale = write_json(out.with_suffix("") / "old.png", {})
    longer = write_json(tmp_path / "results" / "longer.json", make_longer())
    others = {"ablations": ablations, "longer": longer}
    log = tmp_path / "docs" / "log.md"
    log.write_text("What did not work.")
    write_page(read_figures(comparison, others, picture), out, [comparison, ablations], log)
    text = out.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert all((out.parent / link).exists() for link in links)
    assert "../../results/ablations.json" in links and "../log.md" in links
    pictures = list(out.with_suffix("").glob("*.png"))
    assert {path.stem for path in pictures} == EVERY_PLOT | {"attention"}
    assert max(path.stat().st_size for path in pictures) < 100_000
    assert not stale.exists()
    assert "agevlm compare ablations --out runs/ablations" in text and "agevlm compare sweeps" not in text
    assert "agevlm compare longer --out runs/comparison" in text and "--longer results/longer.json" in text
    write_page(read_figures(comparison, {}), out)
    assert "comparison/attention.png" in out.read_text(encoding="utf-8")  # the one that was there stays


def test_html_and_markdown_have_the_same_cells(tmp_path: Path) -> None:
    run = tmp_path / "age" / "0"
    run.mkdir(parents=True)
    (run / "report.html").touch()
    write_json(tmp_path / "comparison.json", {**make_content(), **make_analyses(), "titles": {"age": "<AGE>"}})
    write_json(tmp_path / "ablations.json", {**make_groups(), "name": "ablations"})
    html = write_index(tmp_path).read_text(encoding="utf-8")
    page = build_page(read_figures(tmp_path / "comparison.json", {"ablations": tmp_path / "ablations.json"}))
    rows = sum(1 + len(block.rows) for block in page.blocks if isinstance(block, Table))
    assert html.count("<tr>") == rows + 2  # those of the links to reports
    assert "&lt;AGE&gt;" in html and "<AGE>" not in html
    assert 'href="age/0/report.html"' in html and 'href="age/1/report.html"' not in html
    assert "<td><strong>+0.040</strong><small> (+0.030 to +0.050)</small></td>" in html
    assert "<script" not in html
    assert not re.search(r'src="(?!data:)', html)
    lines = [line for line in markdown(page, "x").splitlines() if line.startswith("| ")]
    assert len(lines) == sum(2 + len(block.rows) for block in page.blocks if isinstance(block, Table))


def test_a_directory_of_groups_alone_has_a_page_of_tables(tmp_path: Path) -> None:
    write_json(tmp_path / "sweeps.json", {**make_groups(), "name": "sweeps"})
    html = write_index(tmp_path).read_text(encoding="utf-8")
    assert "Guidance weight" in html and "What was claimed" not in html
    with pytest.raises(ValueError, match="no figures of a comparison"):
        write_index(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / INDEX).exists()


def test_what_is_not_for_the_page_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    comparison, sweeps = (write_json(tmp_path / name, make_content()) for name in ("comparison.json", "sweeps.json"))
    with pytest.raises(ValueError, match="of the comparison 'comparison', where 'sweeps' was wanted"):
        read_figures(comparison, {"sweeps": sweeps})
    with pytest.raises(ValueError, match=r"sweeps\.json is no PNG"):
        read_figures(comparison, {}, sweeps)
    for out in (tmp_path / "page.txt", tmp_path / "page"):
        with pytest.raises(ValueError, match=r"must end in \.md"):
            write_page(read_figures(comparison, {}), out)
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.json", "sweeps.json"}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "holds a list"), ('{"arms": {"a": {}}}', "holds no runs of arms")],
)
def test_files_that_are_no_figures_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"wrong\.json.*{message}"):
        read_figures(path, {})
