"""Chat templates of the forms that models have, a tokenizer that knows their marks, and conversations to fill them."""

from __future__ import annotations

from typing import Any

from agevlm.data.schema import RLE, Conversation, Grounding, Message

TEXTS = (
    "is there a fish in the picture? yes no describe the picture. a red fish and an orange boat.",
    "is there a fish in the picture? yes no how many boats are there? two",
    "user assistant model system",
) * 2

LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Of each form: template, special tokens, the one that ends a turn. Gemma's end of turn has no role in its tokenizer.
FORMS: dict[str, tuple[str | None, tuple[str, ...], str]] = {
    "tiny": (None, (), "<|end|>"),
    "llama": (LLAMA, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
}


def make_chat_processor(form: str = "tiny") -> Any:
    """A processor whose tokenizer has the template of a form, for pictures of 32 pixels."""
    from tokenizers import AddedToken

    from agevlm import AgeVlmProcessor
    from agevlm.training.tokenizer import build_tokenizer

    template, special, _ = FORMS[form]
    tokenizer = build_tokenizer(TEXTS, vocab_size=400)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special], special_tokens=True)
    if template:
        tokenizer.chat_template = template
    return AgeVlmProcessor.from_backbones(tokenizer, 32)


def make_conversation(*contents: str, images: int = 1, identity: str = "c/0", system: str = "") -> Conversation:
    """Turns of a user and an assistant in turn; pictures stand in front of the first user's turn."""
    roles = ("user", "assistant") * len(contents)
    messages = [Message(roles[i], text, images if i == 0 else 0) for i, text in enumerate(contents)]  # type: ignore[arg-type]
    first = (Message("system", system),) if system else ()
    return Conversation(identity, "test", (*first, *messages))


def ground(
    conversation: Conversation, message: int, phrase: str, masks: tuple[RLE, ...] = (), image: int = 0, **known: Any
) -> Conversation:
    """The conversation with one more phrase grounded; without masks it is absent, or `present=None`: unknown."""
    start = conversation.messages[message].content.index(phrase)
    present = known.get("present", bool(masks))
    grounding = Grounding(message, start, start + len(phrase), phrase, present, masks, image)
    return Conversation(
        conversation.id, conversation.kind, conversation.messages, (*conversation.groundings, grounding)
    )
