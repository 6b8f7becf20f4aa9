"""Cases to look at, chosen by the gallery's rule, and cards of them: each model's answer and where it looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.analysis.figures import overlay, peak
from agevlm.analysis.gallery import chosen_because, fit, outlined, panel
from agevlm.data.images import open_image
from agevlm.data.masks import union_mask
from agevlm.data.schema import Sample
from agevlm.diagnosis.asking import Record
from agevlm.diagnosis.figures import Examination, distinct
from agevlm.diagnosis.heads import HeadReading, read_words
from agevlm.evaluation.questions import Prompt, questions_of
from agevlm.vlms import Vlm, attention_maps, maps_of

NUM_CASES = 12

Map = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A question about a picture, its mask (None: nothing there), and of each model the record and titled maps."""

    picture: Image.Image
    mask: NDArray[np.bool_] | None
    records: tuple[Record, ...]
    maps: tuple[tuple[tuple[str, Map], ...], ...]
    reason: str

    def arrays(self) -> dict[str, Map]:
        """Its maps by model and title."""
        return {f"{place}/{title}": found for place, maps in enumerate(self.maps) for title, found in maps}


def choose(records: Sequence[Record]) -> dict[str, str]:
    """Question id → why it is shown."""
    return chosen_because(distinct(list(records)), NUM_CASES)


def cases_of(models: Sequence[tuple[Vlm, Examination]], samples: Sequence[Sample]) -> list[Case]:
    """The cases that the rule chooses by the first model's answers, seen by all models."""
    chosen = choose(models[0][1].answers.records["picture"])
    asked = {c.id: (sample, c) for sample in samples for c in sample.conversations if c.id in chosen}
    maps = [_maps_of(vlm, exam, samples, list(chosen)) for vlm, exam in models]
    rows = [{record["id"]: record for record in exam.answers.records["picture"]} for _, exam in models]
    cases = []
    for identity, reason in chosen.items():
        sample, conversation = asked[identity]
        mask = next((union_mask(word.masks) for word in conversation.groundings if word.masks), None)
        seen = tuple(found.get(identity, ()) for found in maps)
        records = tuple(of_model[identity] for of_model in rows)
        cases.append(Case(open_image(sample.images[0]), mask, records, seen, reason))
    return cases


def _maps_of(
    vlm: Vlm, exam: Examination, samples: Sequence[Sample], ids: Sequence[str]
) -> dict[str, tuple[tuple[str, Map], ...]]:
    """Question id → the maps of the mean of all heads and of the best head; what there is where heads were not read."""
    asked, prompts = questions_of(vlm, samples)
    by_key = {prompt.key: prompt for prompt in prompts}
    key_of = {item.question.id: item.key for item in asked}
    of = {identity: by_key[key_of[identity]] for identity in ids}
    if isinstance(exam.heads, HeadReading):
        return {identity: _both_maps(vlm, exam.heads, prompt, samples) for identity, prompt in of.items()}
    return {identity: _one_map(vlm, prompt, samples) for identity, prompt in of.items()}


def _one_map(vlm: Vlm, prompt: Prompt, samples: Sequence[Sample]) -> tuple[tuple[str, Map], ...]:
    """The mean of all heads, where attention is read without masks; else what the answer hangs on, by occlusion."""
    picture = open_image(samples[prompt.sample].images[0])
    (seen,) = maps_of(vlm, prompt.text, [picture], [(word.start, word.end) for word in prompt.words[:1]]) or [None]
    if seen is None:
        return ()
    return (("all heads" if seen.kind == "attention" else "by occlusion", seen.maps[0].clip(min=0)),)


def _both_maps(vlm: Vlm, heads: HeadReading, prompt: Prompt, samples: Sequence[Sample]) -> tuple[tuple[str, Map], ...]:
    (kept,) = vlm.keep([open_image(samples[prompt.sample].images[0])])
    if len(prompt.words) != 1:
        return ()
    inputs, reading, positions = read_words(vlm, [prompt], [kept])
    if reading is None:
        return ()
    words = [[positions[0]]]
    place, head = heads.ranked()[0]
    layer = heads.layers[place]
    found = []
    for title, some in (("all heads", {}), (f"layer {layer}, head {head}", {"layers": [layer], "heads": [head]})):
        (seen,) = attention_maps(inputs, reading, positions, words, of_pictures=True, **some)[0]  # type: ignore[arg-type]
        if seen is not None:
            found.append((title, seen.maps[0]))
    return tuple(found)


def cards_of(cases: Sequence[Case], names: Sequence[str]) -> list[dict[str, Any]]:
    """The cases as the page shows them."""
    return [_card(case, names) for case in cases]


def _card(case: Case, names: Sequence[str]) -> dict[str, Any]:
    first = case.records[0]
    return {
        "verdict": "right" if first["correct"] else "wrong",
        "mark": "✓" if first["correct"] else "✗",
        "kind": first["kind"].replace("pope.", ""),
        "reason": case.reason if case.reason.startswith("least") else "",
        "question": first["question"],
        "truth": first["reference"],
        "said": [
            {"name": name, "answer": record["answer"], "p_yes": f"{record['p_yes']:.2f}", "correct": record["correct"]}
            for name, record in zip(names, case.records, strict=True)
        ],
        "panels": list(_panels(case, names)),
    }


def _panels(case: Case, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    picture = fit(case.picture)
    yield panel(outlined(picture, case.mask), "picture")
    for name, maps in zip(names, case.maps, strict=True):
        for title, found in maps:
            y, x = peak(found, (100, 100))
            drawn = outlined(Image.fromarray(overlay(picture, found)), case.mask)
            yield panel(drawn, title, name if len(names) > 1 else "", (f"{x:.1f}", f"{y:.1f}"))
