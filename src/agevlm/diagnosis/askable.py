"""Which questions all models can be asked: what a processor or a context cannot take is left out and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agevlm.data.images import open_image
from agevlm.data.schema import ImageSource, Sample
from agevlm.vlms import Vlm

_NUM_TOLD = 3  # reasons that a sentence has


def askable(vlms: Sequence[Vlm], samples: Sequence[Sample]) -> tuple[list[Sample], dict[str, str]]:
    """The samples with the questions that every model takes; and by id of a picture or a question why it does not.

    A question must go with its own picture and with that of the next sample, which it is asked about too. A sample
    that keeps no question is left out as a picture. ValueError where fewer than two remain.
    """
    why: dict[str, str] = {}
    left = [_taken(vlms, sample, sample.images[0], why) for sample in samples]
    while True:
        left = [sample for sample in left if sample.conversations]
        if len(left) < 2:
            first = next(f"{identity}: {reason}" for identity, reason in why.items())
            raise ValueError(
                f"a diagnosis needs two pictures that can be asked about, and of {len(samples)} there are {len(left)}: "
                f"{first}"
            )
        moved = [vlm for vlm in vlms if not vlm.encodes_once]  # the others show all pictures at one size
        pairs = zip(left, [*left[1:], left[0]], strict=True)
        checked = [_taken(moved, sample, following.images[0], why) for sample, following in pairs]
        if checked == left:
            return left, why
        left = checked


def _taken(vlms: Sequence[Vlm], sample: Sample, source: ImageSource, why: dict[str, str]) -> Sample:
    """The sample with the questions that all models can be asked about a picture; `why` gets what is left out."""
    problems: dict[str, str] = {}
    for vlm in vlms:
        problems = _problems(vlm, sample, source) | problems
    left = tuple(c for c in sample.conversations if c.id not in problems)
    why.update(problems if left else {sample.id: f"{source.id}: {next(iter(problems.values()))}"})
    return sample if len(left) == len(sample.conversations) else replace(sample, conversations=left)


def _problems(vlm: Vlm, sample: Sample, source: ImageSource) -> dict[str, str]:
    """Id of a question → why it cannot be asked about a picture. Where the longest can, all can."""
    texts = {c.id: vlm.chat(c.messages[:-1]).text for c in sample.conversations}
    longest = max(texts.values(), key=lambda text: len(vlm.processor.tokenizer(text)["input_ids"]))
    if _problem(vlm, longest, source) is None:
        return {}
    found = {identity: _problem(vlm, text, source) for identity, text in texts.items()}
    return {identity: problem for identity, problem in found.items() if problem is not None}


def _problem(vlm: Vlm, text: str, source: ImageSource) -> str | None:
    """Why a text cannot be read with a picture; None where it can."""
    try:
        vlm.encode([text], [[open_image(source)]])
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def unasked(why: Mapping[str, str], samples: Sequence[Sample]) -> str | None:
    """A sentence about what was left out of `samples`; None where nothing was."""
    if not why:
        return None
    pictures = sum(sample.id in why for sample in samples)
    some = "; ".join(f"{identity}: {reason}" for identity, reason in list(why.items())[:_NUM_TOLD])
    more = f"; {len(why) - _NUM_TOLD} more in diagnosis.json" if len(why) > _NUM_TOLD else ""
    return (
        f"{pictures} of {len(samples)} pictures, and {len(why) - pictures} questions about others, cannot be asked: "
        f"{some}{more}"
    )
