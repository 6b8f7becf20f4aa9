"""`agevlm ground` in one process or, under `accelerate launch`, in several: each takes shards of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import PartialState

from agevlm.data.parquet import ParquetDataset, Summary
from agevlm.data.phrases import Vocabulary, coco_vocabulary, read_vocabulary
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

    `vocabulary` is a file of names (`data/phrases.py`) or "coco"; without one it is the dataset's own, and COCO's for a
    dataset that has none. `show` is told of samples done and in all, of this process. None in all processes but the
    main one. Errors are those of `GroundingRun`, of the teacher and of the vocabulary.
    """
    stopwatch, state = stopwatch or Stopwatch(), PartialState(cpu=teacher_options.device == "cpu")
    if teacher_options.device == "auto":
        teacher_options = replace(teacher_options, device=str(state.device))
    dataset = ParquetDataset(source)
    finder = choose_vocabulary(vocabulary, dataset.vocabulary)
    loaded = load_teacher(teacher, teacher_options, dataset.vocabulary, stopwatch)  # before anything is written
    identity = {"teacher": teacher, "vocabulary": _digest(finder.synonyms), **asdict(teacher_options)}
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


def choose_vocabulary(name: str | None, categories: tuple[str, ...]) -> Vocabulary:
    """The vocabulary of this name: "coco", a file, or where none is given that of a dataset's own categories.

    Categories that are COCO's bring what else COCO's are called. No name and no categories: COCO's.
    """
    coco = coco_vocabulary()
    if name == "coco" or (name is None and not categories):
        return coco
    if name is not None:
        return read_vocabulary(name)
    return Vocabulary({category: coco.synonyms.get(category, ()) for category in categories})


def _digest(synonyms: Mapping[str, Sequence[str]]) -> str:
    """A name for all names of a vocabulary, so that another one is noticed."""
    content = sorted((name, list(others)) for name, others in synonyms.items())
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]
