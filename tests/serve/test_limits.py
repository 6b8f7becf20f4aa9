"""Every limit, and every bad input: each has its status and one sentence, and the server lives on."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image
from tiny_served import asked, data_url, endless, scene, wait_until

from agevlm.serve.asks import Writing
from agevlm.serve.decoding import Rows
from agevlm.serve.limits import Limits
from agevlm.serve.server import Settings, in_background, listen

CHAT = "/v1/chat/completions"
LIMITS = Limits(
    max_body_bytes=2_000_000,
    max_images=2,
    max_image_bytes=400_000,
    max_image_pixels=1_000_000,
    max_tokens=64,
    max_running=2,
    max_waiting=2,
    max_upload_s=0.5,
)


@pytest.fixture(scope="module")
def narrow(tiny: tuple[str, Any, Any]) -> Iterator[tuple[str, list[Any]]]:
    """A server with narrow limits and a key."""
    with in_background([tiny], Settings(port=0, key="secret", limits=LIMITS)) as found:
        yield found


def post(served: Any, path: str = CHAT, key: str | None = "secret", content: bytes | None = None, **body: Any) -> Any:
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    body = {"model": "tiny", "messages": asked(scene()), **body}
    return httpx.post(f"{served[0]}{path}", headers=headers, content=content or json.dumps(body), timeout=60)


def refusal(reply: Any) -> tuple[int, str]:
    """Status and sentence of an answer in OpenAI's form."""
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return reply.status_code, error["message"]


