"""What is said in figures is what the files of figures hold: the README's tables, and the pages of the comparison."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from agevlm.comparison.page import load_figures, write_page
from agevlm.comparison.recipe import load_comparison

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ATTENTION = Path("docs/results/comparison/attention.png")
STUDIES = ("comparison", "sweeps", "longer", "ablations")
TABLES = [f"results/{name}.json" for name in STUDIES]
MAX_WORDS, MAX_BYTES = 700, 1_000_000  # of the summary, of a file of figures
README_ARMS = {
    "concatenation, LLaVA's way": "concat",
    "guided concatenation": "concat_guided",
    "cross-attention": "cross_attention",
    "AGE +: guided to the end, with a null token": "age_plus",
}
FIGURES = runpy.run_path(str(ROOT / "benchmarks" / "seeds.py"))["FIGURES"]


def load(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def table(document: str, header: str) -> dict[str, list[str]]:
    """The rows of a document's table with this header, by their first cell."""
    body = document.split(header + "\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
    return {first: rest for first, *rest in cells}


def plain(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())


def error_ratios(domains: dict[str, Any]) -> list[str]:
    """The errors of AGE + over those of unguided cross-attention on each test, with intervals, as tables have them."""
    found = [domains[key]["error_ratios"]["age_plus"]["cross_attention"] for key in PICTURES.values()]
    return ["{mean:.2f} ({low:.2f} to {high:.2f})".format(**ratio).replace("0.", ".") for ratio in found]


def spread(values: list[float]) -> str:
    """Mean, lowest and highest; a single value stands alone."""
    mean = f"{sum(values) / len(values):.3f}"
    return f"{mean} ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else mean


def test_what_the_quickstart_reaches() -> None:
    files = [load(f"results/{name}.json")["figures"] for name in ("quickstart", "unguided", "tiny")]
    page = (ROOT / "docs" / "results" / "quickstart.md").read_text(encoding="utf-8")
    told = table(page, "| figure | quickstart, 3 seeds | the same without guidance, 1 seed | `tiny`, 3 test worlds |")
    assert told == {label: [spread(f[figure]["values"]) for f in files] for figure, label in FIGURES.items()}


PICTURES = {"COCO": "coco", "rooms": "indoor", "clothing": "clothing"}
PHOTOGRAPHS_ARMS = {
    "AGE +": "age_plus",
    "cross-attention, unguided": "cross_attention",
    "concatenation, guided": "concat_guided",
    "concatenation, unguided": "concat",
}
VIEWS_ARMS = {"AGE +": "age_plus", "with views and captions": "age_plus_views"}
PHOTOGRAPHS = "| test pictures: arm | random | adversarial | false yes | pointing | null token AUROC |"


def photographs_row(figures: dict[str, Any]) -> list[str]:
    names = ("pope.random.accuracy", "pope.adversarial.accuracy", "pope.adversarial.false_yes_ratio")

    def cell(name: str) -> str:
        value = figures
        for key in name.split("."):
            value = value.get(key, {})
        return spread(value["values"]) if value else "–"

    return [cell(name) for name in (*names, "pointing.accuracy", "null_token.auroc")]


def test_what_came_of_photographs() -> None:
    domains = load("results/photographs.json")["domains"]
    page = (ROOT / "docs" / "results" / "photographs.md").read_text(encoding="utf-8")
    views = load("results/photographs-views.json")["domains"]
    tables = {PHOTOGRAPHS: (domains, PHOTOGRAPHS_ARMS), PHOTOGRAPHS.replace(": arm", ": AGE +"): (views, VIEWS_ARMS)}
    for header, (figures, arms) in tables.items():
        assert table(page, header) == {
            f"{where}: {arm}": photographs_row(figures[key]["arms"][of])
            for where, key in PICTURES.items()
            for arm, of in arms.items()
        }
    domains_smollm2 = load("results/photographs-smollm2.json")["domains"]
    told = table(page, PHOTOGRAPHS.replace("AUROC |", "AUROC | errors, ratio |"))
    for where, key in PICTURES.items():
        figures = domains_smollm2[key]
        ratio = "{mean:.2f} ({low:.2f} to {high:.2f})".format(**figures["error_ratios"]["age_plus"]["cross_attention"])
        assert told[f"{where}: guided"] == [*photographs_row(figures["arms"]["age_plus"]), ratio]
        assert told[f"{where}: unguided"] == [*photographs_row(figures["arms"]["cross_attention"]), ""]
        for name, arm in (("guided", "age_plus"), ("unguided", "cross_attention")):
            assert told[f"{where}: {name}, LoRA"][:5] == photographs_row(figures["arms"][f"{arm}_lora"])
            perplexity = figures["arms"][arm]["text_perplexity"]
            assert perplexity["before"] == perplexity["after"]  # frozen: its language stays whole


def test_what_other_training_pictures_change() -> None:
    same, own = (load(f"results/photographs{name}.json")["domains"] for name in ("", "-splits"))
    page = (ROOT / "docs" / "results" / "photographs.md").read_text(encoding="utf-8")
    asked = ("adversarial", "pointing")
    columns = " | ".join(f"{figure}, same pictures | each seed its own" for figure in asked)
    assert table(page, f"| test pictures: arm | {columns} |") == {
        f"{where}: {arm}": [
            spread(figures["accuracy"]["values"])
            for each in (lambda arm: arm["pope"]["adversarial"], lambda arm: arm["pointing"])
            for figures in (each(domains[key]["arms"][of]) for domains in (same, own))
        ]
        for where, key in PICTURES.items()
        for arm, of in PHOTOGRAPHS_ARMS.items()
    }
    for domains in (same, own):
        assert f"| {' | '.join(error_ratios(domains))} |" in page


ABLATIONS = {
    "nothing: AGE +": "age_plus",
    "masks for 30 % of the pictures": "masks_known_30",
    "masks for 10 %": "masks_known_10",
    "no masks: unguided cross-attention": "cross_attention",
    "boxes in place of masks": "masks_boxes",
    "half of the pictures": "pictures_half",
    "a quarter of the pictures": "pictures_quarter",
    "weights × 0.3": "weight_03",
    "weights × 3": "weight_3",
}
NATURAL = {
    f"{name}, {asked}": "natural" if (arm, suffix) == ("age_plus", "_natural") else arm + suffix
    for name, arm in PHOTOGRAPHS_ARMS.items()
    for asked, suffix in (("balanced", ""), ("natural", "_natural"))
}


def test_what_masks_pictures_and_balance_are_worth() -> None:
    found = load("results/photographs-ablations.json")
    page = (ROOT / "docs" / "results" / "photographs.md").read_text(encoding="utf-8")
    assert all(seeds == [0, 1, 2] for seeds in found["runs"].values())

    def cells(arm: str, beside: str) -> list[str]:
        cells = []
        for key in PICTURES.values():
            figures = found["domains"][key]["arms"][arm]
            other = figures["pope"]["random"] if beside == "random" else figures["pointing"]
            means = figures["pope"]["adversarial"]["accuracy"]["mean"], other["accuracy"]["mean"]
            cells.append("{:.3f} ({:.3f})".format(*means))
        return cells

    tables = {"what is changed": (ABLATIONS, "pointing"), "arm, questions to train on": (NATURAL, "random")}
    for header, (arms, beside) in tables.items():
        told = table(page, f"| {header} | COCO | rooms | clothing |")
        assert told == {label: cells(arm, beside) for label, arm in arms.items()}


def test_what_the_page_on_photographs_tells_besides() -> None:
    checks = load("benchmarks/results/photographs-checks.json")
    page = (ROOT / "docs" / "results" / "photographs.md").read_text(encoding="utf-8")
    told = table(page, "| test pictures | random | popular | adversarial | pointing |")
    for where, key in PICTURES.items():
        probe = checks["probe"][key]
        right = [probe["pope"][split]["accuracy"] for split in ("random", "popular", "adversarial")]
        assert told[where] == [f"{figure:.3f}" for figure in (*right, probe["pointing"]["accuracy"])]
    own = checks["own_500"]
    right, points = f"{own['pope']['adversarial']:.3f}"[1:], f"{own['pointing']:.2f}"[1:]
    assert f"answers {right} of the adversarial questions right and points at {points}" in plain(page)
    by_heart = checks["on_training_pictures"]
    assert f"{by_heart['age_plus']['coco']['pope']['adversarial']['accuracy']:.2f}" == "0.95"
    assert f"{by_heart['age_plus']['clothing']['pope']['adversarial']['accuracy']:.2f}" == "0.69"


def test_what_answers_less_the_prior_are_worth() -> None:
    found = load("benchmarks/results/photographs-checks.json")["prior_corrected"]
    page = (ROOT / "docs" / "results" / "photographs.md").read_text(encoding="utf-8")

    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.3f}"

    def row(arm: dict[str, Any]) -> list[str]:
        figures = [arm[which][figure] for figure in ("accuracy", "auroc") for which in ("plain", "corrected")]
        return [mean(values) for values in (*figures, arm["blank_yes_ratio"])]

    told = table(
        page, "| test pictures: arm | accuracy | less the prior | AUROC | less the prior | yes to a blank picture |"
    )
    arms = [(name, arm) for name, arm in PHOTOGRAPHS_ARMS.items() if arm != "age_plus_views"]
    assert told == {f"{where}: {name}": row(found[key][arm]) for where, key in PICTURES.items() for name, arm in arms}


