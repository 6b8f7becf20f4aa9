"""The page of a comparison, from its JSON: for the documentation as Markdown with plots, for a browser as one file.

Both are written from the same sections; everything on them is computed from the files of figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agevlm.comparison.analyses import (
    attention_section,
    breakdown_section,
    costs_section,
    detection_section,
    language_section,
    similarity_section,
)
from agevlm.comparison.document import Block, Code, Page, Section, Table, Text, write_html, write_markdown
from agevlm.comparison.groups import groups_section
from agevlm.comparison.readings import Nested, section
from agevlm.comparison.run import run_directory
from agevlm.comparison.sections import (
    arms_section,
    claims_section,
    compute_section,
    curves_section,
    differences_section,
    equal_time_section,
    figures_section,
    headline,
    noted,
    titles,
    verdict,
)

ATTENTION = "attention.png"
OTHERS = ("sweeps", "longer", "ablations")  # recipes whose figures go onto the page of the comparison
INDEX = "index.html"
_PNG = b"\x89PNG\r\n\x1a\n"
_GROUPS = (
    "“Minus the first” is the paired difference to the first arm of the group; ▲ and ▼ are figures above and below the "
    "first arm’s, the paired difference clear of 0. Bold is the best adversarial accuracy of a group: perhaps by "
    "chance, where the interval of its difference holds 0."
)


@dataclass(frozen=True)
class Figures:
    """What the files of figures hold: the comparison, and `OTHERS` by name. `attention` is an encoded PNG."""

    comparison: Nested
    others: Mapping[str, Nested] = field(default_factory=dict)
    attention: bytes | None = None


def read_figures(
    comparison: Path,
    others: Mapping[str, Path],
    attention: Path | None = None,
) -> Figures:
    """Read the files that `agevlm compare` writes; `others` are those of `OTHERS`, by name.

    A file that `agevlm compare` did not write, one of another comparison than its name in `others` says, and a picture
    that is no PNG are ValueErrors.
    """
    named = {name: _load_comparison(path) for name, path in others.items()}
    for name, content in named.items():
        if content.get("name") != name:
            raise ValueError(f"{others[name]} is of the comparison {content.get('name')!r}, where {name!r} was wanted")
    picture = attention.read_bytes() if attention else None
    if picture is not None and not picture.startswith(_PNG):
        raise ValueError(f"{attention} is no PNG")
    return Figures(_load_comparison(comparison), named, picture)


def write_page(figures: Figures, out: Path, sources: Sequence[Path] = (), log: Path | None = None) -> Path:
    """Write the page as Markdown to `out`, and its plots into the directory beside it that has its name.

    It links `sources`, the files of figures, and `log`, which tells of reasons and of what did not work. A picture of
    attention that lies there already stays. A path that does not end in .md is a ValueError.
    """
    if out.suffix != ".md" or out.is_dir():
        raise ValueError(f"{out} is no name of a page: it must end in .md and be no directory")
    kept = out.with_suffix("") / ATTENTION
    if figures.attention is None and kept.exists():
        figures = replace(figures, attention=kept.read_bytes())

    def link(path: Path) -> str:
        return f"[{path.name}]({os.path.relpath(path, out.parent)})"

    told = [Text(f"All figures: {', '.join(map(link, sources))}.")] if sources else []
    if log is not None:
        told.append(Text(f"Why claims failed, and what did not work: {link(log)}."))
    return write_markdown(build_page(figures, told), out)


def write_index(out: Path) -> Path:
    """Write the page of the comparisons in `out`, a directory of runs, as one HTML file with links to their reports.

    Reads the files of figures that `agevlm compare` left there: one without groups, or else the first, is the
    comparison. No such file is a ValueError.
    """
    found = {path: content for path in sorted(out.glob("*.json")) if section(content := _load(path), "arms")}
    if not found:
        raise ValueError(f"{out} holds no figures of a comparison: run `agevlm compare` into it")
    main = next((path for path, content in found.items() if not _is_grouped(content)), next(iter(found)))
    named = {name: content for path, content in found.items() for name in OTHERS if content.get("name") == name}
    picture = out / ATTENTION
    attention = picture.read_bytes() if picture.exists() else None
    figures = Figures(found[main], named, attention)
    return write_html(build_page(figures, _links(figures.comparison, out)), out / INDEX)


def draw_attention(summary: Nested, out: Path) -> Path | None:
    """Draw the arms of a comparison in `out` side by side, to attention.png there.

    From the first seed that all have, with their models. None where there is nothing to draw: groups of arms, a single
    arm, no such seed, no question in dispute.
    """
    runs = section(summary, "runs")
    shared = set.intersection(*(set(seeds) for seeds in runs.values())) if runs else set()
    of_seeds = ({arm: run_directory(out, arm, seed) for arm in runs} for seed in sorted(shared))
    kept = (found for found in of_seeds if all((run / "model").exists() for run in found.values()))
    directories = next(kept, None)
    if _is_grouped(summary) or len(runs) < 2 or directories is None:
        return None
    from agevlm.comparison.attention import write_attention

    path = out / ATTENTION
    return path if write_attention(directories, titles(summary), path) else None


def _is_grouped(content: Nested) -> bool:
    return len(section(content, "groups")) > 1


def build_page(figures: Figures, links: Sequence[Block] = ()) -> Page:
    """The page: a verdict for one minute, tables for ten; sections that nothing was measured for are left out.

    Of a comparison of groups, a table for each group. `links` go to the end.
    """
    content = figures.comparison
    if _is_grouped(content):
        name = str(content.get("name", "comparison"))
        introductions = {"ablations": _ablations, "sweeps": _sweeps}
        intro = introductions[name](content, {}) if name in introductions else _GROUPS
        groups = groups_section(content, "Group by group", intro, "groups")
        return Page(name.capitalize(), "", [], [part for part in (groups, _again(figures, links)) if part])
    ablations, sweeps = (figures.others.get(name, {}) for name in ("ablations", "sweeps"))
    sections = (
        arms_section(content),
        claims_section(content),
        figures_section(content),
        differences_section(content),
        curves_section(content),
        equal_time_section(content),
        compute_section(content, figures.others.get("longer", {})),
        breakdown_section(content),
        attention_section(figures.attention),
        detection_section(content),
        similarity_section(content),
        language_section(content),
        costs_section(content),
        groups_section(ablations, "Ablations", _ablations(ablations, content), "ablations"),
        groups_section(sweeps, "Sweeps", _sweeps(sweeps, content)),
        _again(figures, links),
    )
    title = "Guided against unguided cross-attention against concatenation"
    return Page(title, verdict(content), headline(content), [found for found in sections if found])


def _ablations(content: Nested, comparison: Nested) -> str:
    """What the ablations have in common, as their file has it; `comparison` says how long its own runs are."""
    arm = _first_arm(content)
    what = section(content, f"described.{arm}")
    if not what:
        return _GROUPS
    weights = " and ".join(f"{weight:g}" for weight in what["guided"].values())
    told = [
        *noted(content),
        f"One thing changed at a time, everything else as in the group’s first arm, {_length(what, comparison, arm)}.",
        f"{titles(content)[arm]} has the KL loss, weights {weights} in stages 3 and 4, both layers, heads averaged, "
        "phrases and answers guided but those of counting, the true masks of all samples.",
        _GROUPS,
        "Colours of the plot mark the groups.",
    ]
    if content.get("foundations") is None:
        told.append(
            "All seeds start from the packaged foundation: what differs between foundations is not in these intervals."
        )
    if len(what["language_model"]) == 1:
        told.append(
            "AGE +’s language model trains in stage 4 alone, so the arm that is guided in stage 3 only is not AGE, "
            "whose language model learns while it is guided; what stage 4 adds to AGE itself is in a group of its own."
        )
    return " ".join(told)


def _sweeps(content: Nested, comparison: Nested) -> str:
    """How settings were chosen; by which rule, the note of the file says."""
    arm = _first_arm(content)
    steps = section(content, f"described.{arm}").get("steps", 0)
    longest = max((what["steps"] for what in section(comparison, "described").values()), default=0)
    runs = "shorter runs" if steps < longest else "runs"
    return (
        f"How the settings of each arm were chosen: {runs} of one seed, measured on validation scenes, which no other "
        f"figure of this page is from. {content.get('note', '')}"
    ).rstrip()


def _first_arm(content: Nested) -> str:
    return str(next((arms[0] for arms in section(content, "groups").values() if arms), ""))


def _length(what: Nested, comparison: Nested, arm: str) -> str:
    """How long runs are, against those of the comparison's arm of that name."""
    whole = section(comparison, f"described.{arm}").get("steps")
    if not whole:
        return f"with {what['steps']} steps"
    if whole == what["steps"]:
        return f"at the comparison’s {whole} steps"
    return f"with {what['steps']} steps, where the comparison’s have {whole}"


