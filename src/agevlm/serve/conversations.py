"""From the messages of a request to what a model reads: text with its turns, and the pictures in their order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agevlm.data.chat import RenderedChat
from agevlm.data.schema import Message, Role
from agevlm.serve.errors import ApiError, bad_request
from agevlm.serve.limits import Limits
from agevlm.serve.pictures import Encoded
from agevlm.serve.protocol import ChatMessage, ImagePart, TextPart
from agevlm.vlms import Vlm

_ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """A conversation as the model reads it, up to where its answer begins, and its pictures in their order."""

    chat: RenderedChat
    pictures: tuple[Encoded, ...]
    messages: tuple[Message, ...]


def context_of(vlm: Vlm) -> int | None:
    """The most tokens of a conversation and its answer; None where the model does not tell."""
    found: int | None = getattr(vlm.model.config.get_text_config(), "max_position_embeddings", None)
    return found


def too_long(what: str, context: int, param: str, advice: str = "shorten it") -> ApiError:
    """What does not fit the context."""
    return bad_request(
        f"{what}; the context of this model takes {context} in all: {advice}", param, "context_length_exceeded"
    )


async def gather(
    messages: Sequence[ChatMessage], limits: Limits, get: Callable[[str], Awaitable[Encoded]]
) -> tuple[tuple[Message, ...], tuple[Encoded, ...]]:
    """The messages in our own form, and their pictures, each got by `get` from its URL. ApiError for too many."""
    urls = [
        part.image_url.url
        for message in messages
        if not isinstance(message.content, str)
        for part in message.content
        if isinstance(part, ImagePart)
    ]
    if len(urls) > limits.max_images:
        raise bad_request(f"the conversation has {len(urls)} pictures, the limit is {limits.max_images}", "messages")
    pictures = [await get(url) for url in urls]
    return tuple(map(_message, messages)), tuple(pictures)


def _message(message: ChatMessage) -> Message:
    if isinstance(message.content, str):
        return Message(_ROLES[message.role], message.content)
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    num_images = len(message.content) - len(texts)
    if num_images and message.role != "user":
        raise bad_request(f"pictures are shown by the user, and this message is the {message.role}'s", "messages")
    return Message(_ROLES[message.role], "\n".join(texts), num_images)


def written(
    vlm: Vlm,
    messages: tuple[Message, ...],
    pictures: tuple[Encoded, ...],
    chat: Callable[[tuple[Message, ...]], RenderedChat] | None = None,
) -> Conversation:
    """The conversation in the words of the model's chat template. ApiError 400 where the template refuses it.

    `chat` is the model's own, or one that remembers what it wrote.
    """
    placeholder = getattr(vlm.processor, "image_token", None)
    if placeholder and any(placeholder in message.content for message in messages):
        raise bad_request(
            f"the text says {placeholder}, which stands for a picture: show pictures as parts", "messages"
        )
    if messages[-1].role == "assistant":
        raise bad_request("the last message is the assistant's: end with what is to be answered", "messages")
    if not messages[-1].content.strip():
        raise bad_request("the last message has no text: write what you want to know", "messages")
    try:
        return Conversation((chat or vlm.chat)(messages), pictures, messages)
    except ApiError:
        raise
    except Exception as error:  # templates raise what they like
        raise bad_request(
            f"the chat template of this model does not take these messages: {error}", "messages"
        ) from error