def test_the_readme_tells_what_guidance_gains_in_900_words() -> None:
    domains = load("results/photographs.json")["domains"]

    def cell(figures: dict[str, Any]) -> str:
        found = figures["pope"]["adversarial"]["accuracy"], figures["pointing"]["accuracy"]
        return "{} ({})".format(*(spread(figure["values"]).split()[0] for figure in found))

    rows = {name: [cell(domains[key]["arms"][arm]) for key in PICTURES.values()] for name, arm in README_ARMS.items()}
    told = table(README, "| adversarial accuracy (pointing) | COCO | rooms | clothing |")
    assert told == {**rows, "errors, AGE + over cross-attention": error_ratios(domains)}
    assert len(README.split()) <= 900
    said = plain(README)
    ratios = sorted(float(ratio.split()[0]) for ratio in error_ratios(domains))
    assert f"makes {100 * ratios[0]:.0f} to {100 * ratios[-1]:.0f} % of the errors" in said
    pointing = [
        figures["age_plus"]["pointing"]["accuracy"]["mean"] / figures["cross_attention"]["pointing"]["accuracy"]["mean"]
        for figures in (domains[key]["arms"] for key in PICTURES.values())
    ]
    assert (round(min(pointing)), round(max(pointing))) == (2, 6)
    assert "points at two to six times as many things" in said
    own, smollm2 = (
        [ratio.split()[0] for ratio in error_ratios(load(f"results/photographs-{name}.json")["domains"])]
        for name in ("splits", "smollm2")
    )
    assert "the errors are {}, {} and {}, clear of 1".format(*own) in said
    assert "they are {}, {} and {} (one seed)".format(*smollm2) in said


