"""How well a language model predicts text without pictures: the paper promises that training keeps this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agevlm.data.literals import hear_stand_ins

DEFAULT_BATCH_SIZE = 32


def text_perplexity(
    language_model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    add_special_tokens: bool = False,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> float:
    """exp of the mean negative log-likelihood of a token, over all texts together.

    `language_model` is a causal language model of transformers, or a VLM, which is one where no picture is shown. The
    texts are chats with their special tokens written out; for plain texts let the tokenizer put its own in front
    (`add_special_tokens`). The first token of a text is context and is not counted, nor is padding, so that the figure
    does not depend on `batch_size`. A text must fit into the model's positions. Texts of fewer than two tokens have
    nothing to predict; with none left, a ValueError.
    """
    import torch

    from agevlm.modeling.joined import JoinedModel

    if isinstance(language_model, JoinedModel):
        language_model = language_model.language_model
    hear_stand_ins(tokenizer)
    coded = [tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in texts]
    coded = [ids for ids in coded if len(ids) > 1]
    if not coded:
        raise ValueError(f"perplexity needs a text of at least two tokens, got {len(texts)} texts without one")
    coded.sort(key=len)
    total, num_tokens = 0.0, 0
    was_training = language_model.training
    language_model.eval()
    with torch.inference_mode():
        for start in range(0, len(coded), batch_size):
            batch = coded[start : start + batch_size]
            total += _negative_log_likelihood(language_model, batch)
            num_tokens += sum(len(ids) - 1 for ids in batch)
    language_model.train(was_training)
    return math.exp(total / num_tokens)


def _negative_log_likelihood(language_model: Any, batch: Sequence[Sequence[int]]) -> float:
    """Sum over the predicted tokens of a batch, padded on the right and computed in float32."""
    import torch

    from agevlm.modeling.supervision import IGNORED, Head, label_log_probs

    longest = max(map(len, batch))
    device = language_model.device
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=device)
    outputs = language_model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    labels = ids.masked_fill(mask == 0, IGNORED)
    return -float(label_log_probs(Head(language_model, outputs), outputs.last_hidden_state, labels).sum())


def directory_perplexity(
    directory: str | Path, texts: Sequence[str], *, device: Any = "cpu", batch_size: int = DEFAULT_BATCH_SIZE
) -> float:
    """Perplexity on chat texts of the causal language model and tokenizer in `directory`.

    It may also be a hub id or a GGUF file.
    """
    from agevlm.modeling.language import load_language_model, load_tokenizer

    model = load_language_model(directory).to(device)
    return text_perplexity(model, load_tokenizer(directory), texts, batch_size=batch_size)
