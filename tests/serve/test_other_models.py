"""Models without image memories: the same requests mean the same, one answer after another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tiny_models import make_picture
from tiny_served import asked, wait_until
from vlms.tiny_families import made

from agevlm.serve.server import in_background
from agevlm.vlms import Vlm

NAMES = ("llava", "qwen2_vl", "agevlm_concat", "mllama")
QUESTION = "is there a fish ?"


@pytest.fixture(scope="module", params=NAMES)
def other(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any, Vlm]]:
    name, pair = request.param, made(request.param)
    with in_background([(name, *pair)]) as (url, engines):
        yield url, engines[0], Vlm(*pair)


def ask(other: Any, **options: Any) -> httpx.Response:
    url, engine, _ = other
    body = {"model": engine.name, "messages": asked(make_picture(size=(64, 64)), QUESTION), "max_tokens": 6, **options}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def test_it_answers_as_the_room_does(other: Any) -> None:
    vlm = other[2]
    expected = vlm.answers(vlm.encode([vlm.prompt(QUESTION)], [[make_picture(size=(64, 64))]]), 6)[0]
    reply = ask(other).json()
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["usage"]["completion_tokens"] == len(expected.ids)


def test_streams_seeds_and_choices(other: Any) -> None:
    options = {"temperature": 1.3, "seed": 5, "n": 2}
    first, second = (ask(other, **options).json()["choices"] for _ in range(2))
    assert [one["message"]["content"] for one in first] == [one["message"]["content"] for one in second]
    streamed = ask(other, stream=True, **options).text
    assert streamed.rstrip().endswith("data: [DONE]")


def test_attention_has_no_score_without_a_null_token(other: Any) -> None:
    reply = ask(other, attention=True)
    assert reply.status_code == 200
    words = reply.json()["choices"][0]["attention"]
    assert words[0]["word"] == "fish"
    assert words[0]["made_up"] is None


def test_a_conversation_that_is_too_long(other: Any) -> None:
    reply = ask(other, messages=asked(make_picture(), "fish " * 5000))
    assert reply.status_code == 400
    assert "context" in reply.json()["error"]["message"]


def test_one_answer_runs_and_the_others_wait(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, engine, _ = other
    generate, go = engine.vlm.model.generate, threading.Event()
    monkeypatch.setattr(engine.vlm.model, "generate", lambda **kwargs: (go.wait(60), generate(**kwargs))[1])
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(ask, other) for _ in range(2)]
        wait_until(lambda: (engine.num_running, engine.num_waiting) == (1, 1), 30)
        shown = httpx.get(f"{url}/metrics").text
        go.set()
        assert [reply.result().status_code for reply in sent] == [200, 200]
    assert f'agevlm_running{{model="{engine.name}"}} 1.0' in shown
    wait_until(lambda: (engine.num_running, engine.num_waiting) == (0, 0), 10)
