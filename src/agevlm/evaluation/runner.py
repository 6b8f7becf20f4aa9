"""Run a benchmark: ask a model every question of every sample, each picture encoded once, and mark the answers.

The same runner serves the embedded world and stored datasets; which questions there are is the benchmark's business,
how an answer is marked that of `scores.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agevlm.data.images import open_image
from agevlm.data.masks import union_mask
from agevlm.data.schema import Sample
from agevlm.evaluation.answering import PLAIN, Asker, Reply
from agevlm.evaluation.localisation import WordAttention, localise, map_entropy, summarise_words
from agevlm.evaluation.prior import prior_corrected
from agevlm.evaluation.questions import Asked, Prompt, questions_of
from agevlm.evaluation.results import Evaluation
from agevlm.evaluation.scores import is_yes_no, judge, summarise

if TYPE_CHECKING:
    from agevlm.vlms import Kept

IMAGES_AT_ONCE = 32

Progress = Callable[[int, int], None]  # samples done, samples in all


def evaluate(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    batch_size: int | None = None,
    device: str | None = None,
    parser: str = "first_word",
    correct_prior: bool = False,
    answering: str = PLAIN,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask every conversation of `samples` for its last answer, greedily, and score it by its kind.

    `model` is any vision-language model of transformers; each is asked in its own chat template.
    `samples` may be a sequence that reads when asked: each sample is asked for twice, in order.
    `batch_size` counts prompts in a forward pass and changes no score; None: 256 for a model that encodes a picture
    once for all questions, as ours do, 8 for others. `device` None leaves the model where it is. Object words of
    distinct prompts are localised, each once; where attention cannot be read none is, and the evaluation's `note` says
    why. `answering` is a way to answer, see `agevlm.vlms.ways`. With `correct_prior` yes/no questions are asked about a
    blank picture too, and `metrics["prior_corrected"]` has the figures of their answers less that prior (`prior.py`).
    The model is left in the mode in which it came. A
    benchmark without questions, two questions of one id, and references that their rule cannot read are ValueErrors.
    """
    from agevlm.vlms import Vlm

    was_training = model.training
    asker = Asker(Vlm(model, processor), batch_size, answering)
    asked, prompts = questions_of(asker.vlm, samples)
    references = {item.question.id: item.question.reference for item in asked}
    judge([item.question for item in asked], references, parser)  # its errors come now, not after the last answer
    if answering == "mask" and not any(word.present for prompt in prompts for word in prompt.words):
        raise ValueError(
            "answering by mask needs masks of what is asked, and these questions have none: `agevlm ground` makes them"
        )
    if device is not None:
        model.to(device)
    replies: dict[tuple[int, str], Reply] = {}
    words: dict[tuple[int, str], list[WordAttention]] = {}
    for start, block in _blocks(samples, prompts):
        answers = _ask_block(asker, samples, block)
        for prompt, reply in zip(block, answers, strict=True):
            replies[prompt.key] = reply
            words[prompt.key] = _localise(prompt, reply)
        if progress:
            progress(min(start + IMAGES_AT_ONCE, len(samples)), len(samples))
    found = _evaluation(asked, replies, words, parser, asker.note)
    if correct_prior:
        chances = {key: reply.p_yes for key, reply in replies.items()}
        found.metrics["prior_corrected"] = prior_corrected(asker, asked, prompts, chances)
    model.train(was_training)
    return found


def _blocks(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[Prompt]]]:
    """Prompts about `IMAGES_AT_ONCE` samples at a time, with the number of the first sample."""
    by_block: dict[int, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_block[prompt.sample // IMAGES_AT_ONCE].append(prompt)
    for block in range(-(-len(samples) // IMAGES_AT_ONCE)):
        yield block * IMAGES_AT_ONCE, by_block[block]


def _ask_block(asker: Asker, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> list[Reply]:
    """Keep the pictures that the prompts show, once each, and ask."""
    shown: dict[int, int] = {}
    for prompt in prompts:
        shown[prompt.sample] = max(shown.get(prompt.sample, 0), prompt.num_images)
    places = [(number, image) for number, count in shown.items() for image in range(count)]
    kept = asker.vlm.keep([open_image(samples[number].images[image]) for number, image in places])
    of_place: dict[tuple[int, int], Kept] = dict(zip(places, kept, strict=True))
    return asker.ask(prompts, [[of_place[p.sample, image] for image in range(p.num_images)] for p in prompts])


def _localise(prompt: Prompt, reply: Reply) -> list[WordAttention]:
    """The words of a prompt that have a map, against the union of their masks."""
    found = []
    for word, seen in zip(prompt.words, reply.maps, strict=True):
        if seen is not None:
            where = localise(seen.map_hw, union_mask(word.masks)) if word.present else None
            entropy = map_entropy(seen.map_hw)
            found.append(WordAttention(prompt.sample_id, word.phrase, where, seen.null_mass, entropy))
    return found


def _evaluation(
    asked: Sequence[Asked],
    replies: Mapping[tuple[int, str], Reply],
    words: Mapping[tuple[int, str], list[WordAttention]],
    parser: str,
    note: str | None,
) -> Evaluation:
    questions = [item.question for item in asked]
    answers = {item.question.id: replies[item.key].text for item in asked}
    p_yes = {item.question.id: replies[item.key].p_yes for item in asked if is_yes_no(item.question)}
    predictions = judge(questions, answers, parser, p_yes)
    metrics = {**summarise(predictions), **summarise_words([word for found in words.values() for word in found])}
    return Evaluation(predictions, {item.question.id: words[item.key] for item in asked}, metrics, note)
