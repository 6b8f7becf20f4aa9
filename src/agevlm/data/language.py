"""What can be said and asked about an annotated picture: captions, questions and conversations with grounded words.

One set of wordings serves the embedded world and photographs alike. Every object word carries its span and the masks
of what it means in the picture; a word for something absent carries no mask and `present=False`. Answers are short, so
that they can be scored by their first word. Of a thing that is there and nobody knows where, presence alone is asked
and captions tell, with `present=None`. Nothing here draws or reads a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agevlm.data.nouns import article, is_pair, plural
from agevlm.data.schema import RLE, AnnotatedImage, Conversation, Grounding, Instance, Message

NUMBERS = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty".split()
)
MAX_COUNT = 10  # what lies beyond is neither counted in captions nor asked
MIN_OFFSET_RATIO = 0.12  # of the picture's side: how far two centres lie apart to be called left, right, above, below
MIN_QUADRANT_RATIO = 0.08  # of the picture's side: how far from the middle a centre lies to be in a quadrant

PRESENCE_WORDINGS = (
    "is there {} in the picture?",
    "is there {}?",
    "do you see {}?",
    "can you see {} in the picture?",
)
PLURAL = "{plural}"  # in a wording, in place of {}: "are there any {plural}?"
CAPTION_REQUESTS = ("describe the picture.", "what is in the picture?", "what do you see?")
COUNTING_WORDINGS = ("how many {} are there?", "how many {} do you see?", "count the {}.")
COLOUR_WORDINGS = ("what colour is {}?", "which colour does {} have?")
LOCATION_WORDINGS = ("where is {}?", "in which corner of the picture is {}?")
SIDES = {"horizontal": ("left of", "right of"), "vertical": ("above", "below")}


class Chooser(NamedTuple):
    """How presence is asked: of which category in a picture that holds some (see `balance.py`), and in which words."""

    category: Callable[[Collection[str], np.random.Generator], str]
    wordings: tuple[str, ...] = PRESENCE_WORDINGS


@dataclass
class _Turn:
    """A message under construction: text, and the spans of its object words."""

    content: str = ""
    words: list[tuple[int, int, str, tuple[RLE, ...], bool | None]] = field(default_factory=list)

    def say(self, text: str) -> _Turn:
        self.content += text
        return self

    def name(self, noun: str, masks: Sequence[RLE], placed: bool = True) -> _Turn:
        """Append an object word that means what `masks` show; no masks: it means something that is not there.

        Not `placed`: it means something that is there, nobody knows where.
        """
        present = bool(masks) if placed else None
        self.words.append((len(self.content), len(self.content) + len(noun), noun, tuple(masks), present))
        self.content += noun
        return self

    def groundings(self, message: int) -> list[Grounding]:
        return [
            Grounding(message, start, end, noun, present=present, masks=masks)
            for start, end, noun, masks, present in self.words
        ]


@dataclass(frozen=True)
class _Exchange:
    """A question and its answer."""

    question: _Turn
    answer: _Turn


def _conversation(identity: str, kind: str, exchanges: Sequence[_Exchange]) -> Conversation:
    messages: list[Message] = []
    groundings: list[Grounding] = []
    for exchange in exchanges:
        for role, turn in (("user", exchange.question), ("assistant", exchange.answer)):
            groundings += turn.groundings(len(messages))
            messages.append(Message(role, turn.content, num_images=0 if messages else 1))  # type: ignore[arg-type]
    return Conversation(identity, kind, tuple(messages), tuple(groundings))


def _fill(wording: str, *phrases: Callable[[_Turn], _Turn]) -> _Turn:
    """Put phrases into the `{}` of a wording."""
    turn = _Turn()
    pieces = wording.split("{}")
    assert len(pieces) == len(phrases) + 1, (wording, len(phrases))
    for piece, phrase in zip(pieces, (*phrases, None), strict=True):
        turn.say(piece)
        if phrase:
            phrase(turn)
    return turn


def _a(noun: str, masks: Sequence[RLE], colour: str | None = None, placed: bool = True) -> Callable[[_Turn], _Turn]:
    before = _before(noun, colour)
    return lambda turn: turn.say(f"{article(before or noun)} {before}").name(noun, masks, placed)


def _the(noun: str, masks: Sequence[RLE]) -> Callable[[_Turn], _Turn]:
    return lambda turn: turn.say(f"the {_before(noun)}").name(noun, masks)


def _several(
    noun: str, masks: Sequence[RLE], colour: str | None = None, placed: bool = True, number: str = ""
) -> Callable[[_Turn], _Turn]:
    words = [number, colour or "", "pairs of" if is_pair(noun) else ""]
    return lambda turn: turn.say("".join(f"{word} " for word in words if word)).name(plural(noun), masks, placed)


def _before(noun: str, colour: str | None = None) -> str:
    """What stands between an article and the word for one thing."""
    return (f"{colour} " if colour else "") + ("pair of " if is_pair(noun) else "")


def _pick(rng: np.random.Generator, items: Sequence) -> object:  # type: ignore[type-arg]
    return items[int(rng.integers(len(items)))]


def presence_conversation(
    identity: str,
    kind: str,
    category: str,
    masks: Sequence[RLE],
    wording: int = 0,
    colour: str | None = None,
    placed: bool = True,
) -> Conversation:
    """Ask whether a category (of a colour) is in the picture; `masks` of what fits decide the answer.

    Not `placed`: it is there, nobody knows where.
    """
    exchange = _presence_exchange(category, masks, PRESENCE_WORDINGS[wording], colour, placed)
    return _conversation(identity, kind, [exchange])


def _presence_exchange(
    category: str, masks: Sequence[RLE], wording: str, colour: str | None = None, placed: bool = True
) -> _Exchange:
    """Is it there: `masks` decide, but where something is there that has no place the answer is yes."""
    answer = _Turn("yes" if masks or not placed else "no")
    named = _several if PLURAL in wording else _a
    asked = named(category, masks if placed else (), colour, placed)
    return _Exchange(_fill(wording.replace(PLURAL, "{}"), asked), answer)


@dataclass(frozen=True)
class _Picture:
    """An annotated picture, indexed for the questions that can be asked about it."""

    instances: tuple[Instance, ...]
    labels: tuple[str, ...]  # there, nobody knows where
    size: tuple[int, int]
    vocabulary: tuple[str, ...]
    choose: Chooser | None = None

    @classmethod
    def of(cls, annotated: AnnotatedImage, vocabulary: Sequence[str], choose: Chooser | None = None) -> _Picture:
        size = (annotated.image.height, annotated.image.width)
        return cls(annotated.instances, annotated.labels, size, tuple(vocabulary), choose)

    def masks(self, category: str, colour: str | None = None) -> tuple[RLE, ...]:
        return tuple(i.mask for i in self.instances if i.category == category and (not colour or i.colour == colour))

    @property
    def present(self) -> list[str]:
        return list(dict.fromkeys((*(i.category for i in self.instances), *self.labels)))

    @property
    def absent(self) -> list[str]:
        present = set(self.present)
        return [category for category in self.vocabulary if category not in present]

    @property
    def single(self) -> list[Instance]:
        """Instances that "the" may refer to: the only one of their category, and no crowd."""
        known = [i for i in self.instances if not i.crowd and i.category not in self.labels]
        return [i for i in known if len(self.masks(i.category)) == 1]

    @property
    def countable(self) -> dict[str, int]:
        crowds = {i.category for i in self.instances if i.crowd}
        counts = {c: len(self.masks(c)) for c in self.present if c not in crowds and c not in self.labels}
        return {category: count for category, count in counts.items() if count <= MAX_COUNT}


_Maker = Callable[[_Picture, np.random.Generator], _Exchange | None]


def _caption(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    """Everything that is there, in random order; things of one category and colour are counted together."""
    groups: dict[tuple[str, str | None], list[Instance]] = {}
    for instance in picture.instances:
        groups.setdefault((instance.category, instance.colour), []).append(instance)
    for label in picture.labels:
        groups.setdefault((label, None), [])
    if not groups:
        return None
    keys = list(groups)
    answer = _Turn()
    for rank, position in enumerate(rng.permutation(len(keys))):
        category, colour = keys[position]
        answer.say("" if rank == 0 else " and " if rank == len(keys) - 1 else ", ")
        _some(category, colour, groups[keys[position]])(answer)
    return _Exchange(_Turn(str(_pick(rng, CAPTION_REQUESTS))), answer.say("."))


def _some(category: str, colour: str | None, instances: Sequence[Instance]) -> Callable[[_Turn], _Turn]:
    masks = [instance.mask for instance in instances]
    if not instances:
        return _a(category, (), placed=False)
    if len(instances) == 1 and not instances[0].crowd:
        return _a(category, masks, colour)
    known = len(instances) <= MAX_COUNT and not any(instance.crowd for instance in instances)
    number = NUMBERS[len(instances)] if known else "many"
    return _several(category, masks, colour, number=number)


def _relation_caption(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    """Where one thing lies from another, as a statement."""
    pair = _ordered_pair(picture, rng)
    if pair is None:
        return None
    first, second, side = pair
    answer = _a(first.category, [first.mask], first.colour)(_Turn()).say(f" is {side} ")
    _a(second.category, [second.mask], second.colour)(answer).say(".")
    return _Exchange(_Turn(str(_pick(rng, CAPTION_REQUESTS))), answer)


def _presence(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    """POPE's question, with yes and no equally often, or of the category that the picture's chooser names."""
    if picture.choose is None:
        candidates = picture.present if rng.random() < 0.5 else picture.absent
        if not candidates:
            return None
        category = str(_pick(rng, candidates))
    else:
        category = picture.choose.category(picture.present, rng)
    wordings = PRESENCE_WORDINGS if picture.choose is None else picture.choose.wordings
    wording, placed = str(_pick(rng, wordings)), category not in picture.labels
    return _presence_exchange(category, picture.masks(category), wording, placed=placed)


def _coloured_presence(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    """Is there a red fish, yes and no equally often: where not, there is a fish, and something else is red."""
    coloured = [instance for instance in picture.instances if instance.colour]
    if not coloured:
        return None
    instance = coloured[int(rng.integers(len(coloured)))]
    colours = {str(other.colour) for other in coloured}
    others = sorted(colour for colour in colours if not picture.masks(instance.category, colour))
    if not others:  # "yes" alone would be a habit to learn
        return None
    colour = instance.colour if rng.random() < 0.5 else str(_pick(rng, others))
    wording = str(_pick(rng, PRESENCE_WORDINGS))
    return _presence_exchange(instance.category, picture.masks(instance.category, colour), wording, colour)


def _counting(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    """How many: two is asked twice as often as one, and so on, as far as the picture goes; one time in eight, zero."""
    counts = picture.countable
    if picture.absent and rng.random() < 0.125:
        category, count = str(_pick(rng, picture.absent)), 0
    elif counts:
        offered = [number for number in sorted(set(counts.values())) for _ in range(number)]
        count = int(_pick(rng, offered))  # type: ignore[call-overload]
        category = str(_pick(rng, [name for name, number in counts.items() if number == count]))
    else:
        return None
    masks = picture.masks(category)
    wording = str(_pick(rng, COUNTING_WORDINGS))
    return _Exchange(_fill(wording, _several(category, masks)), _Turn(NUMBERS[count]))


def _colour(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    coloured = [instance for instance in picture.single if instance.colour]
    if not coloured:
        return None
    instance = coloured[int(rng.integers(len(coloured)))]
    wording = str(_pick(rng, COLOUR_WORDINGS))
    return _Exchange(_fill(wording, _the(instance.category, [instance.mask])), _Turn(str(instance.colour)))


def _ordered_pair(picture: _Picture, rng: np.random.Generator) -> tuple[Instance, Instance, str] | None:
    """Two single things and on which of `SIDES` of the second the first lies; None where no pair is clear."""
    single = picture.single
    height, width = picture.size
    pairs = []
    for first in single:
        for second in single:
            down, right = (a - b for a, b in zip(first.centre, second.centre, strict=True))
            if abs(right) >= MIN_OFFSET_RATIO * width:
                pairs.append((first, second, SIDES["horizontal"][int(right > 0)]))
            if abs(down) >= MIN_OFFSET_RATIO * height:
                pairs.append((first, second, SIDES["vertical"][int(down > 0)]))
    return pairs[int(rng.integers(len(pairs)))] if pairs else None


def _relation_yes_no(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    """Is the fish left of the boat: the truth or its opposite, equally often."""
    pair = _ordered_pair(picture, rng)
    if pair is None:
        return None
    first, second, side = pair
    yes = rng.random() < 0.5
    asked = side if yes else _opposite(side)
    question = _fill(f"is {{}} {asked} {{}}?", _the(first.category, [first.mask]), _the(second.category, [second.mask]))
    return _Exchange(question, _Turn("yes" if yes else "no"))


def _relation_choice(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    """Is the fish left or right of the boat: the answer is the side's own word."""
    pair = _ordered_pair(picture, rng)
    if pair is None:
        return None
    first, second, side = pair
    words = [word.removesuffix(" of") for word in next(pair for pair in SIDES.values() if side in pair)]
    choice = f"{words[0]} or {words[1]}" + (" of" if side.endswith(" of") else "")
    question = _fill(
        f"is {{}} {choice} {{}}?", _the(first.category, [first.mask]), _the(second.category, [second.mask])
    )
    return _Exchange(question, _Turn(side.removesuffix(" of")))


