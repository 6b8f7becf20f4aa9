"""From samples to what is asked: questions with their reference answers, and the distinct prompts behind them.

POPE's three splits share their positive questions: what is the same picture and the same text is one `Prompt`, answered
once. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agevlm.data.language import family
from agevlm.data.schema import RLE, Conversation, Message, Sample
from agevlm.evaluation.scores import Question

if TYPE_CHECKING:
    from agevlm.vlms import Vlm

SHORT_ANSWER_TOKENS = 8
LONG_ANSWER_TOKENS = 48
_LONG = ("caption", "conversation")


@dataclass(frozen=True)
class Word:
    """An object word, `text[start:end]` of its prompt, and its masks in picture number `image` of the sample."""

    phrase: str
    start: int
    end: int
    masks: tuple[RLE, ...]
    image: int

    @property
    def present(self) -> bool:
        """Whether the thing is in the picture."""
        return bool(self.masks)


@dataclass(frozen=True)
class Prompt:
    """Chat text up to the answer, about the first `num_images` pictures of sample number `sample`, and its messages."""

    sample: int
    sample_id: str
    text: str
    num_images: int
    words: tuple[Word, ...]
    max_new_tokens: int
    messages: tuple[Message, ...] = ()

    @property
    def key(self) -> tuple[int, str]:
        """Prompts of one key get one answer."""
        return self.sample, self.text


@dataclass(frozen=True)
class Asked:
    """A question of the benchmark and the key of the prompt that asks it."""

    question: Question
    key: tuple[int, str]


def questions_of(vlm: Vlm, samples: Sequence[Sample]) -> tuple[list[Asked], list[Prompt]]:
    """Every conversation as a question for its last answer, earlier turns given, and the distinct prompts.

    A conversation that does not end with an answer to score is a ValueError that names it, and so is a benchmark
    without any question.
    """
    asked: list[Asked] = []
    prompts: dict[tuple[int, str], Prompt] = {}
    for number, sample in enumerate(samples):
        for conversation in sample.conversations:
            prompt = _prompt(vlm, number, sample, conversation)
            prompts.setdefault(prompt.key, prompt)
            question, answer = conversation.messages[-2:]
            record = Question(conversation.id, sample.id, conversation.kind, question.content, answer.content)
            asked.append(Asked(record, prompt.key))
    if not asked:
        raise ValueError(f"the benchmark asks nothing: {len(samples)} samples without questions")
    return asked, list(prompts.values())


def _prompt(vlm: Vlm, number: int, sample: Sample, conversation: Conversation) -> Prompt:
    messages = conversation.messages
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise ValueError(
            f"conversation {conversation.id} does not end with an assistant's message: a benchmark needs a question "
            "and its reference answer"
        )
    num_images = sum(message.num_images for message in messages[:-1])
    if num_images > len(sample.images):
        raise ValueError(f"conversation {conversation.id} shows {num_images} pictures of {len(sample.images)}")
    chat = vlm.chat(messages[:-1])
    words = tuple(
        Word(
            grounding.phrase,
            chat.content_starts[grounding.message] + grounding.start,
            chat.content_starts[grounding.message] + grounding.end,
            grounding.masks,
            grounding.image,
        )
        for grounding in conversation.groundings
        if grounding.message < len(messages) - 1 and grounding.present is not None and grounding.image < num_images
    )
    limit = LONG_ANSWER_TOKENS if family(conversation.kind) in _LONG else SHORT_ANSWER_TOKENS
    return Prompt(number, sample.id, chat.text, num_images, words, limit, messages[:-1])


class LazySamples(Sequence[Sample]):
    """`num` samples that `read` gives when asked: none is kept, so a dataset may be larger than memory."""

    def __init__(self, num: int, read: Callable[[int], Sample]) -> None:
        self.num, self.read = num, read

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self.num))]
        if not 0 <= index < self.num:
            raise IndexError(index)
        return self.read(index)
