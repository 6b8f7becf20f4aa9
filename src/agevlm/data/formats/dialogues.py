"""Pictures with text, as others store them → the project's dataset: LLaVA's JSON, chat messages, captions.

What comes out has no groundings; `agevlm ground` finds the phrases and lets a teacher mask them. Nothing is left out in
silence: what cannot be used is an error that names it, or, where the caller allows, counted by reason.

    llava      a JSON list of {id, image, conversations: [{from, value}]}; `<image>` stands for a picture
    messages   rows of {messages: [{role, content}], images}, in .jsonl, .json or .parquet, as chat templates have them
    captions   COCO's captions_*.json
    folder     a directory of pictures, each with its caption in a .txt beside it or in a metadata.jsonl

The first three may be rows of a dataset of the hub instead, of captions {image, caption or text}.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from agevlm.data.formats.coco import field_of
from agevlm.data.formats.hub import HubDataset
from agevlm.data.formats.report import Report
from agevlm.data.images import image_size
from agevlm.data.language import CAPTION_REQUESTS, CONVERSATION
from agevlm.data.parquet import DAMAGED, Record, Summary, write_parquet
from agevlm.data.schema import Conversation, ImageSource, Message, Role, Sample
from agevlm.documents import NO_TEXT, is_text, open_file, parse_json, read_json
from agevlm.files import inside

Format = Literal["llava", "messages", "captions", "folder"]
_PLACEHOLDER = "<image>"
_PART_KEYS = ("image", "path", "url")  # under which a part of a message names its picture
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
_CAPTIONS, _IMAGES = ("caption", "text"), ("images", "image")  # columns, of which the first that is filled is taken
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class DialogueOptions:
    """What `convert_dialogues` takes: the first `limit` usable samples, and whether it leaves out what is broken."""

    limit: int | None = None
    skip_missing: bool = False
    skip_broken: bool = False
    embed_images: bool = True
    allow_outside: bool = False  # pictures from outside their directory, where the source names such


@dataclass
class _Entry:
    """A sample as it was found: pictures by file name or bytes, and turns with the number of pictures before them."""

    id: str
    images: list[str | bytes]
    turns: list[tuple[str, str, int]]
    kind: str = CONVERSATION
    notes: list[str] = field(default_factory=list)  # what was mended


class _UnusableError(ValueError):
    """An entry that cannot be used; `reason` is the kind of fault, under which it is counted."""

    def __init__(self, reason: str, detail: str, *, expected: bool = False) -> None:
        super().__init__(detail)
        self.reason, self.expected = reason, expected  # expected: no fault, only nothing for us


def convert_dialogues(
    format: Format,
    source: str | Path | HubDataset,
    images: str | Path | None,
    out: str | Path,
    options: DialogueOptions | None = None,
) -> tuple[Report, Summary]:
    """Write the dataset of `source`, of one of the formats above, to `out`: the `agevlm data convert` command.

    A dataset of the hub is streamed, and no further than `limit` asks.

    `images` is the directory that names of pictures start from, by default that of `source`. Samples without a picture
    are counted and left out. An id that was there before gets a number. A picture that is missing is a ValueError
    unless `skip_missing`; one outside of `images` (unless `allow_outside`) or that cannot be read, an entry without an
    answer, with a role nobody knows or with another number of pictures than placeholders is one unless `skip_broken`.
    """
    options = options or DialogueOptions()
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"the limit of samples must be at least 1, got {options.limit}")
    report = Report(str(source))
    if isinstance(source, HubDataset):
        root, entries = Path(images or "."), _hub_entries(format, source)
    else:
        root, entries = _opened(format, Path(source), images)
    if not root.is_dir():
        raise ValueError(f"{root}: no such directory of pictures")
    records = _records(entries, root, report, options, counts_rest=not isinstance(source, HubDataset))
    summary = write_parquet(out, records, name=Path(out).name, vocabulary=(), embed_images=options.embed_images)
    return report, summary


def _opened(format: Format, source: Path, images: str | Path | None) -> tuple[Path, Iterator[Callable[[], _Entry]]]:
    """Where names of pictures start from, and the entries of a file or directory."""
    if not source.exists():
        raise ValueError(f"{source}: no such file or directory; give what --from {format} names")
    root = Path(images) if images is not None else source if source.is_dir() else source.parent
    return root, _READERS[format](source)


def _records(
    entries: Iterable[Callable[[], _Entry]],
    root: Path,
    report: Report,
    options: DialogueOptions,
    counts_rest: bool = True,
) -> Iterator[Record]:
    """The usable entries; each comes as a function, so that a broken one does not end the others."""
    ids: Counter[str] = Counter()
    for read in entries:
        if options.limit is not None and report.kept["samples"] >= options.limit:
            if not counts_rest:
                return
            report.left_out["samples after the limit"] += 1
            continue
        try:
            entry = read()
            if not is_text(entry.id):
                raise _UnusableError("ids that are no text", f"sample {entry.id!r:.60} has {NO_TEXT} in its id")
            ids[entry.id] += 1
            if ids[entry.id] > 1:
                entry.notes.append("ids used before")
                entry.id = f"{entry.id}#{ids[entry.id]}"
            sample = _sample(entry, root, options.allow_outside)
        except _UnusableError as error:
            skips = options.skip_missing if error.reason == "pictures missing on disk" else options.skip_broken
            if not (skips or error.expected):
                flag = "--skip-missing" if error.reason == "pictures missing on disk" else "--skip-broken"
                raise ValueError(f"{report.source}: {error}; {flag} leaves such samples out and counts them") from error
            report.left_out[error.reason] += 1
            continue
        report.mended.update(entry.notes)
        report.kept.update({"samples": 1, "pictures": len(sample.images), "messages": len(entry.turns)})
        yield Record(sample)


def _sample(entry: _Entry, root: Path, allow_outside: bool) -> Sample:
    name = f"sample {entry.id}"
    shown = sum(number for _, _, number in entry.turns)
    if not entry.images:
        raise _UnusableError("samples without a picture", f"{name} has no picture", expected=True)
    if shown != len(entry.images):
        raise _UnusableError(
            "another number of placeholders than pictures",
            f"{name} has {len(entry.images)} pictures and shows {shown}; give each picture one <image>",
        )
    messages = []
    for role, content, number in entry.turns:
        if not is_text(content):
            raise _UnusableError("texts that are none", f"{name} has {NO_TEXT} in its text")
        if role not in _ROLES:
            raise _UnusableError(
                "roles nobody knows", f"{name} has a turn of {role!r:.60}; known are {', '.join(_ROLES)}"
            )
        messages.append(Message(_ROLES[role], content, number))
    if not any(message.role == "assistant" and message.content.strip() for message in messages):
        raise _UnusableError("samples without an answer", f"{name} has no answer of the assistant to learn from")
    images = tuple(
        _image(image, root, f"{entry.id}/{place}", allow_outside) for place, image in enumerate(entry.images)
    )
    return Sample(entry.id, images, (Conversation(f"{entry.id}/0", entry.kind, tuple(messages)),))


def _image(image: str | bytes, root: Path, identity: str, allow_outside: bool) -> ImageSource:
    file: Path | None = None
    if isinstance(image, str):
        try:
            file = inside(root, image, allow_outside)
        except ValueError as error:
            raise _UnusableError("pictures outside their directory", str(error)) from error
        if not os.path.isfile(file):  # unlike Path's own, false for a name that no file system takes
            raise _UnusableError("pictures missing on disk", f"{file}: no such picture; check --images")
    data = image if isinstance(image, bytes) else None
    try:
        height, width = image_size(file or image)
    except ValueError as error:
        raise _UnusableError("pictures that cannot be read", str(error)) from error
    return ImageSource(identity, height, width, path=file, data=data)


# ----------------------------------------------------------------------------------------------------------- formats


def _numbered(read: Callable[[Any, int], _Entry], rows: Iterable[Any]) -> Iterator[Callable[[], _Entry]]:
    return (partial(read, row, number) for number, row in enumerate(rows))


def _read_llava(source: Path) -> Iterator[Callable[[], _Entry]]:
    yield from _numbered(_llava_entry, _json_list(source))


def _llava_entry(entry: Any, number: int) -> _Entry:
    said = entry.get("conversations") if isinstance(entry, Mapping) else None
    if not isinstance(said, list) or not all(isinstance(turn, Mapping) for turn in said):
        detail = f"entry {number} has no list `conversations`{_instead(entry)}"
        raise _UnusableError("samples without conversations", detail)
    found = _Entry(_identity(entry, number), _pictures(entry, f"entry {number}"), [])
    for turn in said:
        text = _text(turn.get("value"), f"entry {number}")
        found.turns.append((str(turn.get("from")), *_without_placeholders(text)))
    return _with_leading_picture(found)


def _read_messages(source: Path) -> Iterator[Callable[[], _Entry]]:
    yield from _numbered(_messages_entry, _rows(source))


def _messages_entry(row: Any, number: int) -> _Entry:
    said = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(said, Sequence) or not all(isinstance(message, Mapping) for message in said):
        raise _UnusableError("samples without messages", f"row {number} has no list `messages`{_instead(row)}")
    name, named = f"row {number}", []
    found = _Entry(_identity(row, number), [], [])
    for message in said:
        text, shown = _content(message.get("content"), name)
        text, _ = _without_placeholders(text)
        found.turns.append((str(message.get("role")), text, len(shown)))
        named += shown
    found.images = _shown_pictures(row, named, name)
    return _with_leading_picture(found)


def _content(content: Any, name: str) -> tuple[str, list[Any]]:
    """The text of a message, and for each picture that it shows the one that its part names, None without a name."""
    texts, shown = list[str](), list[Any]()
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(_text(part.get("text"), name))
            shown += [None] * texts[-1].count(_PLACEHOLDER)
        elif kind == "image":
            shown.append(next((part[key] for key in _PART_KEYS if part.get(key)), None))
        else:
            detail = f"{name} has a message with the part {part!r:.60}; known are those of the type text or image"
            raise _UnusableError("parts of messages nobody knows", detail)
    return "\n".join(texts), shown


def _shown_pictures(row: Mapping[str, Any], named: Sequence[Any], name: str) -> list[str | bytes]:
    """The pictures of a row: those under `images`, with which names in parts must agree; without it those of parts."""
    listed = _listed(row)
    if not listed:
        return [_picture(image, name) for image in named if image is not None]
    for place, image in enumerate(named):
        if image is not None and not (place < len(listed) and _names(image) & _names(listed[place])):
            raise _UnusableError(
                "parts that name another picture than `images`",
                f"{name} names the picture {_called(image)} in a message, and number {place + 1} of its `images` is "
                f"{_called(listed[place]) if place < len(listed) else 'not there'}; make them the same, or give one",
            )
    return [_picture(image, name) for image in listed]


def _names(image: Any) -> set[str | bytes]:
    """By what a picture is known: its path, its bytes, or both where it is Hugging Face's {bytes, path}."""
    known = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (image,)
    return {os.path.normpath(x) if isinstance(x, str) else x for x in known if x and isinstance(x, str | bytes)}


