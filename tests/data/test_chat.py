"""Labels and phrases in chat text: what is supervised is what the assistant says, under any template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chats import FORMS, ground, make_chat_processor, make_conversation

from agevlm.data.chat import TEXT, render_conversation, tokenise_conversation, tokens_of_span
from agevlm.data.masks import encode_mask
from agevlm.data.schema import Conversation, Grounding, Message

TURNS = ("is there a fish in the picture?", "yes", "how many boats are there?", "two")


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, make_chat_processor(request.param)


def supervised_text(processor: Any, conversation: Conversation, **options: Any) -> list[str]:
    """Runs of supervised tokens, decoded."""
    chat = tokenise_conversation(processor, conversation, **options)
    runs: list[list[int]] = []
    before = False
    for token, kept in zip(chat.input_ids, chat.supervised, strict=True):
        if kept and not before:
            runs.append([])
        if kept:
            runs[-1].append(token)
        before = kept
    return [processor.tokenizer.decode(run).strip() for run in runs]


def test_the_assistant_and_its_end_of_turn_are_supervised_and_nothing_else(form: tuple[str, Any]) -> None:
    name, processor = form
    end = FORMS[name][2]
    assert supervised_text(processor, make_conversation(*TURNS)) == [f"yes{end}", f"two{end}"]
    with_system = make_conversation(*TURNS[:2], system="describe the picture.")
    assert supervised_text(processor, with_system) == [f"yes{end}"]


def test_plain_text_is_supervised_but_for_its_first_token(form: tuple[str, Any]) -> None:
    _, processor = form
    text = replace(make_conversation(*TURNS, images=0), kind=TEXT)
    chat = tokenise_conversation(processor, text)
    assert chat.supervised == [False] + [True] * (len(chat.input_ids) - 1)


def test_the_whole_text_is_the_template_s(form: tuple[str, Any]) -> None:
    _, processor = form
    conversation = make_conversation(*TURNS)
    chat = [{"role": m.role, "content": "<image>" * m.num_images + m.content} for m in conversation.messages]
    plain = processor.apply_chat_template(chat, tokenize=False)
    assert render_conversation(processor, conversation.messages).text == plain
    ids = processor.tokenizer(plain, add_special_tokens=False)["input_ids"]
    assert tokenise_conversation(processor, conversation).input_ids == ids
    assert ids.count(processor.image_token_id) == 1


def test_training_sees_what_a_question_at_inference_looks_like(form: tuple[str, Any]) -> None:
    """The prompt with the generation mark is the beginning of the trained text, up to the answer."""
    _, processor = form
    conversation = make_conversation(*TURNS[:2])
    chat = tokenise_conversation(processor, conversation)
    prompt = render_conversation(processor, conversation.messages[:1], add_generation_prompt=True)
    ids = processor.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    assert chat.input_ids[: len(ids)] == ids
    assert chat.answer_positions == {1: len(ids) - 1}
    assert chat.supervised[len(ids)]
    assert not any(chat.supervised[: len(ids)])


def test_answers_are_predicted_from_the_position_before_them(form: tuple[str, Any]) -> None:
    _, processor = form
    chat = tokenise_conversation(processor, make_conversation(*TURNS))
    assert set(chat.answer_positions) == {1, 3}
    for message, position in chat.answer_positions.items():
        assert not chat.supervised[position] and chat.supervised[position + 1]
        assert TURNS[message].startswith(processor.tokenizer.decode(chat.input_ids[position + 1]).strip())


def test_phrases_lie_on_their_own_tokens(form: tuple[str, Any]) -> None:
    _, processor = form
    conversation = make_conversation("is there a fish in the picture?", "a red fish and an orange boat.")
    for message, phrase in ((0, "fish"), (1, "red fish"), (1, "orange boat"), (1, "boat")):
        conversation = ground(conversation, message, phrase)
    chat = tokenise_conversation(processor, conversation)
    words = [processor.tokenizer.decode([chat.input_ids[t] for t in tokens]).strip() for tokens in chat.phrase_tokens]
    assert words == ["fish", "red fish", "orange boat", "boat"]
    assert all(chat.supervised[token] for tokens in chat.phrase_tokens[1:] for token in tokens)
    assert not any(chat.supervised[token] for token in chat.phrase_tokens[0])


def test_words_of_many_tokens_and_letters_of_many_bytes_are_covered() -> None:
    processor = make_chat_processor()
    conversation = make_conversation("is there a zeppelin über the café?", "yes")
    for phrase in ("zeppelin", "über", "café"):
        conversation = ground(conversation, 0, phrase)
    chat = tokenise_conversation(processor, conversation)
    assert len(chat.phrase_tokens[0]) > 2
    for tokens, phrase in zip(chat.phrase_tokens, ("zeppelin", "über", "café"), strict=True):
        assert tokens == list(range(tokens[0], tokens[-1] + 1))
        assert processor.tokenizer.decode([chat.input_ids[token] for token in tokens]).strip() == phrase


def test_what_lies_beyond_max_length_is_cut_and_counted() -> None:
    processor = make_chat_processor()
    conversation = ground(make_conversation(*TURNS), 2, "boats")
    whole = tokenise_conversation(processor, conversation)
    cut = tokenise_conversation(processor, conversation, max_length=whole.phrase_tokens[0][0])
    assert whole.num_cut == 0
    assert cut.num_cut == len(whole.input_ids) - len(cut.input_ids) > 0
    assert cut.input_ids == whole.input_ids[: len(cut.input_ids)]
    assert cut.phrase_tokens == [[]]
    assert set(cut.answer_positions) == {1}


def test_a_conversation_cut_before_its_answer_has_nothing_left_to_learn() -> None:
    processor = make_chat_processor()
    conversation = ground(make_conversation(*TURNS[:2]), 0, "fish")
    whole = tokenise_conversation(processor, conversation)
    answer = whole.answer_positions[1] + 1
    cut = tokenise_conversation(processor, conversation, max_length=answer)
    assert cut.input_ids == whole.input_ids[:answer] and cut.num_cut == len(whole.input_ids) - answer
    assert not any(cut.supervised) and cut.answer_positions == {}
    assert whole.phrase_tokens[0] and cut.phrase_tokens == [[]]
    begun = tokenise_conversation(processor, conversation, max_length=answer + 1)
    assert begun.supervised == [False] * answer + [True]
    assert (begun.answer_positions, begun.phrase_tokens) == (whole.answer_positions, whole.phrase_tokens)


@pytest.mark.parametrize(
    ("conversation", "options"),
    [
        (make_conversation("is there a fish?", identity="scene-7/presence-0"), {}),
        (make_conversation("is there a fish?", identity="scene-7/presence-0"), {"max_length": 4}),
        (make_conversation("is there a fish?", "", identity="scene-7/presence-0"), {}),
    ],
    ids=["no answer", "no answer, cut", "empty answer"],
)
def test_nothing_to_learn_from_is_an_error_that_names_the_conversation(
    conversation: Conversation, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="conversation scene-7/presence-0 has no token to learn from"):
        tokenise_conversation(make_chat_processor(), conversation, **options)


@pytest.mark.parametrize("form", FORMS)
def test_the_name_of_a_special_token_in_a_message_is_text(form: str) -> None:
    plain, processor = make_chat_processor(form), make_chat_processor(form)
    names = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    assert "<image>" in names and len(names) > 5
    special = {processor.tokenizer.convert_tokens_to_ids(name) for name in names}
    told = [tokenise_conversation(plain, make_conversation("is there a fish?", "no fish."))]
    for name in names:
        said = make_conversation(f"is there a {name}?", f"no {name}.", images=1)
        said = replace(said, groundings=(Grounding(0, 11, 11 + len(name), name, False),))
        chat = tokenise_conversation(processor, said)
        template = [token for token in told[0].input_ids if token in special]
        assert [token for token in chat.input_ids if token in special] == template  # those of the template alone
        assert chat.input_ids.count(processor.image_token_id) == 1
        phrase = processor.tokenizer.decode([chat.input_ids[token] for token in chat.phrase_tokens[0]])
        assert name in phrase  # letter for letter
    again = tokenise_conversation(processor, make_conversation("is there a fish?", "no fish."))
    assert again == told[0]  # a tokenizer that was told of stand-ins reads everything else as before


def test_what_is_no_text_is_refused() -> None:
    for content in ("half a \ud83d", "a mark \U0010fdf0", "a stand-in \U0010fe3c"):
        with pytest.raises(ValueError, match="halves of letters"):
            tokenise_conversation(make_chat_processor(), make_conversation(content, "yes"))


def test_a_template_that_drops_a_content_is_refused() -> None:
    processor = make_chat_processor()
    processor.chat_template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="the chat template gives the contents"):
        render_conversation(processor, make_conversation("is there a fish?", "yes", system="be brief").messages)


def test_a_template_that_begins_with_the_answer_has_no_position_before_it() -> None:
    processor = make_chat_processor()
    processor.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    conversation = Conversation("c/0", "test", (Message("assistant", "a red fish"), Message("assistant", "yes")))
    chat = tokenise_conversation(processor, conversation)
    assert set(chat.answer_positions) == {1}


def test_tokens_of_a_span_share_a_character_with_it() -> None:
    offsets = [(0, 0), (0, 3), (3, 8), (8, 8), (8, 9), (9, 12)]
    assert tokens_of_span(offsets, 4, 8) == [2]
    assert tokens_of_span(offsets, 2, 9) == [1, 2, 4]
    assert tokens_of_span(offsets, 12, 15) == []


def test_masks_travel_untouched() -> None:
    import numpy as np

    mask = encode_mask(np.eye(4, dtype=bool))
    conversation = ground(make_conversation("is there a fish?", "yes"), 0, "fish", (mask,))
    assert conversation.groundings[0].masks == (mask,)