def test_the_readme_tells_what_guidance_gains_in_drawn_scenes() -> None:
    content, said = load("results/comparison.json"), plain(README)
    ratio = content["error_ratios"]["age_plus"]["cross_attention"]
    assert "{:.0f} % ({:.0f} to {:.0f} %)".format(*(100 * ratio[key] for key in ("mean", "low", "high"))) in said
    yes, unguided_yes = (
        content["arms"][arm]["pope"]["adversarial"]["false_yes_ratio"]["mean"]
        for arm in ("age_plus", "cross_attention")
    )
    assert f"absent things in {100 * yes:.0f} % of the cases in place of {100 * unguided_yes:.0f} %" in said


def test_the_pages_are_what_the_files_of_figures_make(tmp_path: Path) -> None:
    for name in [*TABLES, str(ATTENTION)]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    figures = load_figures([tmp_path / name for name in TABLES], log=tmp_path / "docs" / "log" / "index.md")
    page = write_page(figures, tmp_path / "docs" / "results" / "comparison.md")
    kept = ROOT / "docs" / "results" / "comparison.md"
    assert page.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")
    assert len(page.read_text(encoding="utf-8").split()) <= MAX_WORDS
    made, known = ({path.name: path for path in of.with_suffix("").iterdir()} for of in (page, kept))
    assert made.keys() == known.keys()
    for name in made:
        if name.endswith(".md"):
            assert made[name].read_text(encoding="utf-8") == known[name].read_text(encoding="utf-8"), name


@pytest.mark.parametrize("name", STUDIES)
def test_files_of_figures_are_small_and_say_what_their_recipes_say(name: str) -> None:
    assert (ROOT / "results" / f"{name}.json").stat().st_size < MAX_BYTES
    content, words = load(f"results/{name}.json"), load_comparison(ROOT / "recipes" / f"{name}.yaml").words
    assert {key: content.get(key) for key in words} == words


def test_the_package_names_no_arm_of_the_published_comparison() -> None:
    """Arms are data of recipes; of their names only that of the attention itself, cross-attention, is one of ours."""
    arms = load("results/comparison.json")["arms"].keys() - {"cross_attention", "concat"}  # also architectures
    for path in (ROOT / "src" / "agevlm").rglob("*.py"):
        strings = re.findall(r"""["'](\w+)["']""", path.read_text(encoding="utf-8"))
        assert not arms & set(strings), path


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "results").glob("*.json")))
def test_figures_are_told_by_their_values(name: str) -> None:
    """Every figure lies between its bounds, and its mean is that of its values. (A ratio's is the means' own ratio.)"""
    found = 0

    def look(value: Any, where: str) -> None:
        nonlocal found
        if isinstance(value, dict) and {"mean", "values"} <= value.keys():
            found += 1
            mean = sum(value["values"]) / len(value["values"])
            if ".error_ratios." not in where:
                assert value["mean"] == pytest.approx(mean, abs=2e-6, rel=1e-5), where
            low, high = (value[bound] for bound in ("low", "high"))  # None where there is no bound
            assert low is None or low <= value["mean"], where
            assert high is None or value["mean"] <= high, where
        elif isinstance(value, dict):
            for key, part in value.items():
                look(part, f"{where}.{key}")
        elif isinstance(value, list):
            for number, part in enumerate(value):
                look(part, f"{where}[{number}]")

    look(load(f"results/{name}"), name)
    assert found
