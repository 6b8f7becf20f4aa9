"""Answers of models without image memories: transformers' own `generate`, one answer after another.

The engine's sampling, stop strings and streaming are hooked into it, so that requests mean the same for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from agevlm.serve.asks import Ask, Begun, Writing
from agevlm.serve.conversations import context_of
from agevlm.serve.looking import encoded
from agevlm.vlms import Vlm


class _Choose(LogitsProcessor):
    """Leaves `generate` no token but the one that an answer takes next."""

    def __init__(self, writing: Writing, suppressed: int | None) -> None:
        self.writing, self.suppressed, self.going = writing, suppressed, True

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self.suppressed is not None:
            scores[:, self.suppressed] = -float("inf")
        token = self.writing.choose(scores[0])
        self.going = self.writing.take(token)
        only = scores.new_full(scores.shape, -float("inf"))
        only[:, token] = 0
        return only


class _Until(StoppingCriteria):
    """Ends `generate` once an answer is complete or nobody waits for it."""

    def __init__(self, chosen: _Choose, dropped: Callable[[], bool]) -> None:
        self.chosen, self.dropped = chosen, dropped

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        over = not self.chosen.going or self.dropped()
        return torch.full((len(input_ids),), over, device=input_ids.device, dtype=torch.bool)


def write_whole(vlm: Vlm, ask: Ask, dropped: Callable[[], bool]) -> Iterator[Writing]:
    """Write the choices of an ask one after another, and give each when it is complete.

    ValueError where the conversation does not fit the model.
    """
    inputs = encoded(vlm, ask.conversation, ask.seen)
    context = context_of(vlm)
    if context is not None and inputs.text_len >= context:
        raise ValueError(
            f"the conversation has {inputs.text_len} tokens, and the context of this model takes {context}"
        )
    room = ask.max_tokens if context is None else context - inputs.text_len
    ask.max_tokens = min(ask.max_tokens, room)
    ask.tell(Begun(inputs.text_len))
    tokenizer = vlm.processor.tokenizer
    head = vlm.model.get_output_embeddings()
    suppressed = vlm.image_token_id if head is None or vlm.image_token_id < head.weight.shape[0] else None
    for choice in range(ask.num_choices):
        writing = Writing(ask, choice, tokenizer, vlm.end_ids)
        chosen = _Choose(writing, suppressed)
        vlm.model.generate(
            **inputs.tensors,
            max_new_tokens=ask.max_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            logits_processor=LogitsProcessorList([chosen]),
            stopping_criteria=StoppingCriteriaList([_Until(chosen, dropped)]),
            disable_compile=True,
        )
        if writing.finish is None:
            return  # nobody waits any more
        yield writing
