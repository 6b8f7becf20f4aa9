"""Ask a model many prompts about pictures it has already seen: greedy answers, P(yes), and where object words look.

One forward pass over a batch of prompts gives all three; short answers then take a token or two more. Images are
encoded once, by whoever made the memory. Nothing here scores.
"""

# Shapes: R prompts, T tokens, K object-word tokens of a prompt, H heads, N image tokens of all pictures of a row,
# M pictures of a row, h, w the grid of one picture.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agevlm.data.chat import tokens_of_span
from agevlm.evaluation.questions import Prompt

if TYPE_CHECKING:
    from torch import Tensor

_YES, _NO = ("yes", "Yes"), ("no", "No")


@dataclass(frozen=True)
class WordMap:
    """Attention of one word on its picture (h, w), and on the null token (None where the model has none)."""

    map_hw: NDArray[np.float32]
    null_mass: float | None


@dataclass(frozen=True)
class Reply:
    """An answer, P(yes) / (P(yes) + P(no)) at its first token, and a map for each word (None: it has no token)."""

    text: str
    p_yes: float
    maps: tuple[WordMap | None, ...]


class Asker:
    """Asks one model; knows its tokenizer, its end tokens and its words for yes and no."""

    def __init__(self, model: Any, processor: Any, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is the number of prompts asked at once, got {batch_size}")
        self.model = model
        self.tokenizer = processor.tokenizer
        self.batch_size = batch_size
        ends = model.generation_config.eos_token_id
        ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        self.end_ids = sorted({end for end in (*ends, self.tokenizer.eos_token_id) if end is not None})
        pad = self.tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else 0
        self._answer_ids: tuple[list[int], list[int]] | None = None

    def ask(self, prompts: Sequence[Prompt], memory: Any, images: Sequence[Sequence[int]]) -> list[Reply]:
        """Answer `prompts`, in their order; `images[i]` numbers the pictures of prompt i in `memory`.

        Prompts of like length go together; which ones share a batch changes nothing but rounding.
        """
        import torch

        coded = [self._tokenise(prompt) for prompt in prompts]
        replies: dict[int, Reply] = {}
        with torch.inference_mode():
            pictured = _Pictured(self.model, memory)
            for batch in self._batches(prompts, coded):
                answers = self._ask_batch(
                    [prompts[i] for i in batch], [coded[i] for i in batch], pictured, [images[i] for i in batch]
                )
                replies.update(zip(batch, answers, strict=True))
        return [replies[number] for number in range(len(prompts))]

    def _tokenise(self, prompt: Prompt) -> tuple[list[int], list[list[int]]]:
        coded = self.tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = coded["offset_mapping"]
        return coded["input_ids"], [tokens_of_span(offsets, word.start, word.end) for word in prompt.words]

    def _batches(self, prompts: Sequence[Prompt], coded: Sequence[tuple[list[int], Any]]) -> Iterator[list[int]]:
        """Numbers of prompts that go together: same number of pictures and answer length, similar prompt length."""
        shape = [(p.max_new_tokens, p.num_images, len(ids)) for p, (ids, _) in zip(prompts, coded, strict=True)]
        order = sorted(range(len(prompts)), key=shape.__getitem__)
        batch: list[int] = []
        for number in order:
            if batch and (len(batch) == self.batch_size or shape[number][:2] != shape[batch[0]][:2]):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _ask_batch(
        self,
        prompts: Sequence[Prompt],
        coded: Sequence[tuple[list[int], list[list[int]]]],
        pictured: _Pictured,
        images: Sequence[Sequence[int]],
    ) -> list[Reply]:
        import torch

        device = self.model.device
        longest = max(len(ids) for ids, _ in coded)
        pads = [longest - len(ids) for ids, _ in coded]
        ids_RT = torch.tensor([[self.pad_id] * n + ids for n, (ids, _) in zip(pads, coded, strict=True)], device=device)
        mask_RT = torch.tensor([[0] * n + [1] * (longest - n) for n in pads], device=device)
        words = [[[n + t for t in tokens] for tokens in spans] for n, (_, spans) in zip(pads, coded, strict=True)]
        inputs = pictured.inputs(images)
        rows = _rows_of(words)
        asked = {"attention_rows": torch.tensor(rows, device=device)} if inputs and rows[0] else {}
        first = self.model(
            input_ids=ids_RT,
            attention_mask=mask_RT,
            position_ids=_positions(mask_RT),
            use_cache=True,
            logits_to_keep=1,
            cache=pictured.past(images),
            **inputs,
            **asked,
        )
        logits_RV = first.logits[:, -1].float()
        p_yes = self._p_yes(logits_RV, prompts[0].text)
        texts = self._finish(logits_RV, first.cache, mask_RT, inputs, prompts[0].max_new_tokens)
        maps: Sequence[Sequence[WordMap | None]] = [[None] * len(spans) for spans in words]
        if asked:
            maps = _word_maps(first.row_weights, words, rows, prompts, pictured.memory.grid)
        return [Reply(*parts) for parts in zip(texts, p_yes, map(tuple, maps), strict=True)]

    def _finish(self, logits_RV: Tensor, past: Any, mask_RT: Tensor, inputs: dict[str, Any], limit: int) -> list[str]:
        """Greedy tokens from the first one on, until each row has said an end token or `limit` tokens."""
        import torch

        ends = torch.tensor(self.end_ids, device=mask_RT.device)
        tokens = self._likeliest(logits_RV)
        said, done = [tokens], torch.isin(tokens, ends)
        while len(said) < limit and not bool(done.all()):
            mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(tokens), 1)], dim=1)
            output = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask_RT,
                position_ids=_positions(mask_RT)[:, -1:],
                cache=past,
                use_cache=True,
                **inputs,
            )
            past, tokens = output.cache, self._likeliest(output.logits[:, -1])
            said.append(tokens)
            done |= torch.isin(tokens, ends)
        return [self._decode(row) for row in torch.stack(said, dim=1).tolist()]

    def _likeliest(self, logits_RV: Tensor) -> Tensor:
        """The likeliest token of each row that is no image placeholder."""
        placeholder = self.model.config.image_token_id
        if placeholder < logits_RV.shape[-1]:
            logits_RV[:, placeholder] = -float("inf")
        return logits_RV.argmax(-1)

    def _decode(self, tokens: list[int]) -> str:
        end = next((place for place, token in enumerate(tokens) if token in self.end_ids), len(tokens))
        return str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip()

    def _p_yes(self, logits_RV: Tensor, text: str) -> list[float]:
        if self._answer_ids is None:
            self._answer_ids = self._first_tokens(text, _YES), self._first_tokens(text, _NO)
        yes, no = (logits_RV[:, ids].logsumexp(-1) for ids in self._answer_ids)
        return list((yes - no).sigmoid().tolist())

    def _first_tokens(self, text: str, answers: Sequence[str]) -> list[int]:
        """The tokens that an answer begins with after a prompt, read from prompt and answer tokenised together."""
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        firsts = set()
        for answer in answers:
            both = self.tokenizer(text + answer, add_special_tokens=False)["input_ids"]
            same = next((i for i, (a, b) in enumerate(zip(prompt, both, strict=False)) if a != b), len(prompt))
            firsts.add(both[same])
        return sorted(firsts)