def _opposite(side: str) -> str:
    for first, second in SIDES.values():
        if side in (first, second):
            return second if side == first else first
    raise AssertionError(side)


def corner_of(instance: Instance, size: tuple[int, int]) -> str | None:
    """Where in a picture of `size` (height, width) a thing lies: "top left" and so on, None near the middle lines."""
    y, x = instance.centre[0] / size[0] - 0.5, instance.centre[1] / size[1] - 0.5
    if min(abs(y), abs(x)) < MIN_QUADRANT_RATIO:
        return None
    return f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"


def _location(picture: _Picture, rng: np.random.Generator) -> _Exchange | None:
    """In which quarter of the picture a single thing lies; things near the middle lines are not asked."""
    clear = [(instance, corner) for instance in picture.single if (corner := corner_of(instance, picture.size))]
    if not clear:
        return None
    instance, corner = clear[int(rng.integers(len(clear)))]
    wording = str(_pick(rng, LOCATION_WORDINGS))
    return _Exchange(_fill(wording, _the(instance.category, [instance.mask])), _Turn(corner))


_MAKERS: dict[str, _Maker] = {
    "caption": _caption,
    "caption.relation": _relation_caption,
    "presence": _presence,
    "presence.colour": _coloured_presence,
    "counting": _counting,
    "colour": _colour,
    "relation.yes_no": _relation_yes_no,
    "relation.choice": _relation_choice,
    "location": _location,
}
CONVERSATION = "conversation"
KINDS = (*_MAKERS, CONVERSATION)
LONG_KINDS = frozenset({"caption", CONVERSATION})  # several times as long as the others: batches keep them apart
DEFAULT_KINDS: dict[str, float] = {
    "caption": 0.1,
    "caption.relation": 0.05,
    "presence": 0.25,
    "presence.colour": 0.1,
    "counting": 0.12,
    "colour": 0.1,
    "relation.yes_no": 0.08,
    "relation.choice": 0.08,
    "location": 0.04,
    CONVERSATION: 0.08,
}
_TRIES = 20
MAX_CONVERSATIONS = 10_000  # about one picture: they are in memory at once


