"""CHAIR: which objects a caption names that are not in the picture, over COCO's 80 categories and their synonyms.

An object is there when an instance of it is annotated, or when one of the five captions of people names it. Both need
COCO's files for the same pictures: instances_*.json and captions_*.json.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from agevlm.data.nouns import plural
from agevlm.evaluation.official.benchmark import Benchmark, Marked, Protocol, Question, Reading, Sections
from agevlm.evaluation.official.files import Source
from agevlm.evaluation.official.measures import everything, quotient, share

ObjectsOf = Callable[[str], list[str]]  # a caption → the categories that it names, in order, each as often as named

_TOKEN = re.compile(r"\w+(?:-\w+)*|'\w+|[^\w\s]")
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split()
_AS_ONE = {  # two words that are read as one: what they name, or what keeps a part of them from naming something
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
    "home plate": "home plate",
    "motor bike": "motor bike",
}


@dataclass(frozen=True)
class Synonyms:
    """The rule of CHAIR's code over its list of synonyms: a line a category, its name first, then its other names.

    Words are put in the singular, then pairs of words are joined, then words of the list are looked up. Names are
    parted by a comma and one space: one behind two spaces keeps the second, and is never found, there as here.
    """

    names: Mapping[str, str]  # a word or two words → the category

    @classmethod
    def read(cls, path: Path) -> Synonyms:
        """From CHAIR's synonyms.txt. A file without lines of words and commas is a ValueError."""
        names: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.strip().split(", ")
            names.update((word, words[0]) for word in words if word)
        if not names:
            raise ValueError(f"{path} holds no synonyms: expected lines such as `person, girl, boy`")
        return cls(names)

    @cached_property
    def _singulars(self) -> dict[str, str]:
        words = {part for name in (*self.names, *_AS_ONE) for part in name.split()}
        return {many: word for word in sorted(words) for many in _plurals(word) - words}

    def __call__(self, caption: str) -> list[str]:
        """The categories that a caption names."""
        words = [self._singulars.get(word, word) for word in _TOKEN.findall(caption.lower())]
        joined: list[str] = []
        while words:
            two = " ".join(words[:2])
            length = 2 if two in _AS_ONE or (len(words) > 1 and two in self.names) else 1
            joined.append(_AS_ONE.get(two, two) if length == 2 else words[0])
            words = words[length:]
        if "toilet" in joined and "seat" in joined:
            joined = [word for word in joined if word != "seat"]
        return [self.names[word] for word in joined if word in self.names]


def _plurals(noun: str) -> set[str]:
    """All that the plural of a word may look like: persons and people, buffalos and buffaloes."""
    found = {plural(noun), f"{noun}s"}
    for end, others in (("man", ("men",)), ("f", ("ves",)), ("fe", ("ves",)), ("o", ("oes",)), ("s", ("ses", "sses"))):
        if noun.endswith(end):
            found |= {noun.removesuffix(end) + other for other in others}
    return found


@cache
def own_words() -> ObjectsOf:
    """The project's own list of COCO's names, with plurals, the longest name first."""
    from agevlm.data.phrases import coco_vocabulary

    vocabulary = coco_vocabulary()
    return lambda caption: [phrase.name for phrase in vocabulary.find(caption)]


@dataclass(frozen=True)
class Scene:
    """What people say of a picture: annotated categories and captions, and CHAIR's synonyms where the data has them."""

    categories: tuple[str, ...]
    captions: tuple[str, ...]
    synonyms: Synonyms | None

    def there(self, objects_of: ObjectsOf) -> frozenset[str]:
        """The objects that are in the picture."""
        named = [objects_of(text) for text in (*self.categories, *self.captions)]
        return frozenset(name for names in named for name in names)


