"""What goes over the wire: requests as pydantic models, and the shapes of the answers. OpenAI's names throughout.

What is not OpenAI's is marked as an extension: `attention`, and the bodies of `/v1/looks` and `/v1/answers`. A setting
that has no effect here is refused unless it asks for nothing, so that no answer is other than was asked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Finish = Literal["stop", "length"]
MAX_STOPS, MAX_TOP_LOGPROBS = 4, 20
MAX_MESSAGES, MAX_PARTS, MAX_ANSWERS, MAX_METADATA = 1000, 100, 1000, 16  # `Limits` may allow fewer

# Of each list the first thing that is wrong is told, not all: a list may be long, and an error takes its time.
Numbers = Annotated[list[Annotated[int, Field(ge=0, lt=1000)]], Field(min_length=1, max_length=256, fail_fast=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown(cls, body: Any) -> Any:
        """Of many fields that nobody knows the first is left, to be refused."""
        if not isinstance(body, dict):
            return body
        unknown = (name for name in body if name not in cls.model_fields and not cls._says_nothing(body[name]))
        first = next(unknown, None)
        return {name: value for name, value in body.items() if name in cls.model_fields or name == first}

    @classmethod
    def _says_nothing(cls, value: Any) -> bool:
        return False


class _Part(_Strict):
    """A part of a request, which may have come out of an earlier reply: unknown fields that are empty are left out."""

    @classmethod
    def _says_nothing(cls, value: Any) -> bool:
        return value is None or value == [] or value == {}


class ImageUrl(_Part):
    """A picture: a data URL (`data:image/png;base64,…`), or a URL of a host that the server was allowed to ask."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"  # pictures are seen at the model's own size


class TextPart(_Part):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImagePart(_Part):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]
Stops = Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)]
Modalities = Annotated[list[Literal["text"]], Field(min_length=1, max_length=8, fail_fast=True)]


class ChatMessage(_Part):
    """One turn. Pictures stand in front of the text of their message; pieces of text are joined by line breaks."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts
    name: str | None = None  # changes no answer here


class Attention(_Strict):
    """Which layers (numbered among all layers) and which heads a map is the mean of; by default all that look."""

    layers: Numbers | None = None
    heads: Numbers | None = None


class StreamOptions(_Part):
    """Whether a last chunk of a stream tells the usage."""

    include_usage: bool = False
    include_obfuscation: bool | None = None  # there is none to leave out


class TextFormat(_Part):
    """The only form of answers: text."""

    type: Literal["text"]


class Asking(_Strict):
    """What all requests about a conversation have."""

    model: str = Field(max_length=500)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)

    @model_validator(mode="before")
    @classmethod
    def _check_characters(cls, body: Any) -> Any:
        """JSON can escape half a surrogate pair, which is no character: no tokenizer takes it, no reply can say it."""
        left = [body]
        while left:
            value = left.pop()
            if isinstance(value, dict):
                left += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                left += value
            elif isinstance(value, str) and not _is_sayable(value):
                raise ValueError("a text has half a surrogate pair, which is no character")
        return body


def _is_sayable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class ChatRequest(Asking):
    """`/v1/chat/completions`. Without a temperature answers are greedy, as they are measured."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | Stops | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    attention: bool | Attention | None = Field(
        None,
        description="Extension: `attention` in each choice, a list of `WordReply` with the maps of each object word; "
        "and `notice`, a sentence, where the question is of a kind that the model was never asked.",
    )

    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0)
    tools: list[Any] | None = Field(None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    modalities: Modalities | None = None

    # What changes no answer here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = Field(None, max_length=MAX_METADATA)
    store: bool | None = None
    service_tier: str | None = None

    @property
    def num_choices(self) -> int:
        """How many answers are asked for."""
        return 1 if self.n is None else self.n

    @property
    def longest(self) -> tuple[str, int | None]:
        """The most tokens of an answer, and the name of the field that says so."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens


class LookRequest(Asking):
    """`/v1/looks`: where the model looks at each object word of a question and its answer (extension).

    The `answer` is the model's own unless it is given. `format` is a PNG of one word over the picture, or the maps.
    """

    answer: str | None = None
    word: str | None = Field(
        None, max_length=500, description="Which word the PNG shows; the first with a map by default."
    )
    layers: Numbers | None = None
    heads: Numbers | None = None
    max_tokens: int | None = Field(None, ge=1)
    format: Literal["png", "json"] = "png"


class WordReply(BaseModel):
    """An object word of the last message (`question`) or the answer, and where the model looked at it (extension)."""

    word: str
    where: Literal["question", "answer"]
    start: int = Field(description="The first of its characters in the question or the answer.")
    end: int
    learned: bool | None = Field(
        description="Whether training pictures showed what the word names; null where the model does not tell. What a "
        "model says of a word that it did not learn means nothing: its `made_up` is null and its `maps` are empty."
    )
    made_up: float | None = Field(description="The share of attention that found no place; null without a null token.")
    maps: list[list[list[float]]] = Field(description="One map for each picture of the conversation, row by row.")


class TokenReply(BaseModel):
    """A token, and log P of it."""

    token: str
    logprob: float
    bytes: list[int]


class SaidReply(TokenReply):
    """A token of an answer, and the likeliest in its place."""

    top_logprobs: list[TokenReply]


class LogProbsReply(BaseModel):
    """Log-probabilities of an answer, token by token."""

    content: list[SaidReply]
    refusal: None


class MessageReply(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChoiceReply(BaseModel):
    """One answer; `attention` and `notice` are extensions, there if `attention` was asked for."""

    index: int
    message: MessageReply
    finish_reason: Finish
    logprobs: LogProbsReply | None
    attention: list[WordReply] | None = None
    notice: str | None = None


class CachedReply(BaseModel):
    """Tokens of the prompt that had been read before."""

    cached_tokens: int


class UsageReply(BaseModel):
    """Tokens of the prompt, and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedReply


class ChatReply(BaseModel):
    """The reply of `/v1/chat/completions`, unless it is streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceReply]
    usage: UsageReply


class LookReply(BaseModel):
    """The reply of `/v1/looks` as JSON (extension)."""

    object: Literal["looks"]
    model: str
    answer: str
    words: list[WordReply]
    notice: str | None = Field(
        description="A sentence on a question of a kind that the model was never asked, or null."
    )


class AnswersRequest(Asking):
    """`/v1/answers`: how probable each of the given answers is (extension)."""

    answers: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=MAX_ANSWERS, fail_fast=True)


class AnswerReply(BaseModel):
    """How probable one given answer is: log P of its text and its end, and its share of all that were given."""

    answer: str
    probability: float
    share: float
    logprob: float
    num_tokens: int


class AnswersReply(BaseModel):
    """The reply of `/v1/answers` (extension)."""

    object: Literal["answers"]
    model: str
    answers: list[AnswerReply]


class ErrorBody(BaseModel):
    """What is wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every answer with a status from 400 on."""

    error: ErrorBody