def make_conversations(
    annotated: AnnotatedImage,
    rng: np.random.Generator,
    vocabulary: Sequence[str],
    kinds: Mapping[str, float] | None = None,
    num: int = 1,
    choose: Chooser | None = None,
) -> tuple[Conversation, ...]:
    """Draw `num` conversations about a picture; `kinds` weighs what is asked (see `KINDS`; None: `DEFAULT_KINDS`).

    A kind that the picture does not offer (a relation where there is one thing) is drawn again; fewer than `num` come
    back only where the picture offers none of the kinds. "conversation" is two to four exchanges of the other kinds,
    none of which asks the same of the same things.
    `choose` names the categories that presence is asked of, and the words; None: what is there and what is not, equally
    often. An unknown kind, and more than `MAX_CONVERSATIONS`, are ValueErrors.
    """
    if num > MAX_CONVERSATIONS:
        raise ValueError(f"{num} conversations about a picture are asked for, the most are {MAX_CONVERSATIONS}")
    weights = check_kinds(DEFAULT_KINDS if kinds is None else kinds)
    picture = _Picture.of(annotated, vocabulary, choose)
    identity = annotated.image.id
    made: list[Conversation] = []
    for number in range(num):
        for _ in range(_TRIES):
            kind = _draw(weights, rng)
            exchanges = _exchanges(kind, picture, rng, weights)
            if exchanges:
                made.append(_conversation(f"{identity}/{kind}-{number}", kind, exchanges))
                break
    return tuple(made)


