"""What stands in front of a chat by itself: a chat template without its system prompt, a tokenizer's beginning of text.

Many templates begin a conversation that has no system message with one of their own: SmolLM2's has 20 tokens, more than
a short question. What is changed is the template, so that every program that reads the checkpoint renders it alike.
"""

from __future__ import annotations

import re
from typing import Any

_MARK, _QUESTION = "\U0010fdf2", "\U0010fdf3"  # private characters: no template contains them
_SYSTEM = {"role": "system", "content": _MARK}
_RENDERED = "agevlm_rendered"  # a name of a variable


def without_system_prompt(tokenizer: Any, template: str) -> str:
    """The template that renders conversations without a system message as `template` does, less its own prompt.

    One that adds none comes back as it is. Conversations with a system message, or with tools, are rendered as before.
    Where the prompt cannot be told from the rest, a ValueError. Marks of answers (`{% generation %}`) are taken out,
    for places in what is cut would be wrong.
    """
    alone = _render_system(tokenizer, template)
    if alone is None:
        return template
    end = alone.partition(_MARK)[2]
    question = [{"role": "user", "content": _QUESTION}]
    turns = [*question, {"role": "assistant", "content": "x"}, *question]
    own = _render(tokenizer, template, question)
    start = tokenizer.bos_token if tokenizer.bos_token and own.startswith(tokenizer.bos_token) else ""

    def without(messages: list[dict[str, str]]) -> str:
        """What should be left: the text behind a system message, which takes the place of the template's own."""
        return start + _render(tokenizer, template, [_SYSTEM, *messages]).removeprefix(alone)

    if own == without(question):
        return template
    changed = (
        f"{{% set {_RENDERED} %}}{_without_marks(template)}{{% endset %}}"
        f"{{% if tools or (messages and messages[0]['role'] == 'system') %}}{{{{ {_RENDERED} }}}}"
        f"{{% else %}}{{{{ {start!r} + {_RENDERED}.split({end!r}, 1)[1] }}}}{{% endif %}}"
    )
    told = [_SYSTEM, *turns]
    if (
        not end
        or end not in own
        or any(_render(tokenizer, changed, messages) != without(messages) for messages in (question, turns))
        or _render(tokenizer, changed, told) != _render(tokenizer, template, told)
    ):
        raise ValueError(
            "the tokenizer's chat template adds a system prompt that cannot be told from the rest: keep it "
            "(default_system_prompt: true), or give the tokenizer another chat template"
        )
    return changed


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts the beginning of text in front of a text by itself."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    begun = [tokenizer.bos_token_id, *plain]
    return tokenizer.bos_token_id is not None and list(tokenizer("a")["input_ids"])[: len(begun)] == begun


def _render(tokenizer: Any, template: str, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))


def _render_system(tokenizer: Any, template: str) -> str | None:
    """A system message with the mark, rendered; None where the template has no turn for it."""
    from jinja2 import TemplateError

    try:
        alone = _render(tokenizer, template, [_SYSTEM])
    except TemplateError:
        return None
    return alone if _MARK in alone else None


def _without_marks(template: str) -> str:
    opened = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened)
