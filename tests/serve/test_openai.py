"""OpenAI's own client against a real server."""

from __future__ import annotations

from typing import Any

from tiny_served import asked, scene

import agevlm


def test_it_answers_as_the_library_does(client: Any, tiny: tuple[str, Any, Any]) -> None:
    for question in ("is there a fish?", "what is in the picture?"):
        reply = client.chat.completions.create(model="tiny", messages=asked(scene(), question))
        assert reply.choices[0].message.content == agevlm.look(tiny[1:], scene(), question).answer
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
