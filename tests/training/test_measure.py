"""The gallery asks a case again as the benchmark asked it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from tiny_models import make_model, make_picture, make_processor

from agevlm.analysis.attention import look
from agevlm.data.masks import encode_mask
from agevlm.data.schema import Conversation, Grounding, ImageSource, Message, Sample
from agevlm.training.measure import cases

ASKED = (Message("user", "is there a boat ?", 1), Message("assistant", "no"), Message("user", "a fish ?"))


def make_source(identity: str) -> ImageSource:
    data = io.BytesIO()
    make_picture().save(data, "PNG")
    return ImageSource(identity, make_picture().height, make_picture().width, data=data.getvalue())


def make_row(identity: str) -> dict[str, Any]:
    return {"id": identity, "kind": "conversation", "correct": True, "question": "a fish ?", "answer": "yes"} | {
        "reference": "yes",
        "image": identity,
    }


def test_a_case_keeps_its_earlier_messages_and_its_own_masks() -> None:
    model, processor = make_model(), make_processor()
    mask = encode_mask(np.ones((make_picture().height, make_picture().width), dtype=bool))
    groundings = (Grounding(0, 11, 15, "boat", True, (mask,)), Grounding(2, 2, 6, "fish", True, (mask,)))
    messages = (*ASKED, Message("assistant", "yes"))
    one = Sample("one", (make_source("a"),), (Conversation("one/0", "conversation", messages, groundings),))
    both = (Message("user", "a fish ?", 2), Message("assistant", "yes"))
    two = Sample("two", (make_source("b"), make_source("c")), (Conversation("two/0", "conversation", both),))
    items = cases(model, processor, [one, two], [make_row("one/0"), make_row("two/0")], ["fish", "boat"])
    found = {item.id: item for item in items}
    seen, expected = (
        found["one/0"].look,
        look(model, processor, make_picture(), "a fish ?", before=ASKED[:2], vocabulary=["fish", "boat"]),
    )
    assert seen is not None and seen.answer == expected.answer
    np.testing.assert_array_equal(seen.words[0].map, expected.words[0].map)
    assert list(found["one/0"].masks or ()) == ["fish"]
    assert found["two/0"].look is None