def _read(source: Source) -> Reading:
    files: dict[Any, str] = {}
    captions: dict[Any, list[str]] = defaultdict(list)
    categories: dict[Any, list[str]] = defaultdict(list)
    for path, document in source.documents().items():
        if not isinstance(document, dict) or "annotations" not in document:
            continue
        try:
            names = {category["id"]: category["name"] for category in document.get("categories", ())}
            files.update({image["id"]: image["file_name"] for image in document.get("images", ())})
            for annotation in document["annotations"]:
                if "caption" in annotation:
                    captions[annotation["image_id"]].append(annotation["caption"])
                elif "category_id" in annotation:
                    categories[annotation["image_id"]].append(names[annotation["category_id"]])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} has annotations, but not in COCO's form ({type(error).__name__}: {error}): take it away"
            ) from error
    if not captions or not categories:
        raise ValueError(
            f"{source.root} holds no files of CHAIR: found {source.described()}, expected COCO's "
            "instances_val2014.json (categories, annotations with category_id) and captions_val2014.json (annotations "
            "with caption)"
        )
    listed = source.file("synonyms.txt")
    synonyms = Synonyms.read(listed) if listed is not None else None
    questions = []
    for identity in sorted(captions.keys() & files.keys()):
        shown = source.picture(files[identity])
        scene = Scene(tuple(dict.fromkeys(categories[identity])), tuple(captions[identity]), synonyms)
        questions.append(Question(str(identity), "", "", shown, shown.name, extra=scene))
    return Reading(questions)


def _scene(question: Question) -> Scene:
    assert isinstance(question.extra, Scene)
    return question.extra


def _of_chair(question: Question) -> ObjectsOf:
    synonyms = _scene(question).synonyms
    if synonyms is None:
        raise ValueError(
            "the protocol official needs CHAIR's list of synonyms: put synonyms.txt of LisaAnne/Hallucination (data/) "
            "beside the annotations, or choose --protocol own-words"
        )
    return synonyms


def _of_own(question: Question) -> ObjectsOf:
    return own_words()


def _protocol(name: str, rule: str, objects_of: Callable[[Question], ObjectsOf]) -> Protocol:
    def prompt(question: Question) -> str:
        objects_of(question)  # what is missing is said before anything is asked
        return "Please describe this image in detail."

    def parse(answer: str, question: Question) -> str | None:
        return ", ".join(objects_of(question)(answer)) or None

    def correct(parsed: str, question: Question) -> bool:
        return set(parsed.split(", ")) <= _scene(question).there(objects_of(question))

    return Protocol(
        name,
        rule,
        prompt,
        parse,
        lambda marks: figures(marks, objects_of),
        ("all.chair_s", "all.chair_i"),
        max_new_tokens=512,
        correct=correct,
    )


def figures(marks: Sequence[Marked], objects_of: Callable[[Question], ObjectsOf]) -> Sections:
    """CHAIRs: captions that name what is not there. CHAIRi: names of what is not there, of all names. Recall: objects
    that are there and named, of all that are there. `unparsed_ratio`: captions that name none of COCO's objects.
    """
    named = {m.question.id: m.parsed.split(", ") if m.parsed else [] for m in marks}
    there = {m.question.id: _scene(m.question).there(objects_of(m.question)) for m in marks}
    absent = {key: [name for name in names if name not in there[key]] for key, names in named.items()}
    section: dict[str, Any] = {
        "chair_s": share(marks, lambda m: bool(absent[m.question.id])),
        "chair_i": quotient(marks, lambda m: len(absent[m.question.id]), lambda m: len(named[m.question.id])),
        "recall": quotient(
            marks, lambda m: len(there[m.question.id] & set(named[m.question.id])), lambda m: len(there[m.question.id])
        ),
        "unparsed_ratio": share(marks, lambda m: m.unparsed, everything),
        "num_captions": len(marks),
    }
    return {"all": section}


CHAIR = Benchmark(
    name="chair",
    title="CHAIR",
    paper="Rohrbach et al. 2018, arXiv 1809.02156",
    source="github.com/LisaAnne/Hallucination",
    licence="none stated; COCO's annotations are CC BY 4.0, its pictures their owners'",
    data="instances_val2014.json, captions_val2014.json, synonyms.txt of LisaAnne/Hallucination and the pictures",
    hub=(),
    read=_read,
    protocols=(
        _protocol(
            "official",
            "LisaAnne/Hallucination@585f2d9, utils/chair.py, over its synonyms.txt; words are put in the singular "
            "by this project's rule, and the prompt is that of lmms-eval",
            _of_chair,
        ),
        _protocol(
            "own-words",
            "the same shares over this project's list of COCO's names; not comparable with published figures",
            _of_own,
        ),
    ),
)
