"""Referring expressions (RefCOCO, RefCOCO+, RefCOCOg) → the project's grounded dataset.

Their `refs(…).p` are pickles of plain lists and dictionaries; they are read without running anything that a pickle may
hold. The same as JSON is read too. Each expression becomes a question where the thing is, or where that is hard to say
what there is to see, grounded in the thing's mask.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agevlm.data.formats.coco import (
    OTHER_SIZE,
    field_of,
    load_instances,
    other_size,
    plain_id,
    read_categories,
    to_instance,
)
from agevlm.data.formats.coco_masks import BrokenAnnotationError
from agevlm.data.formats.report import Report
from agevlm.data.images import image_size
from agevlm.data.language import CAPTION_REQUESTS, corner_of
from agevlm.data.parquet import Record, Summary, write_parquet
from agevlm.data.schema import Conversation, Grounding, ImageSource, Instance, Message, Sample
from agevlm.documents import NO_TEXT, is_text, open_file, read_json
from agevlm.files import inside


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
    allow_outside: bool = False,
) -> tuple[Report, Summary]:
    """Write the dataset of a file of referring expressions and its COCO instances: `agevlm data refer`.

    One sample for each picture; `split` takes the expressions of that split alone. A picture that is not there is a
    ValueError unless `skip_missing`; one outside of `images` (unless `allow_outside`), one of another size than stated,
    and an expression that is malformed, without text or of an annotation that is not there, broken or of another
    picture is one unless `skip_broken`.
    """
    reader = _Reader(Path(refs), Path(instances), Path(images))
    reader.skip_missing, reader.skip_broken, reader.allow_outside = skip_missing, skip_broken, allow_outside
    records = reader.records(_chosen(_load(Path(refs)), split, Path(refs)))
    vocabulary = tuple(dict.fromkeys(reader.categories.values()))
    summary = write_parquet(out, records, vocabulary=vocabulary, embed_images=embed_images)
    return reader.report, summary


class _Reader:
    """The instances that expressions refer to, their pictures, and what becomes of both."""

    skip_missing = skip_broken = allow_outside = False

    def __init__(self, refs: Path, instances: Path, images: Path) -> None:
        content = load_instances(instances)
        self.refs, self.instances, self.images = refs, instances, images
        self.report = Report(str(instances))
        self.listed = {field_of(entry, "id", "image", instances): entry for entry in content["images"]}
        self.annotations = {field_of(entry, "id", "annotation", instances): entry for entry in content["annotations"]}
        self.categories = read_categories(content["categories"], instances, self.report.mended)

    def records(self, refs: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        by_picture: dict[Any, list[Mapping[str, Any]]] = {}
        for ref in refs:
            if fault := _fault(ref):
                self._leave("expressions that are malformed", f"expression {_told(ref.get('ref_id'))}: {fault}")
                continue
            by_picture.setdefault(plain_id(ref["image_id"]), []).append(ref)
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
            self._leave("pictures that the instances do not list", f"picture {number} is not listed")
            return None
        try:
            path = inside(self.images, entry["file_name"], self.allow_outside)
        except ValueError as error:
            self._leave("pictures outside their directory", f"picture {number}: {error}")
            return None
        if not os.path.isfile(path):  # unlike Path's own, false for a name that no file system takes
            self._leave("pictures missing on disk", f"{path}: no such picture", missing=True)
            return None
        try:
            height, width = image_size(path)
        except ValueError as error:
            self._leave("pictures that cannot be read", str(error))
            return None
        stated = (entry.get("height"), entry.get("width"))
        if stated != (height, width):
            self._leave(OTHER_SIZE, other_size(path, (height, width), stated))
            return None
        return ImageSource(str(number), height, width, path=path)

    def _conversations(self, ref: Mapping[str, Any], source: ImageSource) -> Iterator[Conversation]:
        name = f"expression {ref.get('ref_id')} of picture {source.id}"
        annotation = self.annotations.get(plain_id(ref.get("ann_id")))
        if annotation is None:
            self._leave("expressions of no annotation", f"{name}: no annotation {ref.get('ann_id')}")
            return
        if plain_id(annotation.get("image_id")) != plain_id(ref.get("image_id")):
            detail = f"{name}: annotation {ref.get('ann_id')} is of picture {annotation.get('image_id')}"
            self._leave("expressions of another picture's annotation", detail)
            return
        try:
            thing = to_instance(annotation, self.categories, source, self.report.mended)
        except BrokenAnnotationError as error:
            self._leave(f"annotations: {error.reason}", f"{name}: {error}")
            return
        for number, sentence in enumerate(ref["sentences"]):
            text = " ".join((sentence.get("sent") or sentence.get("raw") or "").split()).rstrip(".")
            if not text:
                self._leave("expressions without text", f"{name}: sentence {number} is empty")
            elif not is_text(text):
                self._leave("expressions that are no text", f"{name}: sentence {number} has {NO_TEXT}")
            else:
                yield _conversation(f"{source.id}/{ref.get('ref_id')}.{number}", text, thing, source)

    def _leave(self, reason: str, detail: str, *, missing: bool = False) -> None:
        """Count what is left out, or refuse to."""
        if not (self.skip_missing if missing else self.skip_broken):
            flag = "--skip-missing" if missing else "--skip-broken"
            raise ValueError(f"{self.refs}: {detail}; {flag} leaves such things out and counts them")
        self.report.left_out[reason] += 1


def _fault(ref: Mapping[str, Any]) -> str | None:
    """What keeps an expression from being read, or None."""
    for key in ("ref_id", "image_id", "ann_id"):
        if type(ref.get(key)) not in (int, str) or not is_text(str(ref[key])):
            return f"its {key} is {_told(ref.get(key))}, and a number was expected"
    sentences = ref.get("sentences")
    if not isinstance(sentences, list | tuple) or not all(map(_is_sentence, sentences)):
        return f"its sentences are {_told(sentences)}, and a list of mappings with the text `sent` was expected"
    return None


def _is_sentence(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str | None) for key in ("sent", "raw"))


def _told(value: Any) -> str:
    return f"{value!r:.60}"


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
    if not path.exists():
        raise ValueError(f"{path}: no such file of referring expressions; give a refs(…).p, or the same as JSON")
    if path.suffix == ".json":
        content = read_json(path)
    else:
        try:
            with open_file(path) as stream:
                content = _PlainUnpickler(stream, encoding="utf-8").load()
        except OSError:
            raise
        except Exception as error:  # a damaged pickle makes its reader raise anything
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
