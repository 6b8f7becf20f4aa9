"""OpenAI's own client against a real server."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from tiny_served import asked, scene

import agevlm
from agevlm.serve.replies import Head
from agevlm.serve.sampling import TokenLogProb
from agevlm.vlms import Vlm

LONG = "what is in the picture?"


def said(client: Any, question: str = LONG, picture: Any = None, **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=asked(scene() if picture is None else picture, question), **options
    )


def test_it_answers_as_the_library_does(client: Any, tiny: tuple[str, Any, Any]) -> None:
    for question in ("is there a fish?", LONG):
        reply = said(client, question)
        assert reply.choices[0].message.content == agevlm.look(tiny[1:], scene(), question).answer
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_question_that_comes_again_is_tokenised_once(
    client: Any, served: tuple[str, list[Any]], tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    tokenizer, call = type(tiny[2].tokenizer), type(tiny[2].tokenizer).__call__
    monkeypatch.setattr(tokenizer, "__call__", lambda self, text, **o: (read.append(text), call(self, text, **o))[1])
    answers = [said(client, "is there a lighthouse?", scene(index)) for index in (51, 52, 51)]
    assert len(read) == 1
    assert len({answer.usage.prompt_tokens for answer in answers}) == 1


def test_requests_that_come_together_get_what_they_get_alone(client: Any) -> None:
    """Rows of different length, with different pictures, one, two or none, join and leave one batch."""
    questions = ["is there a fish?", LONG, "how many cars are there?", "where is the flag?"]
    messages = [asked(scene(index), question) for index in range(3) for question in questions]
    two = asked(scene(0), LONG)
    two[0]["content"].insert(0, asked(scene(1))[0]["content"][0])
    messages += [asked(None, "is there a fish?"), two]

    def answer(message: list[dict[str, Any]]) -> str:
        return client.chat.completions.create(model="tiny", messages=message).choices[0].message.content

    alone = [answer(message) for message in messages]
    with ThreadPoolExecutor(len(messages)) as pool:
        together = list(pool.map(answer, messages))
    assert together == alone


def test_a_stream_says_the_same_in_pieces(client: Any) -> None:
    whole = said(client)
    chunks = list(said(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_seed_repeats_a_drawn_answer_and_choices_differ(client: Any) -> None:
    drawn = [
        [choice.message.content for choice in said(client, temperature=1.5, seed=seed, n=4).choices]
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_the_least_top_p_is_greedy(client: Any) -> None:
    greedy = said(client).choices[0].message.content
    assert said(client, temperature=2.0, top_p=1e-9, seed=0).choices[0].message.content == greedy


def test_log_probabilities_are_the_models_own(client: Any, tiny: tuple[str, Any, Any]) -> None:
    reply = said(client, logprobs=True, top_logprobs=3).choices[0]
    vlm = Vlm(*tiny[1:])
    text = vlm.prompt(LONG)
    expected = vlm.log_probs(vlm.encode([text], [[scene()]]), [reply.message.content])[0].tolist()
    told = [token.logprob for token in reply.logprobs.content]
    assert told == pytest.approx(expected, abs=1e-3)
    for token in reply.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-6)  # greedy
        assert bytes(token.bytes).decode() == token.token
    streamed = [
        token.logprob
        for chunk in said(client, logprobs=True, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == pytest.approx(told, abs=1e-3)


def test_stop_and_the_longest_answer(client: Any) -> None:
    whole = said(client).choices[0].message.content
    cut = said(client, stop=[" is", "zebra"]).choices[0]
    assert cut.message.content == whole[: whole.index(" is")]
    assert cut.finish_reason == "stop"
    short = said(client, max_tokens=2)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 2
    assert said(client, max_completion_tokens=2).choices[0].message.content == short.choices[0].message.content


def test_attention_is_that_of_look(client: Any, tiny: tuple[str, Any, Any]) -> None:
    expected = agevlm.look(tiny[1:], scene(), LONG)
    choice = said(client, extra_body={"attention": True}).choices[0]
    assert [word["word"] for word in choice.attention] == [word.word for word in expected.words]
    for told, word in zip(choice.attention, expected.words, strict=True):
        assert np.allclose(told["maps"][0], word.map, atol=1e-4)
        assert told["made_up"] == pytest.approx(word.null_mass, abs=1e-4)
        text = {"question": LONG, "answer": choice.message.content}[told["where"]]
        assert text[told["start"] : told["end"]] == expected.written(word)
    second = list(Vlm(*tiny[1:]).looking)[1]
    chosen = agevlm.look(tiny[1:], scene(), LONG, layers=[second], heads=[0])
    one = said(client, extra_body={"attention": {"layers": [second], "heads": [0]}}, stream=True)
    *_, last = [chunk.choices[0] for chunk in one if chunk.choices]
    assert np.allclose(last.attention[0]["maps"][0], chosen.words[0].map, atol=1e-4)


def test_words_about_what_is_not_there_have_a_high_score(client: Any) -> None:
    def score(question: str) -> float:
        (word,) = said(client, question, scene(3), extra_body={"attention": True}).choices[0].attention
        return word["made_up"]

    from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene

    there = {instance.category for instance in draw_scene(WorldSpec(), 0, 3).annotation.instances}
    absent = [name for name in CATEGORIES if name not in there][:4]
    assert min(score(f"is there a {name}?") for name in absent) > 0.5
    assert max(score(f"is there a {name}?") for name in there) < 0.5


def test_models_are_listed_and_unknown_ones_refused(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="choose from tiny"):
        client.chat.completions.create(model="gpt", messages=asked(None))


def test_a_remembered_picture_is_not_encoded_again(client: Any, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served[1][0]
    encoded = []
    keep = engine.vlm.keep
    monkeypatch.setattr(engine.vlm, "keep", lambda pictures: encoded.append(len(pictures)) or keep(pictures))
    picture = scene(77)
    first = [said(client, question, picture) for question in ("is there a fish?", LONG, LONG)]
    assert encoded == [1]
    assert first[1].choices == first[2].choices


def test_several_choices_count_the_prompt_once(client: Any) -> None:
    one, three = said(client), said(client, n=3)
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens
    assert {choice.message.content for choice in three.choices} == {one.choices[0].message.content}
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert math.isclose(three.usage.total_tokens, three.usage.prompt_tokens + three.usage.completion_tokens)


def test_a_reply_has_the_name_that_the_client_shows(client: Any) -> None:
    assert said(client)._request_id.startswith("req_")
    assert said(client, extra_headers={"X-Request-Id": "mine-1"})._request_id == "mine-1"
    with pytest.raises(openai.BadRequestError) as caught:
        said(client, top_p=7, extra_headers={"X-Request-Id": "mine-2"})
    assert caught.value.request_id == "mine-2"


def test_fields_that_change_no_answer_are_taken(client: Any) -> None:
    plain = said(client).choices[0].message.content
    asks_for_nothing = {
        "prompt_cache_key": "a", "safety_identifier": "b", "modalities": ["text"], "user": "c", "metadata": {"d": "e"}
    }  # fmt: skip
    assert said(client, extra_body=asks_for_nothing).choices[0].message.content == plain
    with pytest.raises(openai.BadRequestError, match="modalities"):
        said(client, modalities=["text", "audio"])


def test_half_a_character_has_its_own_bytes(tiny: tuple[str, Any, Any]) -> None:
    tokenizer = tiny[2].tokenizer
    text = "a 🐟 naïve"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    told = Head("tiny", tokenizer).log_probs([TokenLogProb(token, -1.0) for token in tokens])["content"]
    assert any("\ufffd" in one["token"] for one in told)
    assert bytes(byte for one in told for byte in one["bytes"]).decode().strip() == text