class _Pictured:
    """The pictures of a memory for many prompts; of concatenation also what the decoder keeps of each picture alone."""

    def __init__(self, model: Any, memory: Any) -> None:
        self.model, self.memory = model, memory

    @cached_property
    def _front(self) -> Any:
        return self.model.prefill_images(self.memory)

    def inputs(self, images: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The images of prompts about equally many. Each about one: keys and values are copied once a batch."""
        import torch

        num_images = len(images[0])
        if not num_images:
            return {}
        if num_images == 1:
            return {"image_memory": self.memory.select([row[0] for row in images]), "rows_per_image": 1}
        return {"image_memory": self.memory, "image_index": torch.tensor(images, device=self.memory.device)}

    def past(self, images: Sequence[Sequence[int]]) -> Any:
        """What comes before prompts about one picture each: a cache to be filled; else None."""
        if len(images[0]) != 1 or not hasattr(self.model, "prefill_images"):
            return None
        from agevlm.modeling.modeling_concat import select_cache

        return select_cache(self._front, [row[0] for row in images])


def _positions(mask_RT: Tensor) -> Tensor:
    """Position of each token in its row, not counting padding on the left."""
    return (mask_RT.cumsum(-1) - 1).clamp(min=0)


def _rows_of(words: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """The token positions to ask attention of, (R, K), each once; filled up with position 0, which nobody reads."""
    rows = [sorted({token for tokens in spans for token in tokens}) for spans in words]
    width = max(map(len, rows))
    return [row + [0] * (width - len(row)) for row in rows]


def _word_maps(
    row_weights: Sequence[Tensor],
    words: Sequence[Sequence[Sequence[int]]],
    rows: Sequence[Sequence[int]],
    prompts: Sequence[Prompt],
    grid: tuple[int, int],
) -> list[list[WordMap | None]]:
    """Attention averaged over layers, heads and the tokens of each word, on the grid of the word's picture."""
    h, w = grid
    num_cells = prompts[0].num_images * h * w
    weights = np.mean([layer_RHKN.float().mean(dim=1).cpu().numpy() for layer_RHKN in row_weights], axis=0)
    null_token = weights.shape[-1] > num_cells
    maps: list[list[WordMap | None]] = []
    for row, (spans, prompt) in enumerate(zip(words, prompts, strict=True)):
        place = {token: k for k, token in reversed(list(enumerate(rows[row])))}
        found: list[WordMap | None] = []
        for tokens, word in zip(spans, prompt.words, strict=True):
            if not tokens:
                found.append(None)
                continue
            mean_N = weights[row, [place[token] for token in tokens]].mean(axis=0)
            map_Mhw = mean_N[:num_cells].reshape(prompt.num_images, h, w)
            found.append(WordMap(map_Mhw[word.image], float(mean_N[-1]) if null_token else None))
        maps.append(found)
    return maps
