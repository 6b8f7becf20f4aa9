"""`agevlm ground` in one process or, under `accelerate launch`, in several: each takes shards of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from agevlm.data.noun_chunks import NounChunks
from agevlm.data.parquet import ParquetDataset, Summary
from agevlm.data.phrases import PhraseFinder, Vocabulary, coco_vocabulary, read_vocabulary
from agevlm.teachers.base import Teacher
from agevlm.teachers.ground import Counts, GroundingRun, GroundOptions
from agevlm.teachers.registry import TeacherOptions, load_teacher
from agevlm.teachers.stopwatch import Stopwatch

Outcome = tuple[Summary, Counts]
Show = Callable[[int, int], None]  # is told of samples done and in all


@dataclass(frozen=True)
class Task:
    """All that a process must be told to take part: the dataset `source` is grounded into `out`.

    `teacher` is one of `registry.TEACHERS`, `vocabulary` what `choose_finder` takes.
    """

    source: str | Path
    out: str | Path
    teacher: str
    teacher_options: TeacherOptions
    options: GroundOptions
    vocabulary: str | None = None

    def load(self, device: str, stopwatch: Stopwatch) -> tuple[Teacher, PhraseFinder]:
        """The teacher on its device, and what finds the phrases."""
        categories = ParquetDataset(self.source).vocabulary
        options = replace(self.teacher_options, device=device)
        return load_teacher(self.teacher, options, categories, stopwatch), choose_finder(self.vocabulary, categories)

    def open(self, finder: PhraseFinder) -> GroundingRun:
        """The run, begun or gone on with."""
        settings = asdict(self.teacher_options)
        settings.pop("device")
        identity = {"teacher": self.teacher, "vocabulary": _digest(self.vocabulary, finder), **settings}
        return GroundingRun(self.source, self.out, identity, self.options)


def ground(task: Task, stopwatch: Stopwatch | None = None, show: Show = lambda done, total: None) -> Outcome | None:
    """Do a task; None in all processes but the main one, whose stopwatch has the times of all.

    `show` is told of the samples of this process. Errors are those of `GroundingRun`, of the teacher and of the
    vocabulary; nothing is written before all of these are there.
    """
    stopwatch, own_watch, device = stopwatch or Stopwatch(), Stopwatch(), task.teacher_options.device
    state = PartialState(cpu=device == "cpu")
    teacher, finder = task.load(str(state.device) if device == "auto" else device, own_watch)
    with state.main_process_first():
        run = task.open(finder)
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
        run.run(teacher, finder, own, own_watch, advance)
    state.wait_for_everyone()
    for watch in gather_object([own_watch]):
        stopwatch.add(watch)
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