def bomb(width: int, height: int) -> str:
    """A PNG of a few kB that says it is very large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    data = zlib.compress(bytes(1000))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    import base64

    return "data:image/png;base64," + base64.b64encode(png).decode()


def cut_off() -> str:
    head, _, data = data_url(scene(), "JPEG").partition(",")
    return f"{head},{data[: len(data) // 2 // 4 * 4]}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"max_tokens": 10**9}, "the limit here is 64"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 9}, "n is 9"),
        ({"stop": [""]}, "none empty"),
        ({"stop": list("abcde")}, "stop: has 5; at most 4 are taken"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"frequency_penalty": 1.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_k": 5}, "top_k is not supported"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "   "}]}, "has no text"),
        ({"messages": [{"role": "assistant", "content": "yes"}]}, "end with what is to be answered"),
        ({"messages": [{"role": "user", "content": "<image> what?"}]}, "stands for a picture"),
        ({"messages": asked(None, "is there a fish? " * 200)}, "the context of this model takes 512"),
        ({"messages": asked("https://example.org/a.png")}, "not fetched"),
        ({"messages": asked("file:///etc/passwd")}, "not fetched"),
        ({"messages": asked("/etc/passwd")}, "not fetched"),
        ({"messages": asked("data:image/png;base64,!!!!")}, "no base64"),
        ({"messages": asked("data:text/plain;base64,aGVsbG8=")}, "a picture was expected"),
        ({"messages": asked("data:image/png;base64,aGVsbG8=")}, "no PNG, JPEG"),
        ({"messages": asked("data:image/png;base64,")}, "no PNG, JPEG"),
        ({"messages": asked(bomb(10_000, 10_000))}, "the limit is 1 million"),
        ({"messages": asked(bomb(60_000, 60_000))}, "3,600,000,000 pixels"),
        ({"messages": asked(bomb(900, 900))}, "truncated or damaged"),
        ({"messages": asked(cut_off())}, "truncated or damaged"),
        ({"messages": asked(scene()) * 3}, "the limit is 2"),
        ({"attention": True, "messages": asked(None)}, "no picture"),
        ({"attention": {"layers": [7]}}, "choose from 1, 4"),
        ({"attention": {"layers": []}}, "attention"),
        ({"messages": [{"role": "user", "content": "a \ud800 fish"}]}, "half a surrogate pair"),
        ({"model": "\udfff"}, "half a surrogate pair"),
        ({"\ud800": 1}, "half a surrogate pair"),
        ({"messages": asked(None, "a" * 1_500_000)}, "1,500,000 characters is too many tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content.0: type is 'image'; expected one"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "content.0: its type is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "0.image_url: expect"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: is missing"),
        ({"attention": {"layers": [-1]}}, "attention.layers.0: must be at least 0"),
        ({"attention": {"x": 1}}, "attention.x is not supported"),
        ({"attention": "yes"}, "attention: expected true or false"),
        ({"stream": "yes"}, "stream: expected true or false"),
        ({"n": True}, "n: expected a whole number"),
        ({"max_tokens": "5"}, "max_tokens: expected a whole number"),
        ({"temperature": "0"}, "temperature: expected a number"),
        ({"max_tokens": 64, "messages": asked(None, "fish " * 470)}, "ask for at most "),
        ({"stream_options": {"include_usage": True}}, "stream_options needs stream"),
        ({"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo is not supported"),
        ({"messages": [{"role": "user", "content": "fish?", "foo": 1}]}, "messages.0.foo is not supported"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, *asked(None)]},
            "messages.0.tool_calls is not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "foo": 1}]}]},
            "content.0.foo is not",
        ),
        ({"tools": [{"type": "function"}]}, "tools is not supported here: leave it out"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens is 1000000000; the limit here is 64"),
    ],
)
def test_a_request_that_cannot_be_answered(narrow: Any, change: dict[str, Any], what: str) -> None:
    status, message = refusal(post(narrow, **change))
    assert status == 400
    assert what in message


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_has_no_room_names_the_field_that_asks_for_it(narrow: Any, field: str) -> None:
    reply = post(narrow, messages=asked(None, "fish " * 470), **{"max_tokens": None, field: 64})
    assert (refusal(reply)[0], reply.json()["error"]["param"]) == (400, field)


def test_what_a_reply_leaves_empty_may_be_sent_back(narrow: Any) -> None:
    said = {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None, "annotations": []}
    assert post(narrow, messages=[*asked(None), said, {**asked(None)[0], "name": "me"}]).status_code == 200


def test_a_picture_with_many_bytes(narrow: Any) -> None:
    import numpy as np

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8))
    status, message = refusal(post(narrow, messages=asked(noise)))
    assert (status, "the limit is 400,000" in message) == (413, True)


def test_a_body_of_many_values_holds_nobody_up(narrow: Any) -> None:
    many = b'{"model": "tiny", "messages": [{"role": "user", "content": [' + b"1," * 950_000 + b"1]}]}"
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(post, narrow, content=many) for _ in range(4)]
        while not all(reply.done() for reply in replies):
            assert httpx.get(f"{narrow[0]}/health", timeout=10).status_code == 200
    assert [refusal(reply.result())[0] for reply in replies] == [400] * 4


@pytest.mark.parametrize("content", [b"{", b"[1", b"\xff\xfe", b"null", b"[]", b'"x"', b'{"model": NaN}'])
def test_a_body_that_is_no_request(narrow: Any, content: bytes) -> None:
    assert refusal(post(narrow, content=content))[0] == 400


def test_a_long_prompt_is_refused_and_others_go_on(narrow: Any) -> None:
    status, message = refusal(post(narrow, messages=asked(None, "fish " * 200_000)))
    assert (status, "context" in message) == (400, True)
    assert post(narrow).status_code == 200


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large(narrow: Any, told: bool) -> None:
    headers = {"Authorization": "Bearer secret"}
    body = b'{"model": "' + b"x" * 3_000_000
    pieces = body if told else (body[start : start + 50_000] for start in range(0, len(body), 50_000))
    reply = httpx.post(f"{narrow[0]}{CHAT}", headers=headers, content=pieces, timeout=30)
    status, message = refusal(reply)
    assert (status, "2,000,000" in message) == (413, True)


def test_a_body_that_does_not_come(narrow: Any) -> None:
    host, port = narrow[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        reply = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert reply.startswith("HTTP/1.1 408")
    assert "within 0.5 seconds" in reply


@pytest.mark.parametrize("key", [None, "wrong", "secre", "secretx", "sécret"])
def test_the_key(narrow: Any, key: str | None) -> None:
    headers = [] if key is None else [(b"Authorization", b"Bearer " + key.encode())]
    for path in ("/v1/models", "/metrics"):
        assert refusal(httpx.get(f"{narrow[0]}{path}", headers=headers))[0] == 401
    assert httpx.get(f"{narrow[0]}/health", headers=headers).status_code == 200
    assert httpx.get(f"{narrow[0]}/", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", CHAT, 405),
        ("POST", "/health", 405),
        ("GET", "/v1/x", 404),
        ("GET", "/examples/99.png", 404),
        ("GET", "/examples/-1.png", 404),
        ("GET", "/examples/x.png", 400),
        ("GET", "/" + "x" * 5000, 404),
        ("GET", "/v1/models/" + "x" * 5000, 404),
    ],
)
def test_other_places(narrow: Any, method: str, path: str, status: int) -> None:
    headers = {"Authorization": "Bearer secret"}
    reply = httpx.request(method, f"{narrow[0]}{path}", headers=headers)
    assert refusal(reply)[0] == status
    assert len(reply.content) < 500


@pytest.mark.parametrize("path", ["/", "/main.js", "/health", "/metrics", "/v1/models", "/examples/0.png"])
def test_the_head_of_what_can_be_had(narrow: Any, path: str) -> None:
    headers = {"Authorization": "Bearer secret"}
    with httpx.Client(headers=headers, base_url=narrow[0], timeout=30) as client:
        head, whole = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert client.head("/nothing").status_code == 404
        assert client.head(CHAT).status_code == 405


@pytest.mark.parametrize(("choices", "taken"), [(1, 4), (2, 3)])
def test_those_who_find_a_place_are_taken_and_so_many_wait(
    narrow: Any, monkeypatch: pytest.MonkeyPatch, choices: int, taken: int
) -> None:
    """Two answers at once, and two requests that wait: a request of two choices takes both places."""
    engine = narrow[1][0]
    step, go = engine._decoder.step, threading.Event()
    monkeypatch.setattr(engine._decoder, "step", lambda *args: (go.wait(60), step(*args))[1])
    body = {"messages": asked(scene(), "what is in the picture?"), "n": choices}
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(post, narrow, **body) for _ in range(8)]
        wait_until(lambda: sum(one.done() for one in sent) == 8 - taken, 50)
        wait_until(lambda: engine.num_running > 0, 20)
        assert engine.num_running // choices + engine.num_waiting == taken
        go.set()
        replies = [one.result() for one in sent]
    refused = [reply for reply in replies if reply.status_code == 429]
    assert len(refused) == 8 - taken
    assert all(reply.status_code in (200, 429) for reply in replies)
    assert all(reply.headers["Retry-After"] == "1" for reply in refused)
    assert len({reply.json()["choices"][0]["message"]["content"] for reply in replies if reply.status_code == 200}) == 1


def test_an_answer_that_takes_too_long(tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with in_background([tiny], Settings(port=0, limits=Limits(max_request_s=0.3))) as slow:
        step = slow[1][0]._decoder.step
        monkeypatch.setattr(slow[1][0]._decoder, "step", lambda *args: (time.sleep(0.5), step(*args))[1])
        status, message = refusal(post(slow, messages=asked(scene(), "what is in the picture?")))
        assert (status, "longer than the 0.3 seconds" in message) == (504, True)


@pytest.mark.parametrize(
    ("path", "asked_for"), [("/v1/answers", {"answers": ["yes", "no"]}), ("/v1/looks", {"answer": "yes"})]
)
def test_an_extension_that_takes_too_long(
    tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch, path: str, asked_for: dict[str, Any]
) -> None:
    with in_background([tiny], Settings(port=0, limits=Limits(max_request_s=0.3))) as slow:
        call = slow[1][0].call
        monkeypatch.setattr(slow[1][0], "call", lambda run: call(lambda: (time.sleep(0.5), run())[1]))
        status, message = refusal(post(slow, path, messages=asked(scene(), "is there a fish?"), **asked_for))
        assert (status, "longer than the 0.3 seconds" in message) == (504, True)


@pytest.mark.parametrize(
    ("path", "asked_for"),
    [(CHAT, {}), (CHAT, {"stream": True}), ("/v1/looks", {}), ("/v1/answers", {"answers": ["x"]})],
)
def test_pictures_that_take_too_long_to_see(
    tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch, path: str, asked_for: dict[str, Any]
) -> None:
    with in_background([tiny], Settings(port=0, limits=Limits(max_request_s=0.3))) as slow:
        eyes, go, passes = slow[1][0]._eyes, threading.Event(), []
        look_at = eyes._look_at
        monkeypatch.setattr(eyes, "_look_at", lambda pictures: (passes.append(1), go.wait(60), look_at(pictures))[2])
        for index in range(2):  # the second waits behind the first
            status, message = refusal(post(slow, path, messages=asked(scene(index)), **asked_for))
            assert (status, "longer than the 0.3 seconds" in message) == (504, True)
        go.set()
        eyes._thread.submit(int).result(60)
        assert len(passes) == 1


@pytest.mark.parametrize(("path", "stream"), [(CHAT, False), (CHAT, True), ("/v1/looks", False)])
def test_an_engine_that_says_nothing_keeps_nobody(
    tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    with in_background([tiny], Settings(port=0, limits=Limits(max_request_s=0.5))) as silent:
        monkeypatch.setattr(silent[1][0], "submit", lambda ask: None)
        options = {"stream": True} if stream else {}
        status, message = refusal(post(silent, path, **options))
        assert (status, "longer than the 0.5 seconds" in message) == (504, True)


def test_overlays_are_drawn_one_at_a_time_and_in_time(
    tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, most = [], []

    def slow(picture: Any, attention: Any) -> bytes:
        drawing.append(1)
        most.append(len(drawing))
        time.sleep(0.4)
        drawing.pop()
        return b"drawn"

    monkeypatch.setattr("agevlm.serve.service.overlay_png", slow)
    body = {"messages": asked(scene()), "answer": "no"}
    with in_background([tiny]) as served, ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(post, served, "/v1/looks", **body) for _ in range(3)]
        assert [reply.result().content for reply in replies] == [b"drawn"] * 3
    assert most == [1, 1, 1]
    with in_background([tiny], Settings(port=0, limits=Limits(max_request_s=0.3))) as served:
        assert refusal(post(served, "/v1/looks", **body))[0] == 504


@pytest.mark.parametrize("words", [600, 20_000])
@pytest.mark.parametrize(("path", "field"), [("/v1/answers", "answers"), ("/v1/looks", "answer")])
def test_a_given_answer_that_is_longer_than_the_context(narrow: Any, path: str, field: str, words: int) -> None:
    answer = "fish " * words
    status, message = refusal(post(narrow, path, **{field: [answer] if field == "answers" else answer}))
    assert (status, "the context of this model takes 512" in message) == (400, True)


def test_what_is_null_is_not_asked_for(narrow: Any) -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "n", "attention", "stop", "max_tokens", "tools", "logprobs"))
    asks_for_nothing = {"tool_choice": "none", "parallel_tool_calls": False, "tools": []}
    assert post(narrow, **(nulls | asks_for_nothing)).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(stream: bool) -> None:
    with in_background([endless()], Settings(port=0, limits=Limits(max_tokens=100, default_tokens=100))) as (
        url,
        engines,
    ):
        engine = engines[0]
        step = engine._decoder.step
        engine._decoder.step = lambda *args: (time.sleep(0.3), step(*args))[1]
        body = {"model": "endless", "messages": asked(None), "stream": stream}
        with httpx.Client(timeout=60.0 if stream else 1.0) as client:
            if stream:
                with client.stream("POST", f"{url}{CHAT}", json=body) as reply:
                    next(reply.iter_bytes())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{url}{CHAT}", json=body)
        wait_until(lambda: engine.num_running == 0 and engine.num_waiting == 0, 20)  # of 30 for all tokens
        written = engine.metrics.text().decode()
        assert 'agevlm_answers_total{model="endless"}' not in written


def test_a_port_in_use_and_a_host_that_is_not_there() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is in use: choose another"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match="no address of the host"):
        listen("no.such.host.invalid", 0)


def test_a_step_that_fails_is_one_error_and_the_next_request_is_answered(
    tiny: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_background([tiny]) as served:
        decoder = served[1][0]._decoder
        step = decoder.step

        def broken(*_: Any) -> Any:
            decoder.step = step
            raise RuntimeError("out of memory")

        decoder.step = broken
        question = asked(scene(), "what is in the picture?")
        status, message = refusal(post(served, key=None, messages=question))
        assert (status, "out of memory" in message) == (500, False)
        assert post(served, key=None, messages=question).status_code == 200


@pytest.mark.parametrize("place", ["find", "take", "select"])
def test_a_first_step_that_fails_is_told_and_those_who_write_go_on(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Whatever fails when a newcomer joins, it gets an answer, and the rows that run keep on."""
    with in_background([endless()], Settings(port=0, limits=Limits(max_tokens=60))) as (url, (engine,)):
        step, joined = engine._decoder.step, threading.Event()
        monkeypatch.setattr(
            engine._decoder, "step", lambda *args: (joined.wait(60) if engine.num_running else 0, step(*args))[1]
        )
        body = {"model": "endless", "messages": asked(None), "max_tokens": 60}
        with httpx.stream("POST", f"{url}{CHAT}", json={**body, "stream": True}, timeout=60) as reply:
            pieces = reply.iter_text()
            text = next(pieces)
            wait_until(lambda: engine.num_running == 1, 20)
            break_once(monkeypatch, engine, place)
            with ThreadPoolExecutor(1) as pool:
                second = pool.submit(httpx.post, f"{url}{CHAT}", json={**body, "max_tokens": 2}, timeout=60)
                wait_until(lambda: engine.num_waiting == 1, 20)
                joined.set()
                assert refusal(second.result())[0] == 500
            text += "".join(pieces)
        assert text.endswith("data: [DONE]\n\n")
        assert "error" not in text
        assert httpx.post(f"{url}{CHAT}", json={**body, "max_tokens": 2}, timeout=60).status_code == 200


