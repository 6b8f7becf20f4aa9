"""Chat templates whose own system prompt is dropped, and tokenizers that have none, or no end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import IMAGE_SIZE, make_picture, make_tokenizer

from agevlm import AgeVlmProcessor
from agevlm.modeling.chat_template import without_system_prompt

TURNS = "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
TEMPLATES = {
    "before the first turn": (
        "{% if messages[0]['role'] != 'system' %}{{ '<s>system\nYou are a helpful fish.</s>\n' }}{% endif %}"
        + TURNS
        + PROMPT
    ),
    "inside a turn that is always there": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}"
        "{{ '<s>system\nThe date is ' + strftime_now('%d %b %Y') + '.\n' + told + '</s>\n' }}" + TURNS + PROMPT
    ),
    "with marks of answers": (
        "{% set ns = namespace(first=true) %}{%- for m in messages -%}"
        "{%- if ns.first and m['role'] != 'system' -%}{{ '<s>system\nI swim.</s>\n' }}{%- endif -%}"
        "{% set ns.first = false %}{{ '<s>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{%- generation -%}{{ m['content'] }}{%- endgeneration -%}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '</s>\n' }}{%- endfor -%}" + PROMPT
    ),
}
USER, ANSWER = {"role": "user", "content": "is it red ?"}, {"role": "assistant", "content": "no"}
SYSTEM = {"role": "system", "content": "be a boat"}


def render(template: str, *messages: dict[str, str], **options: Any) -> str:
    return str(make_tokenizer().apply_chat_template(list(messages), chat_template=template, tokenize=False, **options))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_own_prompt_is_dropped_and_nothing_else(name: str) -> None:
    template = TEMPLATES[name]
    changed = without_system_prompt(make_tokenizer(), template)
    bos = "<bos>" if "bos_token" in template else ""
    assert "<s>system" in render(template, USER)
    assert render(changed, USER) == f"{bos}<s>user\nis it red ?</s>\n"
    turns = "<s>user\nis it red ?</s>\n<s>assistant\nno</s>\n<s>user\nis it red ?</s>\n<s>assistant\n"
    assert render(changed, USER, ANSWER, USER, add_generation_prompt=True) == bos + turns
    assert render(changed, SYSTEM, USER, ANSWER) == render(template, SYSTEM, USER, ANSWER)
    assert without_system_prompt(make_tokenizer(), changed) == changed


def no_system(turns: str) -> str:
    return "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + turns


@pytest.mark.parametrize("template", [TURNS + PROMPT, no_system(TURNS), "{{ bos_token }}" + TURNS])
def test_templates_without_a_prompt_of_their_own_stay(template: str) -> None:
    assert without_system_prompt(make_tokenizer(), template) == template


def test_a_prompt_that_cannot_be_told_from_the_rest_is_refused() -> None:
    template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '\n' }}{% endfor %}"
    template = "{% if messages[0]['role'] != 'system' %}{{ 'Swim.\nAlways.\n' }}{% endif %}" + template
    with pytest.raises(ValueError, match="a system prompt that cannot be told from the rest: keep it"):
        without_system_prompt(make_tokenizer(), template)


@pytest.mark.parametrize("kept", [True, False])
def test_the_processor_keeps_or_drops_it_for_good(kept: bool, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES["before the first turn"]
    processor = AgeVlmProcessor.from_backbones(tokenizer, IMAGE_SIZE, default_system_prompt=kept)
    processor.save_pretrained(tmp_path)
    again = AgeVlmProcessor.from_pretrained(tmp_path)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it red ?"}]}]
    text = again.apply_chat_template(asked, add_generation_prompt=True)
    assert ("helpful fish" in text) == kept
    assert text.endswith("<s>user\n<image>is it red ?</s>\n<s>assistant\n")
    assert again(text=text, images=make_picture()).pixel_values.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert again.tokenizer.apply_chat_template([USER], tokenize=False).startswith("<s>system" if kept else "<s>user")


def test_without_a_chat_template_there_is_nothing_to_drop() -> None:
    processor = AgeVlmProcessor.from_backbones(make_tokenizer(), IMAGE_SIZE, default_system_prompt=False)
    assert processor.apply_chat_template([USER]) == "user: is it red ?\n"


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"has no token for the end of text \(eos_token\)"):
        AgeVlmProcessor.from_backbones(tokenizer, IMAGE_SIZE)
