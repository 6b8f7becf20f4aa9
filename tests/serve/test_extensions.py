"""What nobody else gives: overlays, maps of an answer that is given, probabilities of given answers."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny_served import asked, scene

from agevlm.analysis.attention import look
from agevlm.analysis.figures import enlarge, overlay
from agevlm.serve.looking import in_batches
from agevlm.serve.protocol import AnswersReply, ChatReply
from agevlm.serve.server import Settings, in_background
from agevlm.vlms import Vlm

QUESTION = "what is in the picture?"
JSON = "application/json"
CHAT = "/v1/chat/completions"


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
        ({"layers": [9]}, "choose from 1, 4"),
        ({"heads": [9]}, "the model has 4"),
        ({"messages": asked(None, QUESTION)}, "no picture"),
    ],
)
def test_a_look_that_cannot_be_is_refused(served: Any, change: dict[str, Any], what: str) -> None:
    reply = post(served, "/v1/looks", **{"messages": asked(scene(), QUESTION), **change})
    assert reply.status_code == 400
    assert what in reply.json()["error"]["message"]


@pytest.fixture
def of_few_words(tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`tiny` says that it learned two words."""
    monkeypatch.setattr(tiny[1].config, "known_words", ["boat", "red"])


def told(words: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Of each word whether it was learned, whether it has a score, and its maps."""
    return [(one["word"], one["learned"], one["made_up"] is not None, len(one["maps"])) for one in words]


@pytest.mark.usefixtures("of_few_words")
@pytest.mark.parametrize("stream", [False, True])
def test_a_word_that_was_not_learned_has_no_figures(served: Any, stream: bool) -> None:
    messages = asked(scene(), "is there a unicorn or a boat?")
    reply = post(served, "/v1/chat/completions", messages=messages, attention=True, stream=stream)
    chunks = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line[6:].startswith("{")]
    (choice,) = chunks[-1]["choices"] if stream else reply.json()["choices"]
    assert told(choice["attention"]) == [("unicorn", False, False, 0), ("boat", True, True, 1)]
    reply = post(served, "/v1/looks", messages=messages, format="json", answer="a fish")
    assert told(reply.json()["words"])[2:] == [("fish", False, False, 0)]
    alone = post(served, "/v1/looks", messages=asked(scene(), "is there a unicorn?"), format="json", answer="no")
    assert told(alone.json()["words"]) == [("unicorn", False, False, 0)]


@pytest.mark.usefixtures("of_few_words")
def test_a_word_that_was_not_learned_has_no_overlay(served: Any) -> None:
    messages = asked(scene(), "is there a unicorn or a boat?")
    first, boat = (post(served, "/v1/looks", messages=messages, answer="no", word=word) for word in (None, "boat"))
    assert first.headers["content-type"] == "image/png"
    assert first.content == boat.content
    for refused in (
        post(served, "/v1/looks", messages=messages, word="unicorn"),
        post(served, "/v1/looks", messages=asked(scene(), "is there a unicorn?"), answer="no"),
    ):
        assert refused.status_code == 400
        assert "unicorn: not among the 2 words that tiny learned" in refused.json()["error"]["message"]


def test_a_model_that_does_not_tell_what_it_learned_says_null(served: Any) -> None:
    reply = post(served, "/v1/looks", messages=asked(scene(), "is there a unicorn?"), format="json", answer="no")
    assert told(reply.json()["words"]) == [("unicorn", None, True, 1)]


def test_what_a_word_has_is_in_the_schema(served: Any) -> None:
    schema = httpx.get(f"{served[0]}/openapi.json").json()
    known = schema["components"]["schemas"]["WordReply"]["properties"]
    reply = post(served, "/v1/looks", messages=asked(scene(), QUESTION), format="json").json()
    assert known.keys() == reply["words"][0].keys()
    assert "learned" in known
    content = schema["paths"]["/v1/looks"]["post"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/LookReply"}
    assert "image/png" in content
    for route, kinds in ((CHAT, [JSON, "text/event-stream"]), ("/v1/answers", [JSON])):
        content = schema["paths"][route]["post"]["responses"]["200"]["content"]
        assert sorted(content) == kinds and content[JSON]["schema"]
    assert list(schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]


def test_replies_are_as_the_schema_says(served: Any) -> None:
    asking = {"messages": asked(scene(), QUESTION), "logprobs": True, "top_logprobs": 2}
    for attention in (None, True):
        ChatReply.model_validate(post(served, CHAT, **asking, attention=attention).json(), extra="forbid")
    scored = post(served, "/v1/answers", messages=asked(scene(), QUESTION), answers=["yes", "no"])
    AnswersReply.model_validate(scored.json(), extra="forbid")


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


@pytest.mark.parametrize("stream", [False, True])
def test_a_kind_of_question_that_was_never_asked_is_told(
    served: Any, tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(tiny[1].config, "known_questions", ["presence"])
    for question, strange in (("is there a boat?", False), ("how many boats are there?", True)):
        messages = asked(scene(), question)
        reply = post(served, "/v1/chat/completions", messages=messages, attention=True, stream=stream)
        chunks = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line[6:].startswith("{")]
        (choice,) = chunks[-1]["choices"] if stream else reply.json()["choices"]
        look = post(served, "/v1/looks", messages=messages, format="json").json()
        told = [choice.get("notice"), look["notice"]]
        assert all("“is there a …?” and was hardly ever asked this" in one if strange else one is None for one in told)


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