def family(kind: str) -> str:
    """The first part of a kind: "pope" of "pope.random"."""
    return kind.partition(".")[0]


def check_kinds(kinds: Mapping[str, float]) -> dict[str, float]:
    """The kinds with a weight above 0. Unknown names, negative weights and nothing at all are ValueErrors."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown kind of conversation {unknown[0]!r}; known are {', '.join(KINDS)}")
    if any(weight < 0 for weight in kinds.values()) or not any(kinds.values()):
        raise ValueError(f"weights of kinds must be at least 0 and not all 0, got {dict(kinds)}")
    return {kind: weight for kind, weight in kinds.items() if weight > 0}


def _draw(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    point = rng.random() * sum(weights.values())
    for kind, weight in weights.items():
        point -= weight
        if point < 0:
            return kind
    return kind


def _exchanges(kind: str, picture: _Picture, rng: np.random.Generator, weights: Mapping[str, float]) -> list[_Exchange]:
    if kind != CONVERSATION:
        exchange = _MAKERS[kind](picture, rng)
        return [exchange] if exchange else []
    single = {name: weight for name, weight in weights.items() if name != CONVERSATION}
    single = single or {name: weight for name, weight in DEFAULT_KINDS.items() if name != CONVERSATION}
    length = int(rng.integers(2, 5))
    found: dict[tuple[str, ...], _Exchange] = {}
    for _ in range(3 * length):
        name = _draw(single, rng)
        if exchange := _MAKERS[name](picture, rng):
            asked = [word for _, _, word, _, _ in exchange.question.words]
            found.setdefault((name, *asked) if asked else (), exchange)  # a description is asked for once
    return list(found.values())[:length] if len(found) >= 2 else []
