"""What nobody else gives: overlays, maps of an answer that is given, probabilities of given answers."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny_served import asked, scene

from agevlm.analysis.attention import look
from agevlm.analysis.figures import enlarge, overlay
from agevlm.serve.looking import in_batches
from agevlm.serve.server import Settings, in_background
from agevlm.vlms import Vlm

QUESTION = "what is in the picture?"


def post(served: Any, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{served[0]}{path}", json={"model": "tiny", **body}, timeout=60)


def test_an_overlay_is_the_figure_of_the_word(served: Any, tiny: tuple[str, Any, Any]) -> None:
    expected = look(*tiny[1:], scene(), QUESTION)
    word = expected.words[-1]
    reply = post(served, "/v1/looks", messages=asked(scene(), QUESTION), word=word.word)
    assert reply.headers["content-type"] == "image/png"
    first = next(one for one in expected.words if one.word == word.word)
    drawn = np.asarray(Image.open(io.BytesIO(reply.content)))
    assert np.abs(drawn.astype(int) - overlay(enlarge(scene()), first.map)).max() <= 2


def test_maps_of_an_answer_that_is_given(served: Any) -> None:
    own = post(served, "/v1/looks", messages=asked(scene(), QUESTION), format="json").json()
    again = post(served, "/v1/looks", messages=asked(scene(), QUESTION), format="json", answer=own["answer"]).json()
    assert [word["word"] for word in again["words"]] == [word["word"] for word in own["words"]]
    assert np.allclose(again["words"][0]["maps"], own["words"][0]["maps"], atol=1e-4)
    other = post(served, "/v1/looks", messages=asked(scene(), QUESTION), format="json", answer="a fish").json()
    assert [word["word"] for word in other["words"] if word["where"] == "answer"] == ["fish"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"word": "zebra"}, "choose from"),
        ({"layers": [9]}, "the model has 2"),
        ({"heads": [9]}, "the model has 4"),
        ({"messages": asked(None, QUESTION)}, "no picture"),
    ],
)
def test_a_look_that_cannot_be_is_refused(served: Any, change: dict[str, Any], what: str) -> None:
    reply = post(served, "/v1/looks", **{"messages": asked(scene(), QUESTION), **change})
    assert reply.status_code == 400
    assert what in reply.json()["error"]["message"]


def test_probabilities_of_given_answers(served: Any, tiny: tuple[str, Any, Any]) -> None:
    answers = ["yes", "no", "zero"]
    reply = post(served, "/v1/answers", messages=asked(scene(), "is there a fish?"), answers=answers).json()["answers"]
    assert [one["answer"] for one in reply] == answers
    assert sum(one["share"] for one in reply) == pytest.approx(1)
    assert reply[1]["share"] > 0.9
    vlm = Vlm(*tiny[1:])
    inputs = vlm.encode([vlm.prompt("is there a fish?")], [[scene()]])
    for one in reply:
        ids = [*vlm.answer_ids(inputs.texts[0], one["answer"]), tiny[2].tokenizer.eos_token_id]
        assert one["logprob"] == pytest.approx(float(vlm.log_probs(inputs, [ids])[0].sum()), abs=1e-3)
    assert 0.9 < sum(one["probability"] for one in reply) <= 1 + 1e-6


def test_many_answers_are_scored_in_batches(served: Any) -> None:
    answers = [f"{number}" for number in range(40)]
    reply = post(served, "/v1/answers", messages=asked(scene(), "how many fish are there?"), answers=answers).json()
    assert len(reply["answers"]) == 40
    reply = post(served, "/v1/answers", messages=asked(scene(), "?"), answers=["x"] * 65)
    assert reply.status_code == 400


def test_answers_are_read_as_many_at_once_as_the_budget_allows() -> None:
    rows = [[0] * length for length in (10, 10, 3000, 1200, 10, 5000)]
    assert list(in_batches(rows, 100)) == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)]


def test_drawn_examples_are_for_models_that_may_know_them(tiny: tuple[str, Any, Any]) -> None:
    model = tiny[1]
    try:
        with in_background([tiny], Settings(port=0)) as (url, _):
            shown = httpx.get(f"{url}/examples").json()
            model.config.known_words = ["sofa", "lamp"]
            assert httpx.get(f"{url}/examples").json() == []
    finally:
        model.config.known_words = None
    assert len(shown) == 6
