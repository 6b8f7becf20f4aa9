"""Yes or no less the prior: yes where the picture makes it likelier than a blank picture does.

What a model answers to a question about a blank picture it has from the question alone. Its log odds of yes are taken
off those with the picture, and the rest answers: above 0 yes. Reported beside the answers as given, not instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from agevlm.evaluation.answering import Asker
from agevlm.evaluation.questions import Asked, Prompt
from agevlm.evaluation.scores import Metrics, is_yes_no, judge, summarise

_SIDE = 384  # pixels of a blank picture
_SMALLEST = 1e-7  # a chance that float32 rounds to 0 or 1 has no log odds


def prior_corrected(
    asker: Asker, asked: Sequence[Asked], prompts: Sequence[Prompt], p_yes: Mapping[tuple[int, str], float]
) -> Metrics:
    """The figures of all yes/no questions, answered by log odds of yes less those with a blank picture.

    `p_yes` is the chance of yes with the picture, by the key of a prompt. Beside the figures of each kind stands
    `blank_yes_ratio`, the share of the distinct questions to which a blank picture alone says yes. {} without such
    questions.
    """
    polar = [item for item in asked if is_yes_no(item.question)]
    if not polar:
        return {}
    keys = {item.key for item in polar}
    blank = _blank_chances(asker, [prompt for prompt in prompts if prompt.key in keys])
    shown = {prompt.key: prompt.num_images for prompt in prompts}
    chances = {item.question.id: _less(p_yes[item.key], blank[item.key[1], shown[item.key]]) for item in polar}
    answers = {identity: "yes" if chance > 0.5 else "no" for identity, chance in chances.items()}
    figures = summarise(judge([item.question for item in polar], answers, p_yes=chances))
    return {**figures, "blank_yes_ratio": sum(chance > 0.5 for chance in blank.values()) / len(blank)}


def _blank_chances(asker: Asker, prompts: Sequence[Prompt]) -> dict[tuple[str, int], float]:
    """The chance of yes of each distinct question, by its text and number of pictures, all of them blank."""
    from agevlm.vlms.maps import GREY

    distinct = {(prompt.text, prompt.num_images): prompt for prompt in prompts}
    (kept,) = asker.vlm.keep([Image.new("RGB", (_SIDE, _SIDE), GREY)])
    short = [replace(prompt, words=(), max_new_tokens=1) for prompt in distinct.values()]
    replies = asker.ask(short, [[kept] * prompt.num_images for prompt in short])
    return {key: reply.p_yes for key, reply in zip(distinct, replies, strict=True)}


def _less(chance: float, prior: float) -> float:
    """The chance whose log odds are those of the first less those of the second; what rounding makes of equals is 0."""
    return 1 / (1 + math.exp(round(_log_odds(prior) - _log_odds(chance), 4)))


def _log_odds(chance: float) -> float:
    inside = min(max(chance, _SMALLEST), 1 - _SMALLEST)
    return math.log(inside / (1 - inside))
