"""Text that says the name of a special token, such as `<image>` or `</s>`, and must stay text.

Tokenizers find their special tokens in any text, whoever wrote it. Before a chat template is applied, the first
character of such a name in a message gets a stand-in, one character for one, so that places in the text stay what they
are; the tokenizer is told to read a stand-in as the character that it stands for, after it has found its special
tokens. Text without such names is not touched.
"""

from __future__ import annotations

import re
import string
from typing import Any
from weakref import WeakKeyDictionary

from agevlm.documents import NO_TEXT, is_text

MARKS = "\U0010fdf0\U0010fdf1"  # of the chat template's contents; see `chat.py`
_FIRST = 0x10FE00  # stand-ins: private characters of the last plane, one for each ASCII character
_WIDE = {ord(sign): ord(sign) + 0xFEE0 for sign in string.punctuation + string.ascii_letters + string.digits}
_NAMES: WeakKeyDictionary[Any, tuple[re.Pattern[str], re.Pattern[str]]] = WeakKeyDictionary()


def as_text(processor: Any, text: str) -> str:
    """`text`, of the same length, in which neither `processor` nor its tokenizer finds a special token.

    Names of special tokens and of pictures get a stand-in, which the tokenizer is told to read; where it cannot be told
    (it is a slow one, or finds the token only after it has normalised a text), the sign is replaced by its wide form,
    `＜` for `<`. Half a letter of Unicode, and the characters kept for stand-ins and marks, are ValueErrors.
    """
    if not is_text(text):
        raise ValueError(f"the text {text[:60]!r} has {NO_TEXT}: correct it")
    if processor not in _NAMES:
        _NAMES[processor] = _special_names(processor)
    heard, unheard = _NAMES[processor]
    if heard.search(text):
        hear_stand_ins(processor.tokenizer)
        text = heard.sub(lambda name: chr(_FIRST + ord(name.group())), text)
    return unheard.sub(lambda name: name.group().translate(_WIDE), text)


def hear_stand_ins(tokenizer: Any) -> None:
    """Let a fast tokenizer read stand-ins as the characters that they stand for; nothing else changes."""
    from tokenizers import normalizers

    if getattr(tokenizer, "_hears_stand_ins", False) or not getattr(tokenizer, "is_fast", False):
        return
    firsts = sorted({"<", *(token.content[0] for token in tokenizer.added_tokens_decoder.values() if token.content)})
    read = [normalizers.Replace(chr(_FIRST + ord(sign)), sign) for sign in firsts if sign.isascii()]
    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([*read, *own])
    tokenizer._hears_stand_ins = True


def _special_names(processor: Any) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds the first characters of special names in a text: of those that a stand-in hides, and of the others."""
    tokenizer = getattr(processor, "tokenizer", None)
    fast = getattr(tokenizer, "is_fast", False)
    pictures = [getattr(processor, name, None) for name in ("image_token", "video_token", "boi_token")]
    hidden = {name: fast for name in pictures if isinstance(name, str) and name.strip()}
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        if token.special and token.content.strip():
            hidden[token.content] = fast and not token.normalized and token.content[0].isascii()
    by_means = ([name for name, by_stand_in in hidden.items() if by_stand_in == which] for which in (True, False))
    heard, unheard = (re.compile("|".join(map(_first_of, names)) or r"(?!)", re.DOTALL) for names in by_means)
    return heard, unheard


def _first_of(name: str) -> str:
    return f"{re.escape(name[0])}(?={re.escape(name[1:])})"
