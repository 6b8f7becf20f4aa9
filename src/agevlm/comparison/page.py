"""The pages of a comparison, from its files of figures: Markdown for the documentation, one HTML file for a browser.

Both are written from the same sections. Everything on them is computed from the files of figures or told in the recipes
that made these; nothing is written by hand.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from agevlm.comparison.document import Block, Code, Page, Section, Site, Table, Text, write_html, write_markdown
from agevlm.comparison.figures_file import read_figures, read_object
from agevlm.comparison.groups import groups_section, is_grouped
from agevlm.comparison.overview import overview, title_of, verdict
from agevlm.comparison.readings import Nested, section, titles
from agevlm.comparison.run import run_directory
from agevlm.comparison.sections import (
    arms_section,
    claims_section,
    curves_section,
    differences_section,
    equal_time_section,
    hallucination_section,
    looking_section,
    skills_section,
)

ATTENTION = "attention.png"
INDEX = "index.html"
AGAIN = "how-to-make-again"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figures:
    """A comparison's file of figures, those of studies that belong to it, and a picture of attention, encoded as PNG.

    `sources` are the files, for links; `log` is a page that tells of reasons.
    """

    comparison: Nested
    studies: Sequence[Nested] = ()
    attention: bytes | None = None
    sources: Sequence[Path] = ()
    log: Path | None = None


def load_figures(paths: Sequence[Path], attention: Path | None = None, log: Path | None = None) -> Figures:
    """Read files that `agevlm compare run` writes: the comparison's, then those of its studies.

    A file that it did not write, two of one name, and a picture that is no PNG are ValueErrors.
    """
    comparison, *studies = (read_figures(path) for path in paths)
    names = [str(content.get("name")) for content in (comparison, *studies)]
    if twice := [path for path, name in zip(paths, names, strict=True) if names.count(name) > 1]:
        raise ValueError(f"{' and '.join(map(str, twice))} are figures of the same comparison: give each once")
    picture = attention.read_bytes() if attention else None
    if picture is not None and not picture.startswith(_PNG):
        raise ValueError(f"{attention} is no PNG")
    return Figures(comparison, studies, picture, paths, log)


def write_page(figures: Figures, out: Path) -> Path:
    """Write the summary as Markdown to `out`; the pages behind it and all pictures go into the directory of its name.

    A picture of attention that lies there already stays. A path that does not end in .md is a ValueError.
    """
    if out.suffix != ".md" or out.is_dir():
        raise ValueError(f"{out} is no name of a page: it must end in .md and be no directory")
    directory = out.with_suffix("")
    if figures.attention is None and (kept := directory / ATTENTION).exists():
        figures = replace(figures, attention=kept.read_bytes())

    def link(path: Path) -> str:
        return f"[{path.name}]({os.path.relpath(path, directory)})"

    links: list[Block] = [Code(_commands(figures, out))]
    if figures.sources:
        links.append(Text(f"All figures: {', '.join(map(link, figures.sources))}."))
    if figures.log is not None:
        links.append(Text(f"Reasons, and what did not work: [the log]({os.path.relpath(figures.log, directory)})."))
    return write_markdown(build_site(figures, links), out)


def write_index(out: Path) -> Path:
    """Write the page of the comparisons in `out`, a directory of runs, as one HTML file with links to their reports.

    Reads the files of figures that `agevlm compare run` left there: one without groups, or else the first, is the
    comparison. No such file is a ValueError.
    """
    found = {path: content for path in sorted(out.glob("*.json")) if section(content := read_object(path), "arms")}
    if not found:
        raise ValueError(f"{out} holds no figures of a comparison: run `agevlm compare run` into it")
    main = next((path for path, content in found.items() if not is_grouped(content)), next(iter(found)))
    picture = out / ATTENTION
    attention = picture.read_bytes() if picture.exists() else None
    figures = Figures(found[main], [content for path, content in found.items() if path != main], attention)
    return write_html(build_site(figures, _reports(found[main], out)).whole, out / INDEX)


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
    if is_grouped(summary) or len(runs) < 2 or directories is None:
        return None
    from agevlm.comparison.attention import write_attention

    path = out / ATTENTION
    return path if write_attention(directories, titles(summary), path) else None


def build_site(figures: Figures, made_by: Sequence[Block] = ()) -> Site:
    """The summary and the pages behind it; pages and sections that nothing was measured for are left out.

    Of a comparison of groups the summary has a table for each group. `made_by` tells how the figures came about.
    """
    content = figures.comparison
    if is_grouped(content):
        summary, behind = study_page(content), dict[str, Page]()
    else:
        summary, behind = overview(content, figures.attention), _parts(content, figures.attention)
    for study in figures.studies:
        name = str(study.get("name"))
        if name in (*behind, AGAIN):
            raise ValueError(f"a study cannot be called {name!r}: the comparison has a page of that name")
        behind[name] = study_page(study)
    return Site(summary, {**behind, AGAIN: _again(figures, made_by)})


def study_page(content: Nested) -> Page:
    """The page of a study in groups: what its recipe tells of it, its claims, and a table for each group."""
    about = " ".join([section(content, "page").get("about", ""), *_one_foundation(content)]).strip()
    sections = [part for part in (claims_section(content), groups_section(content)) if part]
    return Page(title_of(content), verdict(content), [Text(about)] if about else [], sections)


def _one_foundation(content: Nested) -> list[str]:
    if (content.get("foundations") or 1) > 1:
        return []
    return ["All seeds start from one foundation: what differs between foundations is not in these intervals."]


def _parts(content: Nested, attention: bytes | None) -> dict[str, Page]:
    """File name → the page behind the summary."""
    found = {
        "arms": ("The arms", [arms_section(content)]),
        "claims": ("Claims", [claims_section(content)]),
        "hallucination": ("Hallucination", [hallucination_section(content), breakdown_section(content)]),
        "attention": (
            "Attention and the null token",
            [attention_section(attention), looking_section(content), detection_section(content)],
        ),
        "skills": (
            "Other skills, and language kept",
            [skills_section(content), similarity_section(content), language_section(content)],
        ),
        "differences": ("Paired differences", [differences_section(content)]),
        "training": ("Training", [curves_section(content), equal_time_section(content)]),
        "costs": ("What the arms cost", [costs_section(content)]),
    }
    pages = {name: Page(title, "", [], [part for part in parts if part]) for name, (title, parts) in found.items()}
    return {name: page for name, page in pages.items() if page.sections}


def _again(figures: Figures, made_by: Sequence[Block]) -> Page:
    """Intervals, commands, seeds and versions."""
    content = figures.comparison
    sure = (
        "A seed has its own training scenes, weights, order and test world, and where there are several foundations "
        "one of them, in turn. Intervals hold 95 %. They reach over three: a bootstrap over seeds and pictures, "
        "Student’s t over the seeds, and Student’s t over the means of the foundations, for seeds of one foundation "
        "are not independent. With one seed an interval knows its pictures only. One interval of twenty is expected "
        "to miss."
    )
    runs, facts = section(content, "runs"), section(content, "environment")
    rows = [[title, ", ".join(map(str, runs.get(arm, ())))] for arm, title in titles(content).items()]
    others = ((f"git, {found.get('name')}", section(found, "environment").get("git")) for found in figures.studies)
    made_with = [*facts.items(), *((key, commits) for key, commits in others if commits)]
    remarks = [Text(remark) for found in (content, *figures.studies) for remark in found.get("remarks", ())]
    tables = [Section("Seeds", [Table(["arm", "seeds"], rows)])]
    if made_with:
        versions = Table(["environment", ""], [[str(key), _short(value)] for key, value in made_with])
        tables.append(Section("Environment", [versions]))
    made = [Section("How they were made", [*remarks, *made_by])] if remarks or made_by else []
    return Page(
        "How sure, and how to make it again",
        "",
        [],
        [Section("How sure", [Text(" ".join([sure, *_one_foundation(content)]))]), *made, *tables],
    )


def _commands(figures: Figures, out: Path) -> str:
    """The commands that make the files of figures, and the page from them, in the directory that holds all of these."""
    files = [*figures.sources, *([figures.log] if figures.log else []), out]
    root = os.path.commonpath([path.resolve().parent for path in files])

    def place(path: Path) -> str:
        return os.path.relpath(path.resolve(), root)

    names = [str(content.get("name")) for content in (figures.comparison, *figures.studies)]
    made = zip(names, map(place, figures.sources), strict=False)
    lines = [f"agevlm compare run {name} --json {source}{_jobs(figures.comparison)}" for name, source in made]
    page = [f"agevlm compare page {' '.join(map(place, figures.sources))}"]
    page += [f"--attention runs/{names[0]}/{ATTENTION}"] if figures.attention else []
    page += [f"--log {place(figures.log)}"] if figures.log else []
    return "\n".join([*lines, " \\\n  ".join([*page, f"--out {place(out)}"])])


def _jobs(content: Nested) -> str:
    """How many runs went side by side, by the cores of each, as an option; nothing for one, or where not known."""
    facts = section(content, "costs_settings.environment")
    cores, threads = facts.get("num_cores"), facts.get("threads")
    number = cores // threads if cores and threads and facts.get("device") == "cpu" else 1
    return f" --jobs {number}" if number > 1 else ""


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _reports(content: Nested, out: Path) -> list[Block]:
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