def _again(figures: Figures, links: Sequence[Block]) -> Section:
    """Intervals, commands, seeds and versions."""
    content = figures.comparison
    sure = (
        "A seed has its own training scenes, weights, order and test world, and in the comparison one of its "
        "foundations, in turn. Intervals hold 95 %: the outer ends of a bootstrap over seeds and pictures, of "
        "Student’s t over the seeds, and, as seeds of one foundation are not independent, of Student’s t over the "
        "means of the foundations. Where an arm has one seed, its interval knows its pictures only. Of twenty "
        "intervals one is expected to miss."
    )
    runs = section(content, "runs")
    rows = [[title, ", ".join(map(str, runs.get(arm, ())))] for arm, title in titles(content).items()]
    facts = section(content, "environment")
    others = ((f"git, {name}", section(found, "environment").get("git")) for name, found in figures.others.items())
    made_with = [*facts.items(), *((key, commits) for key, commits in others if commits)]
    versions = Table(["environment", ""], [[str(key), _short(value)] for key, value in made_with])
    remarks = [Text(remark) for found in (content, *figures.others.values()) for remark in found.get("remarks", ())]
    blocks = [Text(sure), *remarks, Code(_commands(figures)), *links, Table(["arm", "seeds"], rows)]
    return Section("How sure, and how to make it again", [*blocks, versions] if facts else blocks)