def break_once(monkeypatch: pytest.MonkeyPatch, engine: Any, place: str) -> None:
    """Let one part of a newcomer's first step fail, once."""
    owner, name = {
        "find": (engine.prefixes, "find"), "take": (Writing, "__init__"), "select": (Rows, "select")
    }[place]  # fmt: skip
    whole = getattr(owner, name)

    def broken(*args: Any) -> Any:
        monkeypatch.setattr(owner, name, whole)
        raise RuntimeError("broken")

    monkeypatch.setattr(owner, name, broken)


def test_pictures_of_any_kind_and_shape(narrow: Any) -> None:
    buffer = io.BytesIO()
    scene().save(buffer, "GIF")
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        assert post(narrow, messages=asked(data_url(scene(), kind))).status_code == 200, kind
    for size in ((1, 1), (1, 900), (900, 2)):
        assert post(narrow, messages=asked(scene().resize(size))).status_code == 200, size
    assert post(narrow, messages=asked(data_url(scene().convert("RGBA")))).status_code == 200


def test_data_urls_as_other_programs_write_them(narrow: Any) -> None:
    head, _, data = data_url(scene()).partition(",")
    lines = "\r\n".join(data[start : start + 76] for start in range(0, len(data), 76))
    for url in (f"{head},{lines}", f"{head},{data}\n", f"DATA:IMAGE/PNG;BASE64,{data}"):
        assert post(narrow, messages=asked(url)).status_code == 200, url[:30]


def test_the_page_loads_nothing_from_elsewhere(narrow: Any) -> None:
    reply = httpx.get(narrow[0])
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
