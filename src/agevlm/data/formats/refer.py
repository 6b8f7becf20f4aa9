"""Referring expressions (RefCOCO, RefCOCO+, RefCOCOg) → the project's grounded dataset.

Their `refs(…).p` are pickles of plain lists and dictionaries; they are read without running anything that a pickle may
hold. The same as JSON is read too. Each expression becomes a question where the thing is, or where that is hard to say
what there is to see, grounded in the thing's mask.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agevlm.data.formats.coco import OTHER_SIZE, load_instances, other_size, to_instance
from agevlm.data.formats.coco_masks import BrokenAnnotationError
from agevlm.data.formats.report import Report
from agevlm.data.images import image_size
from agevlm.data.language import CAPTION_REQUESTS, corner_of
from agevlm.data.parquet import Record, Summary, write_parquet
from agevlm.data.schema import Conversation, Grounding, ImageSource, Instance, Message, Sample


def convert_refer(
    refs: str | Path,
    instances: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    skip_missing: bool = False,
    skip_broken: bool = False,
    embed_images: bool = True,
) -> tuple[Report, Summary]:
    """Write the dataset of a file of referring expressions and its COCO instances: `agevlm data refer`.

    One sample for each picture; `split` takes the expressions of that split alone. A picture that is not there is a
    ValueError unless `skip_missing`; one of another size than stated, and an expression without text or of an
    annotation that is not there, broken or of another picture is one unless `skip_broken`.
    """
    content = load_instances(Path(instances))
    reader = _Reader(Path(instances), content, Path(images), skip_missing, skip_broken)
    records = reader.records(_chosen(_load(Path(refs)), split, Path(refs)))
    summary = write_parquet(out, records, vocabulary=tuple(reader.categories.values()), embed_images=embed_images)
    return reader.report, summary


class _Reader:
    def __init__(
        self, path: Path, content: Mapping[str, Any], images: Path, skip_missing: bool, skip_broken: bool
    ) -> None:
        self.report = Report(str(path))
        self.images, self.skip_missing, self.skip_broken = images, skip_missing, skip_broken
        self.listed = {entry.get("id"): entry for entry in content["images"]}
        self.annotations = {entry.get("id"): entry for entry in content["annotations"]}
        self.categories = {entry.get("id"): str(entry.get("name")) for entry in content["categories"]}

    def records(self, refs: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        by_picture: dict[Any, list[Mapping[str, Any]]] = {}
        for ref in refs:
            by_picture.setdefault(ref.get("image_id"), []).append(ref)
        for number, own in by_picture.items():
            source = self._source(number)
            if source is None:
                continue
            conversations = [made for ref in own for made in self._conversations(ref, source)]
            if conversations:
                self.report.kept.update({"pictures": 1, "expressions": len(conversations)})
                yield Record(Sample(source.id, (source,), tuple(conversations)))

    def _source(self, number: Any) -> ImageSource | None:
        entry = self.listed.get(number)
        if entry is None or not isinstance(entry.get("file_name"), str):
            self._leave("pictures that the instances do not list", f"picture {number} is not listed", broken=True)
            return None
        path = self.images / entry["file_name"]
        if not path.is_file():
            self._leave("pictures missing on disk", f"{path}: no such picture", broken=False)
            return None
        try:
            height, width = image_size(path)
        except ValueError as error:
            self._leave("pictures that cannot be read", str(error), broken=True)
            return None
        stated = (entry.get("height"), entry.get("width"))
        if stated != (height, width):
            self._leave(OTHER_SIZE, other_size(path, (height, width), stated), broken=True)
            return None
        return ImageSource(str(number), height, width, path=path)

    def _conversations(self, ref: Mapping[str, Any], source: ImageSource) -> Iterator[Conversation]:
        name = f"expression {ref.get('ref_id')} of picture {source.id}"
        annotation = self.annotations.get(ref.get("ann_id"))
        if annotation is None:
            self._leave("expressions of no annotation", f"{name}: no annotation {ref.get('ann_id')}", broken=True)
            return
        if annotation.get("image_id") != ref.get("image_id"):
            detail = f"{name}: annotation {ref.get('ann_id')} is of picture {annotation.get('image_id')}"
            self._leave("expressions of another picture's annotation", detail, broken=True)
            return
        try:
            thing = to_instance(annotation, self.categories, source, self.report.mended)
        except BrokenAnnotationError as error:
            self._leave(f"annotations: {error.reason}", f"{name}: {error}", broken=True)
            return
        for number, sentence in enumerate(ref.get("sentences") or ()):
            text = " ".join(str(sentence.get("sent") or sentence.get("raw") or "").split()).rstrip(".")
            if text:
                yield _conversation(f"{source.id}/{ref.get('ref_id')}.{number}", text, thing, source)
            else:
                self._leave("expressions without text", f"{name}: sentence {number} is empty", broken=True)

    def _leave(self, reason: str, detail: str, *, broken: bool) -> None:
        """Count what is left out, or refuse to."""
        if not (self.skip_broken if broken else self.skip_missing):
            flag = "--skip-broken" if broken else "--skip-missing"
            raise ValueError(f"{detail}; {flag} leaves such things out and counts them")
        self.report.left_out[reason] += 1


def _conversation(identity: str, text: str, thing: Instance, source: ImageSource) -> Conversation:
    corner = corner_of(thing, (source.height, source.width))
    before = "" if text.lower().startswith(("the ", "a ", "an ")) else "the "
    if corner is not None:
        asked, answer, kind = f"where is {before}{text}?", corner, "location"
        place, start = 0, len("where is ") + len(before)
    else:
        request = CAPTION_REQUESTS[sum(identity.encode()) % len(CAPTION_REQUESTS)]
        asked, answer, kind = request, f"{before}{text}.", "caption"
        place, start = 1, len(before)
    known = Grounding(place, start, start + len(text), text, True, (thing.mask,))
    return Conversation(identity, kind, (Message("user", asked, 1), Message("assistant", answer)), (known,))


# ------------------------------------------------------------------------------------------------------------- files


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, texts and numbers, and nothing that would have to be imported."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and only plain lists and dictionaries are read")


def _load(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file of referring expressions; give a refs(…).p, or the same as JSON")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_bytes())
        else:
            with path.open("rb") as stream:
                content = _PlainUnpickler(stream, encoding="utf-8").load()
    except (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: referring expressions cannot be read from it ({error})") from error
    if not isinstance(content, list) or not all(isinstance(ref, Mapping) for ref in content):
        raise ValueError(f"{path}: holds no list of referring expressions")
    return content


def _chosen(refs: Sequence[Mapping[str, Any]], split: str | None, path: Path) -> list[Mapping[str, Any]]:
    chosen = [ref for ref in refs if split is None or ref.get("split") == split]
    if not chosen:
        known = ", ".join(sorted({str(ref.get("split")) for ref in refs})) or "none at all"
        raise ValueError(f"{path}: has no expressions of the split {split!r}; there are {known}")
    return chosen