def _called(image: Any) -> str:
    name = next((x for x in _names(image) if isinstance(x, str)), None)
    return repr(name)[:80] if name else "one without a name"


def _text(value: Any, name: str) -> str:
    """What somebody says, nothing where there is none."""
    if value is not None and not isinstance(value, str):
        raise _UnusableError("messages without text", f"{name} has a message of {value!r:.60}")
    return value or ""


def _identity(entry: Mapping[str, Any], number: int) -> str:
    """The id of an entry, or its number where it has none."""
    identity = number if entry.get("id") is None else entry["id"]
    if type(identity) not in (int, str):
        detail = f"entry {number} has the id {identity!r:.60}, and a text or a whole number was expected"
        raise _UnusableError("ids that are no text", detail)
    return str(identity)


def _pictures(entry: Mapping[str, Any], name: str) -> list[str | bytes]:
    """What an entry has under `images` or `image`: a picture or a list of them."""
    return [_picture(image, name) for image in _listed(entry)]


def _listed(entry: Mapping[str, Any]) -> list[Any]:
    images: Any = next((entry[key] for key in _IMAGES if entry.get(key)), [])
    return images if isinstance(images, list) else [images]


def _picture(image: Any, name: str) -> str | bytes:
    """A picture of an entry: a path, or Hugging Face's {bytes, path}."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image:
        return image
    raise _UnusableError("pictures that cannot be read", f"{name} has a picture that is neither file nor bytes")


def _read_captions(source: Path) -> Iterator[Callable[[], _Entry]]:
    content = read_json(source)
    for key in ("images", "annotations"):
        entries = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"{source}: has no list `{key}` of mappings; it is not a COCO captions file")
    captions: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        identity, caption = (field_of(annotation, key, "annotation", source) for key in ("image_id", "caption"))
        captions.setdefault(identity, []).append(caption.strip())
    for image in content["images"]:
        identity = field_of(image, "id", "image", source)
        for number, caption in enumerate(captions.get(identity, [""])):
            name = f"{identity}" + (f".{number}" if number else "")
            yield partial(_caption, name, image.get("file_name"), caption)


def _read_folder(source: Path) -> Iterator[Callable[[], _Entry]]:
    if not source.is_dir():
        raise ValueError(f"{source}: is no directory of pictures")
    if (source / "metadata.jsonl").is_file():
        for row in _rows(source / "metadata.jsonl"):
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"{source / 'metadata.jsonl'}: holds {row!r:.60}; each line has a `file_name` and a `text`"
                )
            yield partial(_listed_caption, row)
        return
    for path in sorted(path for path in source.rglob("*") if path.suffix.lower() in _PICTURES):
        name = path.relative_to(source).as_posix()
        yield partial(_beside_caption, name, path)


def _listed_caption(row: Mapping[str, Any]) -> _Entry:
    name = row.get("file_name")
    return _caption(str(name), name, _caption_of(row, f"picture {name}", _CAPTIONS[::-1]))


def _caption_of(row: Mapping[str, Any], name: str, keys: Iterable[str] = _CAPTIONS) -> Any:
    """What a row tells of its picture; nothing where that is empty."""
    if not row.keys() & set(_CAPTIONS):
        detail = f"{name} has no `{'` or `'.join(_CAPTIONS)}`{_instead(row)}"
        raise _UnusableError("samples without a caption", detail)
    return next((row[key] for key in keys if row.get(key)), "")


def _instead(row: Any) -> str:
    """What an entry has in place of what it should have."""
    return f"; it has {', '.join(map(str, row)) or 'nothing'}"[:300] if isinstance(row, Mapping) else ""


def _beside_caption(name: str, picture: Path) -> _Entry:
    text = picture.with_suffix(".txt")
    try:
        return _caption(name, name, text.read_text("utf-8") if text.is_file() else "")
    except UnicodeDecodeError as error:
        raise _UnusableError("captions that are not UTF-8", f"{text}: is not UTF-8 ({error})") from error


def _caption(identity: str, file_name: Any, caption: Any) -> _Entry:
    if not isinstance(file_name, str):
        raise _UnusableError("pictures without a file name", f"picture {identity} has no `file_name`")
    return _Entry(identity, [file_name], _asked_for(identity, _text(caption, f"picture {identity}")), "caption")


def _asked_for(identity: str, caption: str) -> list[tuple[str, str, int]]:
    """A request for a caption, the same for the same picture, and the caption."""
    request = CAPTION_REQUESTS[sum(identity.encode("utf-8", "surrogatepass")) % len(CAPTION_REQUESTS)]
    return [("user", request, 1), ("assistant", caption.strip(), 0)]


_READERS: dict[Format, Callable[[Path], Iterator[Callable[[], _Entry]]]] = {
    "llava": _read_llava,
    "messages": _read_messages,
    "captions": _read_captions,
    "folder": _read_folder,
}


def _hub_entries(format: Format, source: HubDataset) -> Iterator[Callable[[], _Entry]]:
    if format not in _ROW_READERS:
        raise ValueError(f"rows of the hub are {', '.join(_ROW_READERS)}, not {format}")
    rows = source.rows()
    first = list(islice(rows, 1))
    for row in first:  # all have its columns
        _check_columns(format, row, source)
    yield from _numbered(_ROW_READERS[format], chain(first, rows))


def _check_columns(format: Format, row: Mapping[str, Any], source: HubDataset) -> None:
    """ValueError where rows lack what a format reads: each of them would be left out, for one reason or another."""
    if not all(row.keys() & set(either) for either in _COLUMNS[format]):
        wanted = " and ".join(" or ".join(either) for either in _COLUMNS[format])
        raise ValueError(
            f"{source}: its columns are {', '.join(row) or 'none'}, and --from {format} wants {wanted}: choose the "
            "--from that fits, or rename columns"
        )


def _captioned_entry(row: Mapping[str, Any], number: int) -> _Entry:
    caption = _caption_of(row, f"row {number}")
    if isinstance(caption, list):
        caption = caption[0]
    name, text = _identity(row, number), _text(caption, f"row {number}")
    return _Entry(name, _pictures(row, f"row {number}"), _asked_for(name, text), "caption")


_ROW_READERS: dict[Format, Callable[[Any, int], _Entry]] = {
    "llava": _llava_entry,
    "messages": _messages_entry,
    "captions": _captioned_entry,
}
_COLUMNS: dict[Format, tuple[tuple[str, ...], ...]] = {
    "llava": (("conversations",), _IMAGES),
    "messages": (("messages",),),  # which may name their pictures
    "captions": (_CAPTIONS, _IMAGES),
}


def _without_placeholders(text: str) -> tuple[str, int]:
    """A message without its `<image>`s, the white space and one line's end on either side, and how many there were."""
    first, *rest = text.split(_PLACEHOLDER)
    if not rest:
        return text, 0
    kept = [first, *(part.removeprefix("\n").lstrip(" \t") for part in rest)]
    kept = [*(part.removesuffix("\n").rstrip(" \t") for part in kept[:-1]), kept[-1]]
    return "\n".join(kept).strip("\n"), len(rest)


def _with_leading_picture(entry: _Entry) -> _Entry:
    """A single picture that no placeholder shows stands in front of the first message of the user."""
    if len(entry.images) == 1 and not any(shown for _, _, shown in entry.turns):
        for place, (role, content, _) in enumerate(entry.turns):
            if _ROLES.get(role) == "user":
                entry.turns[place] = (role, content, 1)
                entry.notes.append("pictures without a placeholder")
                break
    return entry


def _json_list(source: Path) -> list[Any]:
    content = read_json(source)
    if not isinstance(content, list):
        raise ValueError(f"{source}: holds a {type(content).__name__}; a list of samples was expected")
    return content


def _rows(source: Path) -> Iterator[Any]:
    if source.suffix == ".json":
        yield from _json_list(source)
    elif source.suffix == ".parquet":
        try:
            with open_file(source) as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
                    yield from batch.to_pylist()
        except DAMAGED as error:
            fault = " ".join(str(error).split())[:200]
            raise ValueError(f"{source}: the Parquet file cannot be read ({fault})") from error
    else:
        with open_file(source) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield parse_json(line, f"{source}, line {number}")
