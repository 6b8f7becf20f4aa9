"""A chat template without the system prompt that it adds by itself.

Many templates begin a conversation that has no system message with one of their own: SmolLM2's has 20 tokens, more than
a short question. What is changed is the template, so that every program that reads the checkpoint renders it alike.
"""

from __future__ import annotations

import re
from typing import Any

_MARK, _QUESTION = "\U0010fdf2", "\U0010fdf3"  # private characters: no template contains them
_RENDERED = "agevlm_rendered"


def without_system_prompt(tokenizer: Any, template: str) -> str:
    """The template that renders conversations without a system message as `template` does, less its own prompt.

    One that adds none comes back as it is. Conversations with a system message, or with tools, are rendered as before.
    Where the prompt cannot be told from the rest, a ValueError. Marks of answers (`{% generation %}`) are taken out,
    for places in what is cut would be wrong.
    """
    question = [{"role": "user", "content": _QUESTION}]
    plain = _render(tokenizer, template, question)
    alone = _render_system(tokenizer, template)
    if alone is None:
        return template
    end = alone.partition(_MARK)[2]
    rest = _render(tokenizer, template, [{"role": "system", "content": _MARK}, *question]).removeprefix(alone)
    start = tokenizer.bos_token if tokenizer.bos_token and plain.startswith(tokenizer.bos_token) else ""
    if plain == start + rest.removeprefix(start):
        return template
    kept = _without_marks(template)
    changed = (
        f"{{% set {_RENDERED} %}}{kept}{{% endset %}}"
        f"{{% if tools or (messages and messages[0]['role'] == 'system') %}}{{{{ {_RENDERED} }}}}"
        f"{{% else %}}{{{{ {start!r} + {_RENDERED}.split({end!r}, 1)[1] }}}}{{% endif %}}"
    )
    _check(tokenizer, template, changed, end, start + rest)
    return changed


def _check(tokenizer: Any, template: str, changed: str, end: str, expected: str) -> None:
    """ValueError unless the changed template gives what is expected of a question, and of more turns what it should."""
    question = [{"role": "user", "content": _QUESTION}]
    turns = [*question, {"role": "assistant", "content": "x"}, *question]
    system = [{"role": "system", "content": "x"}, *turns]
    cut = bool(end) and end in _render(tokenizer, template, question)
    if (
        not cut
        or _render(tokenizer, changed, question) != expected
        or not _render(tokenizer, template, turns, True).endswith(_render(tokenizer, changed, turns, True)[-40:])
        or _render(tokenizer, changed, system) != _render(tokenizer, template, system)
    ):
        raise ValueError(
            "the tokenizer's chat template adds a system prompt that cannot be told from the rest: keep it "
            "(default_system_prompt: true), or give the tokenizer another chat template"
        )


def _render(tokenizer: Any, template: str, messages: list[dict[str, str]], prompt: bool = False) -> str:
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    return str(rendered)


def _render_system(tokenizer: Any, template: str) -> str | None:
    """A system message with the mark, rendered; None where the template has no turn for it."""
    from jinja2 import TemplateError

    try:
        alone = _render(tokenizer, template, [{"role": "system", "content": _MARK}])
    except TemplateError:
        return None
    return alone if _MARK in alone else None


def _without_marks(template: str) -> str:
    opened = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened)
