"""Whether the parts of a checkpoint of ours belong together: pictures, chat template, tokenizer, network.

Each was saved with the others; one that was lost or exchanged makes answers that look like answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_AGAIN = "copy or train the checkpoint again"
_LEAST, _MOST, _NEAR_0 = 0.1, 256.0, 0.01  # of the numbers between black and white; those with a mean of 0 or 1


def check_pictures(source: str, image_processor: Any) -> None:
    """ValueError where an image processor makes no square that a model takes, or rubbish of black and white.

    Whatever mean and deviation it takes, black lies at 0 or below, white at 0 or above, and not all too near.
    """
    import numpy as np

    from agevlm.modeling.loading import reading
    from agevlm.modeling.vision import MAX_SIDE

    with reading(source, "image processor"):
        sides = [image_processor.size[name] for name in ("height", "width")]
    if not all(isinstance(side, int) and 8 <= side <= MAX_SIDE for side in sides):
        raise ValueError(
            f"the pictures of {source} have {sides!s:.80} pixels in processor_config.json, and 8 to {MAX_SIDE} were "
            f"expected: {_AGAIN}"
        )
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[:, 32:] = 255
    with reading(source, "image processor"), np.errstate(all="ignore"):
        pixels = np.asarray(image_processor([picture])["pixel_values"][0])
    if pixels.shape != (3, *sides):
        raise ValueError(
            f"the image processor in {source} makes {pixels.shape} of a picture, not {(3, *sides)}: {_AGAIN}"
        )
    black, white = pixels[:, 0, 0], pixels[:, 0, -1]
    right = (black <= _NEAR_0) & (white >= -_NEAR_0) & (white - black >= _LEAST) & (white - black <= _MOST)
    if not right.all():
        raise ValueError(
            f"the image processor in {source} makes {black.tolist()!s:.80} of black and {white.tolist()!s:.80} of "
            f"white: look at image_mean, image_std and rescale_factor in processor_config.json, or {_AGAIN}"
        )


def check_fit(source: str, model: Any, processor: Any) -> None:
    """ValueError where the processor of a checkpoint is not the one that its network was saved with."""
    _check_template(source, processor)
    if processor.image_token_id != model.config.image_token_id:
        raise ValueError(
            f"the tokenizer in {source} has the image token {processor.image_token_id}, the model "
            f"{model.config.image_token_id}: {_AGAIN}"
        )
    if processor.tokenizer.pad_token_id is None:
        raise ValueError(f"the tokenizer in {source} has no padding token: {_AGAIN}")
    for asks in (model.config, model.config.get_text_config(), model.generation_config):
        for key in ("output_attentions", "output_hidden_states"):
            if not isinstance(getattr(asks, key, None), bool | None):
                raise ValueError(f"{key} in a configuration in {source} is neither true nor false: {_AGAIN}")
    known = max(model.get_input_embeddings().weight.shape[0], model.config.image_token_id + 1)
    if len(processor.tokenizer) > known:
        raise ValueError(
            f"the tokenizer in {source} has {len(processor.tokenizer)} tokens, the model knows {known}: {_AGAIN}"
        )


def check_tokens(source: str, model: Any, processor: Any) -> None:
    """ValueError where the tokenizer of a language model gives tokens that have no row in its embedding.

    The image placeholder needs none. Neither do special tokens that are in no chat and no padding, for their names in
    people's text stay text: Gemma 3 of 1B has such a one, for pictures that it does not see.
    """
    from agevlm.data.chat import render_conversation
    from agevlm.data.schema import Message
    from agevlm.modeling.loading import reading

    tokenizer, num_rows = processor.tokenizer, model.get_input_embeddings().weight.shape[0]
    ids = {token: number for token, number in tokenizer.get_vocab().items() if number != processor.image_token_id}
    beyond = {token: number for token, number in ids.items() if number >= num_rows}
    if not beyond:
        return
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    with reading(source, "chat template"):
        asked = render_conversation(processor, [Message("user", "x", 1)], add_generation_prompt=True)
        said = render_conversation(processor, [Message("user", "x", 1), Message("assistant", "x")])
    named = (getattr(tokenizer, f"{name}_token") or "" for name in ("bos", "eos", "pad", "unk"))
    used = (asked.text, said.text, *named)
    met = [token for token in beyond if beyond[token] not in special or any(token in text for text in used)]
    if met:
        first = min(met, key=lambda token: beyond[token])
        raise ValueError(
            f"the tokenizer of {source} has {max(ids.values()) + 1} tokens, its embedding {num_rows} rows, none for "
            f"{first!r:.60}: name a language model whose tokenizer is its own, or give its embedding more rows "
            "(resize_token_embeddings of transformers) and save it"
        )


def _check_template(source: str, processor: Any) -> None:
    """ValueError where a processor has no chat template of its own, or one that drops pictures or what is said."""
    from agevlm.data.chat import render_conversation
    from agevlm.data.schema import Message
    from agevlm.modeling.loading import reading
    from agevlm.modeling.processing_agevlm import default_chat_template

    path = Path(source) / "chat_template.jinja"
    has_own = path.is_file() and path.stat().st_size
    if Path(source).is_dir() and not has_own and processor.chat_template == default_chat_template(processor.tokenizer):
        raise ValueError(f"{source} has no chat template ({path.name}): {_AGAIN}")
    with reading(source, "chat template"):
        asked = render_conversation(processor, [Message("user", "x", 1)], add_generation_prompt=True, in_parts=True)
        render_conversation(processor, [Message("user", "x", 1), Message("assistant", "x")])
        if asked.text.count(processor.image_token) != 1:
            raise ValueError(f"it shows one picture as {asked.text!r:.200}")
