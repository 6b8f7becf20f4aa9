"""Whatever comes is no status 500, and the server lives: the OpenAPI by schemathesis, bodies and pictures by chance."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tiny_served import asked, data_url, scene

from agevlm.serve.limits import Limits
from agevlm.serve.server import Settings, in_background

pytestmark = pytest.mark.slow
LIMITS = Limits(max_body_bytes=1_000_000, max_tokens=8, default_tokens=4, max_image_pixels=200_000)
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
NUM_BODIES, NUM_PICTURES = 150, 80


@pytest.fixture(scope="module")
def small(tiny: tuple[str, Any, Any]) -> Iterator[str]:
    with in_background([tiny], Settings(port=0, limits=LIMITS)) as (url, _):
        yield url


def test_answers_are_as_the_schema_says(small: str) -> None:
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{small}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        def answered(case: Any) -> None:
            case.call_and_validate(excluded_checks=_lenient())

        answered()


def _lenient() -> list[Any]:
    """Checks that ask for more than the schema can say: a value may be refused for its meaning, not its form."""
    from schemathesis import checks

    names = ("positive_data_acceptance", "unsupported_method", "missing_required_header", "not_a_server_error_")
    found = [getattr(checks, name, None) for name in names]
    return [check for check in found if check is not None]


def changed(value: Any, rng: random.Random) -> Any:
    """A value with one thing in it exchanged for something odd."""
    odd = [None, True, -1, 0, 1e308, 2**70, "", "\ud800", "\x00", "🐟" * 50, [], {}, [[]], "data:image/png;base64,AAAA"]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        return {**value, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], changed(value[place], rng), *value[place + 1 :]]
    return rng.choice(odd)


def test_bodies_by_chance(small: str) -> None:
    rng = random.Random(0)
    whole = {
        "model": "tiny", "messages": asked(scene()), "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": 1,
        "max_tokens": 4,
        "stop": ["x"], "logprobs": True, "top_logprobs": 2, "attention": {"layers": [1], "heads": [1]},
    }  # fmt: skip
    seen = set()
    with httpx.Client(timeout=60, headers={"Content-Type": "application/json"}) as client:
        for _ in range(NUM_BODIES):
            streamed = {"stream": True, "stream_options": {"include_usage": True}} if rng.random() < 0.5 else {}
            body = changed(whole | streamed, rng)
            text = json.dumps(body).encode()
            if rng.random() < 0.1:
                text = text[: rng.randrange(len(text) + 1)] + bytes([rng.randrange(256)])
            path = rng.choice(["/v1/chat/completions", "/v1/chat/completions", "/v1/looks", "/v1/answers"])
            reply = client.post(f"{small}{path}", content=text)
            assert reply.status_code < 500, (path, body, reply.text)
            seen.add(reply.status_code)
        assert client.get(f"{small}/health").status_code == 200
    assert {200, 400} <= seen


def test_pictures_by_chance(small: str) -> None:
    rng = random.Random(1)
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    with httpx.Client(timeout=60) as client:
        for number in range(NUM_PICTURES):
            data = bytearray(base64.b64decode(data_url(scene(number % 3), kinds[number % 5]).partition(",")[2]))
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            url = "data:image/png;base64," + base64.b64encode(bytes(data)).decode()
            body = {"model": "tiny", "messages": asked(url)}
            reply = client.post(f"{small}/v1/chat/completions", json=body)
            assert reply.status_code in (200, 400), (number, reply.text)
        assert client.get(f"{small}/health").status_code == 200