def _commands(figures: Figures) -> str:
    """The commands that make the files of figures, and the page from them."""
    lines, page, jobs = [], ["agevlm results results/comparison.json"], _jobs(figures.comparison)
    for name in ("sweeps", "comparison", "longer", "ablations"):
        if name == "comparison" or name in figures.others:
            out = "comparison" if name == "longer" else name
            lines.append(f"agevlm compare {name} --out runs/{out} --json results/{name}.json{jobs}")
    page += [f"--{name} results/{name}.json" for name in OTHERS if name in figures.others]
    if figures.attention:
        page.append(f"--attention runs/comparison/{ATTENTION}")
    page.append("--log docs/log.md")
    return "\n".join([*lines, " \\\n  ".join([*page, "--out docs/results/comparison.md"])])


def _jobs(content: Nested) -> str:
    """How many runs went side by side, by the cores of each, as an option; nothing for one, or where not known."""
    facts = section(content, "costs_settings.environment")
    cores, threads = facts.get("num_cores"), facts.get("threads")
    number = cores // threads if cores and threads and facts.get("device") == "cpu" else 1
    return f" --jobs {number}" if number > 1 else ""


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _links(content: Nested, out: Path) -> list[Block]:
    """Links to the report of each run that is there, and to the files of figures."""
    rows = []
    for arm, title in titles(content).items():
        seeds = [str(seed) for seed in section(content, "runs").get(arm, ())]
        found = [f"[{s}]({arm}/{s}/report.html)" for s in seeds if (out / arm / s / "report.html").exists()]
        if found:
            rows.append([title, " ".join(found)])
    files = [f"[{path.name}]({path.name})" for path in sorted(out.glob("*.json"))]
    links: list[Block] = [Table(["arm", "reports of the runs, by seed"], rows)] if rows else []
    return [*links, *([Text(f"All figures: {', '.join(files)}.")] if files else [])]


def _load_comparison(path: Path) -> Nested:
    content = _load(path)
    if not section(content, "arms") or not section(content, "runs"):
        raise ValueError(f"{path} holds no runs of arms: it is not what `agevlm compare` writes")
    return content


def _load(path: Path) -> Nested:
    """A file that holds a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a file of figures is an object")
    return content
