"""A model of lmms-eval that asks a `Vlm`: ours, and any image-text-to-text model of transformers.

It answers greedily, by the model's own chat template. lmms-eval asks its chat models for text only, never for
log-likelihoods of answers, and so does this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages

from agevlm.checkpoints import load_vlm
from agevlm.data.schema import Message
from agevlm.evaluation.official.benchmark import LMMS_EVAL_NEW_TOKENS
from agevlm.vlms import Vlm

DEFAULT_BATCH_SIZE = 16


class AgeVlmChat(lmms):
    """`pretrained` is `tiny`, a directory or a hub id; `dtype` and `device` as everywhere in this project.

    Under `accelerate launch` every process answers its share, as lmms-eval deals them out. Settings that would make
    answers random are a ValueError, as are pictures that move and sound.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        place = device or (str(self.accelerator.device) if self._world_size > 1 else "auto")
        self.vlm = Vlm(*load_vlm(pretrained, place, dtype))
        self.device = self.vlm.model.device
        self.batch_size = DEFAULT_BATCH_SIZE if batch_size == "auto" else int(batch_size)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The greedy answer of each request, in their order."""
        chats = [self._chat(*request.args) for request in requests]
        found: dict[int, str] = {}
        for numbers in _batches(chats, self.batch_size):
            batch = [chats[number] for number in numbers]
            kept = iter(self.vlm.keep([picture for _, pictures, _ in batch for picture in pictures]))
            shown = [[next(kept) for _ in pictures] for _, pictures, _ in batch]
            inputs = self.vlm.encode([text for text, _, _ in batch], shown)
            options = batch[0][2]
            answers = self.vlm.answers(inputs, options.get("max_new_tokens") or LMMS_EVAL_NEW_TOKENS)
            for number, answer in zip(numbers, answers, strict=True):
                found[number] = _until(answer.text, options.get("until"))
                self.cache_hook.add_partial("generate_until", (chats[number][0], options), found[number])
        return [found[number] for number in range(len(chats))]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """lmms-eval gives its chat models no such requests."""
        raise NotImplementedError("lmms-eval asks chat models for answers, not for log-likelihoods")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Tasks of several rounds are not answered."""
        raise NotImplementedError("tasks of several rounds are not supported: choose a task that asks once")

    def _chat(
        self, _context: str, messages_of: Any, options: Mapping[str, Any], document: int, task: str, split: str
    ) -> tuple[str, list[Any], Mapping[str, Any]]:
        """A request's prompt, its pictures and how to answer it."""
        if options.get("do_sample") and (options.get("temperature") or 0) > 0:
            raise ValueError(
                f"the task {task} wants answers drawn by chance, and here they are greedy: set temperature=0"
            )
        chat = ChatMessages(messages=messages_of(self.task_dict[task][split][document]))
        pictures, videos, sounds = chat.extract_media()
        if videos or sounds:
            raise ValueError(f"the task {task} shows videos or plays sounds, and these models take pictures only")
        plain = [_plain(message) for message in chat.messages]
        known = [message for message in plain if message is not None]
        if len(known) == len(plain):
            text = self.vlm.chat(known).text
        else:  # pictures between words: only the template can say where they go
            text = self.vlm.processor.apply_chat_template(
                chat.to_hf_messages(), tokenize=False, add_generation_prompt=True
            )
        return text, [picture.convert("RGB") for picture in pictures], options


def _plain(message: Any) -> Message | None:
    """A message of pictures and then one text; None for any other."""
    kinds = [part.type for part in message.content]
    num_pictures = kinds.count("image")
    if kinds != ["image"] * num_pictures + ["text"]:
        return None
    return Message(message.role, message.content[-1].text, num_pictures)


def _batches(chats: Sequence[tuple[str, list[Any], Mapping[str, Any]]], size: int) -> Iterator[list[int]]:
    """Numbers of chats that go together: as many pictures, the same options, texts of like length."""
    keys = [(len(pictures), repr(sorted(options.items()))) for _, pictures, options in chats]
    for key in dict.fromkeys(keys):
        numbers = sorted((n for n, other in enumerate(keys) if other == key), key=lambda n: len(chats[n][0]))
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _until(text: str, ends: str | Sequence[str] | None) -> str:
    """The text before the first of `ends`."""
    for end in [ends] if isinstance(ends, str) else ends or ():
        text = text.split(end)[0]
    return text.strip()
