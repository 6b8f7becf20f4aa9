"""What a model says of the labels that it is trained to say: logits at these positions alone, a block at a time.

A causal language model of transformers is a decoder and a head. The head is not the output embeddings alone: some cap
or scale their logits, some have adapters. So its code is the model's own: `Head` calls the whole model and lets its
decoder give hidden states that are known already.

Letters: R rows of text, T text tokens, S supervised tokens of all rows, W model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the label of a token that is not supervised
_ONE_AT_A_TIME = RLock()  # threads that share a model
MAX_LOGITS = 2**25  # held at a time: 128 MB in float32, and as much again for their gradient


@dataclass(frozen=True)
class Head:
    """Hidden states to logits, by the code of a causal language model behind its decoder.

    `outputs` are those of the decoder in this pass; what the head reads of them beside hidden states stays.
    """

    language_model: nn.Module
    outputs: Any

    @property
    def vocabulary_size(self) -> int:
        """Logits of a token."""
        return int(self.language_model.config.get_text_config().vocab_size)

    @torch.compiler.disable
    def __call__(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Logits (…, V) of the decoder's last hidden states (…, W), of one row or many. `kwargs`: `logits_to_keep`.

        ValueError where the language model makes its logits of anything else.
        """
        given = type(self.outputs)(**{**self.outputs, "last_hidden_state": hidden_states})
        with _giving(self.language_model.get_decoder(), given) as calls:
            logits: Tensor = self.language_model(inputs_embeds=hidden_states, use_cache=False, **kwargs).logits
        if len(calls) != 1:
            name = type(self.language_model).__name__
            raise ValueError(
                f"{name} does not make its logits of the last hidden states of its decoder: call the model without "
                "labels, and compute a loss of its logits"
            )
        return logits


@contextmanager
def _giving(decoder: nn.Module, outputs: Any) -> Iterator[list[None]]:
    """Let a decoder give `outputs` whatever this thread calls it with; the list counts these calls."""
    calls: list[None] = []
    thread = get_ident()

    def forward(*args: Any, **kwargs: Any) -> Any:
        if get_ident() != thread:
            return run(*args, **kwargs)
        calls.append(None)
        return outputs

    with _ONE_AT_A_TIME:
        run, own = decoder.forward, vars(decoder).get("forward")  # its own, where something has been wrapped around it
        decoder.forward = forward
        try:
            yield calls
        finally:
            del decoder.forward
            if own is not None:
                decoder.forward = own


def label_log_probs(head: Head, hidden_RTW: Tensor, labels_RT: Tensor) -> Tensor:
    """Log-probability (R, T) of each label given the tokens before it, in float32; 0 where the label is -100.

    `hidden_RTW` are the decoder's last hidden states. The first token of a row has none before it and is never
    supervised. Logits are computed for as many supervised tokens at a time as `MAX_LOGITS` allows; where that is not
    all of them, they are computed again in the backward pass.
    """
    labels_RT = labels_RT.to(hidden_RTW.device)
    supervised_RT = labels_RT != IGNORED
    supervised_RT[:, 0] = False
    log_probs_S = token_log_probs(head, hidden_RTW[:, :-1][supervised_RT[:, 1:]], labels_RT[supervised_RT])
    log_probs_RT = torch.zeros(labels_RT.shape, device=hidden_RTW.device)
    return log_probs_RT.masked_scatter(supervised_RT, log_probs_S)


def token_log_probs(head: Head, hidden_SW: Tensor, labels_S: Tensor) -> Tensor:
    """Log-probability (S) of labels, each given the hidden state of the token before it; blocks as in the above."""

    def score(hidden_SW: Tensor, labels_S: Tensor) -> Tensor:
        return -F.cross_entropy(head(hidden_SW[None])[0].float(), labels_S, reduction="none")

    block_len = max(1, MAX_LOGITS // head.vocabulary_size)
    blocks = list(zip(hidden_SW.split(block_len), labels_S.split(block_len), strict=True))  # one, if S is 0
    if len(blocks) == 1 or not torch.is_grad_enabled():
        scores = [score(*block) for block in blocks]
    else:
        scores = [checkpoint(score, *block, use_reentrant=False) for block in blocks]
    return torch.cat(scores)


def mean_loss(log_probs_RT: Tensor, labels_RT: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """The negative log-likelihood of labels, over `num_items_in_batch` or else over how many there are; of none, 0."""
    num_labels = (labels_RT[:, 1:] != IGNORED).sum().clamp(min=1)
    num_items = num_items_in_batch if num_items_in_batch is not None else num_labels
    return -log_probs_RT.sum() / torch.as_tensor(num_items, device=log_probs_RT.device)
