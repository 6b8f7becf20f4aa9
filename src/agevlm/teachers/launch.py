"""`agevlm ground` in one process or, under `accelerate launch`, in several: each takes shards of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import PartialState

from agevlm.data.noun_chunks import NounChunks
from agevlm.data.parquet import ParquetDataset, Summary
from agevlm.data.phrases import PhraseFinder, Vocabulary, coco_vocabulary, read_vocabulary
from agevlm.teachers.ground import Counts, GroundingRun, GroundOptions
from agevlm.teachers.registry import TeacherOptions, load_teacher
from agevlm.teachers.stopwatch import Stopwatch

Outcome = tuple[Summary, Counts]


def ground(
    source: str | Path,
    out: str | Path,
    teacher: str,
    teacher_options: TeacherOptions,
    options: GroundOptions,
    vocabulary: str | None = None,
    stopwatch: Stopwatch | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome | None:
    """Ground the dataset `source` into `out` by the teacher of this name (`registry.TEACHERS`).

    `vocabulary` is what `choose_finder` takes. `show` is told of samples done and in all, of this process. None in all
    processes but the main one. Errors are those of `GroundingRun`, of the teacher and of the vocabulary.
    """
    stopwatch, state = stopwatch or Stopwatch(), PartialState(cpu=teacher_options.device == "cpu")
    if teacher_options.device == "auto":
        teacher_options = replace(teacher_options, device=str(state.device))
    dataset = ParquetDataset(source)
    finder = choose_finder(vocabulary, dataset.vocabulary)
    loaded = load_teacher(teacher, teacher_options, dataset.vocabulary, stopwatch)  # before anything is written
    identity = {"teacher": teacher, "vocabulary": _digest(vocabulary, finder), **asdict(teacher_options)}
    identity.pop("device")
    with state.main_process_first():
        run = GroundingRun(source, out, identity, options)
    if state.is_main_process:
        run.remove_leftovers()
    own = run.todo[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # all have read what is to do before any has done some of it
    done, total = 0, run.num_samples(own)

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        show(done, total)

    if own:
        run.run(loaded, finder, own, stopwatch, advance)
    state.wait_for_everyone()
    return run.finish() if state.is_main_process else None


def choose_finder(name: str | None, categories: tuple[str, ...]) -> PhraseFinder:
    """What finds phrases: the vocabulary "coco" or of a file, "spacy:PIPELINE", or that of a dataset's own categories.

    Categories that are COCO's bring what else COCO's are called. No name and no categories: COCO's.
    """
    if name is not None and name.startswith("spacy:"):
        return NounChunks(name.removeprefix("spacy:"))
    coco = coco_vocabulary()
    if name == "coco" or (name is None and not categories):
        return coco
    if name is not None:
        return read_vocabulary(name)
    return Vocabulary({category: coco.synonyms.get(category, ()) for category in categories})


def _digest(name: str | None, finder: PhraseFinder) -> str:
    """A name for all names of a vocabulary, so that another one is noticed."""
    if not isinstance(finder, Vocabulary):
        return str(name)
    content = sorted((name, list(others)) for name, others in finder.synonyms.items())
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]
