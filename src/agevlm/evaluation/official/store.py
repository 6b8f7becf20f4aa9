"""The files of a run on a benchmark, made so that a killed run goes on: answers appended a whole line at a time.

OUT/run.json            what is asked of whom; another run in the same directory is refused
OUT/answers.jsonl       answers of earlier calls, gathered
OUT/answers-R.jsonl     what process R appends; gathered when the next call begins, or at the end
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from agevlm.documents import parse_json, read_json
from agevlm.files import write_beside

_GATHERED = "answers.jsonl"
_ADVICE = "choose another --out, or remove it"


class AnswerStore:
    """Answers by the key of what was asked, on disk."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)

    def begin(self, identity: Mapping[str, Any], keys: Collection[str]) -> None:
        """Make the directory, or check that it is of the same run, and gather what earlier processes left.

        `keys` are those of all that is asked. A directory of another run, by what it says of itself or by answers to
        anything else, is a ValueError that names what differs.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        path, answers = self.out / "run.json", self.answers()
        if answers and not path.is_file():
            raise ValueError(f"{self.out} holds answers of which nothing is known (no run.json): {_ADVICE}")
        if answers:
            self._check(read_json(path, _ADVICE), identity)
            others = [key for key, record in answers.items() if record["answer"] is not None and key not in keys]
            if others:
                raise ValueError(
                    f"{self.out} holds another run: {len(others)} of its {len(answers)} answers are about other "
                    f"questions or other pictures of the same names (another --data, fewer --num-images): {_ADVICE}"
                )
        with write_beside(path) as beside:
            beside.write_text(json.dumps(dict(identity), indent=2) + "\n", encoding="utf-8")
        self.gather(again=True)

    def _check(self, known: Any, identity: Mapping[str, Any]) -> None:
        known = known if isinstance(known, dict) else {}
        differs = [name for name in identity if known.get(name) != identity[name]]
        if differs:
            name = differs[0]
            raise ValueError(
                f"{self.out} holds another run: its {name} is {known.get(name)!r}, and this one's is "
                f"{identity[name]!r}: {_ADVICE}"
            )

    def gather(self, *, again: bool = False) -> dict[str, dict[str, Any]]:
        """All answers by key, put into one file; the files of the processes go. A last line cut short is dropped.

        With `again` those that failed for their picture are dropped too, and will be tried again.
        """
        answers = {key: record for key, record in self.answers().items() if not again or record["answer"] is not None}
        with write_beside(self.out / _GATHERED) as beside, beside.open("w", encoding="utf-8") as file:
            for record in answers.values():
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        for path in self._parts():
            path.unlink()
        return answers

    def answers(self) -> dict[str, dict[str, Any]]:
        """All answers by key."""
        found: dict[str, dict[str, Any]] = {}
        for path in (self.out / _GATHERED, *self._parts()):
            for record in _whole_lines(path):
                found.setdefault(record["key"], record)
        return found

    def append(self, process: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Add answers to the file of a process and have them on the disk before returning."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with (self.out / f"answers-{process}.jsonl").open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def _parts(self) -> list[Path]:
        return sorted(self.out.glob("answers-*.jsonl"))


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = []
    for number, line in enumerate(lines[:-1], 1):  # behind the last line end: nothing, or half a line
        if line.strip():
            record = parse_json(line, f"{path}, line {number}", _ADVICE)
            if not isinstance(record, dict) or not {"key", "answer"} <= record.keys():
                raise ValueError(f"{path}, line {number}: no answer with its key; {_ADVICE}")
            found.append(record)
    return found
