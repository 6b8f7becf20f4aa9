"""`Vlm`: one model and its processor, asked in the ways that every vision-language model can be asked."""

# Shapes: R rows of text, T tokens of a row, X positions of the decoder (T and those in front), K asked positions,
# H heads, G key heads, N keys, D head width, W model width, V vocabulary, A tokens of an answer.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from agevlm.data.chat import RenderedChat, render_conversation
from agevlm.data.literals import as_text
from agevlm.data.schema import Message
from agevlm.vlms.attention import AttentionUnreadableError, RowReader, reading
from agevlm.vlms.families import family_of, known_types
from agevlm.vlms.inputs import Inputs, Kept, encode, image_token_id, naming_pictures

YES = ("yes", "Yes", " yes", " Yes", "YES")
NO = ("no", "No", " no", " No", "NO")
# What else a checkpoint's generation settings may change, back at what changes nothing.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "stop_strings": None,
    "prompt_lookup_num_tokens": None,
    "use_cache": True,
}
_TAIL_LEN = 32  # characters of a prompt that say how an answer behind it is tokenised


@dataclass(frozen=True)
class Reading:
    """What one pass gave; layers are numbered in the order that hidden states pass them, from 0.

    `logits` (R, L, V) are those of the last L tokens. `rows[layer]` (R, H, K, N) are the attention weights of the
    asked positions over the keys of a layer that looks, zeros for fillers and for text that sees no picture.
    `states[i]` (R, X, W) is what goes into layer i, and after the last layer what comes out of it, before the final
    norm. `queries[layer]` (R, H, X, D) and `keys[layer]` (R, G, N, D) are without the rotary embedding.
    `image_states` are what a model with cross-attention makes its keys of, (…, W); None for others, and for kept
    pictures.
    """

    logits: Tensor
    rows: Mapping[int, Tensor] = field(default_factory=dict)
    states: Mapping[int, Tensor] = field(default_factory=dict)
    queries: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    image_states: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """An answer in words and in tokens, the end token left out."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class YesNo:
    """Probabilities that an answer begins with yes and with no, in any spelling."""

    yes: float
    no: float

    @property
    def p_yes(self) -> float:
        """P(yes) / (P(yes) + P(no))."""
        return self.yes / max(self.yes + self.no, 1e-30)


class Vlm:
    """A vision-language model of transformers, in evaluation mode, and its processor.

    Any model that takes `input_ids` and whatever its processor gives. `family` are the facts about it, None where it
    is not in the table: then image tokens have no boxes, and the rest works.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        if not hasattr(processor, "tokenizer") or getattr(processor, "image_processor", None) is None:
            raise ValueError(
                f"{type(processor).__name__} takes no pictures: a vision-language model needs a processor with a "
                "tokenizer and an image processor"
            )
        self.model, self.processor = model.eval(), processor
        self.family = family_of(model)
        self.image_token_id = image_token_id(model, processor)
        self._first_ids: dict[str, tuple[list[int], list[int]]] = {}

    @property
    def note(self) -> str | None:
        """What does not work for this model, in one sentence; None where all does."""
        if self.family is not None:
            return None
        return (
            f"models of the type {self.model.config.model_type!r} are not known "
            f"(known are {', '.join(known_types())}): answers, probabilities, hidden states and attention rows work; "
            "which pixels an image token stands for does not, so maps are made by occlusion"
        )

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The layers in the order that hidden states pass them, those of cross-attention among them."""
        if self.family is not None:
            return self.family.layers(self.model)
        layers = getattr(self.model.get_decoder(), "layers", None)
        if not isinstance(layers, nn.ModuleList):
            raise AttentionUnreadableError(
                f"{type(self.model).__name__} has no list of decoder layers that is found here"
            )
        return list(layers)

    @property
    def looking(self) -> Sequence[int]:
        """The numbers of the layers that may look at pictures; some of them may have no attention."""
        looking = self.family.looking if self.family is not None else None
        return range(len(self.layers)) if looking is None else list(looking(self.model))

    def prompt(self, question: str, num_pictures: int = 1) -> str:
        """A question about pictures as the model's chat template writes it, up to where the answer begins."""
        return self.chat([Message("user", question, num_pictures)]).text

    def chat(self, messages: Sequence[Message]) -> RenderedChat:
        """A conversation up to where the next answer begins, and where in it each message's content stands.

        A family without a chat template takes one question in a form of its own. ValueError where there is neither.
        """
        if getattr(self.processor, "chat_template", None) is not None:
            return render_conversation(self.processor, messages, add_generation_prompt=True, in_parts=True)
        plain = self.family.plain_prompt if self.family is not None else None
        if plain is None or len(messages) != 1:
            raise ValueError(
                f"the processor of {self.model.config.model_type!r} has no chat template: put one into the model's "
                "directory as chat_template.jinja; in Python, set processor.chat_template, or write the whole prompt "
                f"yourself for Vlm.encode, with {self.processor.image_token!r} for each picture"
            )
        images = self.processor.image_token * messages[0].num_images
        start = plain.format(images=images, question="\0").index("\0")
        text = plain.format(images=images, question=as_text(self.processor, messages[0].content))
        return RenderedChat(text, [start], [start + len(messages[0].content)])

    @property
    def encodes_once(self) -> bool:
        """Whether `keep` encodes a picture once for all questions about it."""
        return self.family is not None and self.family.remember is not None

    @torch.inference_mode()
    def keep(self, pictures: Sequence[Any]) -> list[Kept]:
        """Pictures for many rows of text, to be passed to `encode` in their place.

        A model that can encode a picture once for many questions, as ours can, does it here; the others will encode it
        with each row.
        """
        if not pictures or not self.encodes_once:
            return [Kept(picture) for picture in pictures]
        assert self.family is not None
        assert self.family.remember is not None
        with self._image_states() as image:
            memory = self.family.remember(self.model, self.processor, list(pictures))
        states = image.get("image", [None] * len(pictures))
        return [Kept(picture, memory, number, states[number]) for number, picture in enumerate(pictures)]

    def encode(self, texts: Sequence[str], pictures: Sequence[Sequence[Any]]) -> Inputs:
        """Rows of text and their pictures (upright RGB, or kept) as tensors, with each picture's image tokens found."""
        return encode(self.model, self.processor, self.family, texts, pictures)

    def answers(self, inputs: Inputs, max_new_tokens: int = 64) -> list[Answer]:
        """The greedy answer of each row. An answer never says the image token."""
        return self.ask(inputs, max_new_tokens=max_new_tokens)[0]

    @torch.inference_mode()
    def ask(
        self,
        inputs: Inputs,
        *,
        positions: Sequence[Sequence[int]] | None = None,
        layers: Sequence[int] | None = None,
        max_new_tokens: int = 64,
        change: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[list[Answer], Reading]:
        """The greedy answer of each row, and what its first pass gave: rows as in `read`, logits of the first token.

        Greedy: always the likeliest token. Penalties and the like of the checkpoint's generation settings are off.
        `change` gets the tokens so far and the logits (R, V) of the next, and gives those to choose from.
        """
        tokenizer = self.processor.tokenizer
        num_front = 0 if inputs.front_is_cached else inputs.num_front
        chosen = self._chosen(layers, positions is not None)
        with naming_pictures(inputs.sizes), self._reading(inputs, chosen, positions, num_front) as reader:
            written = self.model.generate(
                **inputs.tensors,
                max_new_tokens=max_new_tokens,
                **_GREEDY,
                suppress_tokens=self._suppressed or None,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
                disable_compile=True,
                output_logits=change is None,
                output_scores=change is not None,
                logits_processor=None if change is None else LogitsProcessorList([change]),
                return_dict_in_generate=True,
            )
        self._check_read(reader, positions)
        answers = []
        for ids in written.sequences[:, inputs.text_len :].tolist():
            end = next((place for place, token in enumerate(ids) if token in self.end_ids), len(ids))
            text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answers.append(Answer(str(text).strip(), tuple(ids[:end])))
        first = (written.logits if change is None else written.scores)[0]
        return answers, Reading(first[:, None], reader.weights if positions is not None else {})

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        return frozenset(end for end in (*ends, self.processor.tokenizer.eos_token_id) if end is not None)

    @property
    def _suppressed(self) -> list[int]:
        head = self.model.get_output_embeddings()
        known = head is None or self.image_token_id < head.weight.shape[0]
        return [self.image_token_id] if known else []

    def yes_no(self, inputs: Inputs, logits_RV: Tensor | None = None) -> list[YesNo]:
        """P(yes) and P(no) of each row at the first token of its answer; `logits_RV` of a pass already made."""
        if logits_RV is None:
            logits_RV = self.read(inputs).logits[:, -1]
        found = []
        for shares_V, text in zip(logits_RV.float().softmax(-1), inputs.texts, strict=True):
            yes, no = self._yes_no_ids(text[-_TAIL_LEN:])
            found.append(YesNo(float(shares_V[yes].sum()), float(shares_V[no].sum())))
        return found

    def _yes_no_ids(self, tail: str) -> tuple[list[int], list[int]]:
        """The tokens that yes and no may begin with behind a text that ends with `tail`."""
        if tail not in self._first_ids:
            yes, no = ({self.answer_ids(tail, word)[0] for word in words} for words in (YES, NO))
            self._first_ids[tail] = sorted(yes - no), sorted(no - yes)
        return self._first_ids[tail]

    def answer_ids(self, text: str, answer: str) -> list[int]:
        """The tokens of `answer` behind `text`, tokenised together with it; by itself where the two melt together."""
        return self.answer_tokens(text, answer)[0]

    def answer_tokens(self, text: str, answer: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `answer_ids`, and the characters of `answer` that each token stands for."""
        tokenizer = self.processor.tokenizer
        answer = as_text(self.processor, answer)
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        before, both = (tokenizer(part, **options) for part in (text, text + answer))
        start = len(before["input_ids"])
        if both["input_ids"][:start] == before["input_ids"] and len(both["input_ids"]) > start:
            offsets = [(first - len(text), last - len(text)) for first, last in both["offset_mapping"][start:]]
            return list(both["input_ids"][start:]), offsets
        alone = tokenizer(answer, **options)
        if not alone["input_ids"]:
            raise ValueError(f"the answer {answer!r} has no token")
        return list(alone["input_ids"]), list(alone["offset_mapping"])

    def log_probs(self, inputs: Inputs, answers: Sequence[str | Sequence[int]]) -> list[Tensor]:
        """For each row log P of each token of its answer, given all before it: one tensor (A,) a row, float32."""
        ids = [
            self.answer_ids(text, answer) if isinstance(answer, str) else list(answer)
            for text, answer in zip(inputs.texts, answers, strict=True)
        ]
        longest = max(map(len, ids))
        logits = self.read(inputs.answered(ids, self.family), num_logits=longest + 1).logits[:, :-1]
        log_probs = logits.float().log_softmax(-1)
        return [
            row[torch.arange(len(answer)), torch.tensor(answer, device=row.device)].cpu()
            for row, answer in zip(log_probs, ids, strict=True)
        ]

    @torch.inference_mode()
    def read(
        self,
        inputs: Inputs,
        *,
        positions: Sequence[Sequence[int]] | None = None,
        states: Sequence[int] = (),
        projections: bool = False,
        layers: Sequence[int] | None = None,
        num_logits: int = 1,
    ) -> Reading:
        """One pass over `inputs`, keeping only what is asked for.

        `positions[r]` are tokens of row r whose attention rows are wanted, shorter lists filled up with -1; `states`
        numbers hidden states; `projections` asks for queries and keys. Rows, queries and keys are those of `layers`, by
        default of all that look. Memory for the rows grows with the number of positions, and with nothing squared.
        """
        looking = self._chosen(layers, positions is not None or projections)
        with ExitStack() as stack:
            reader = stack.enter_context(
                self._reading(inputs, looking, positions, inputs.num_front, keep_states=projections)
            )
            kept = stack.enter_context(_states_of(self.layers, states)) if states else {}
            split = stack.enter_context(self._projecting(looking)) if projections and not self._cross else None
            image = stack.enter_context(self._image_states())
            arguments = dict(inputs.tensors)
            if not any(hasattr(part, "get_rope_index") for part in (self.model, getattr(self.model, "model", None))):
                arguments["position_ids"] = inputs.position_ids()
            stack.enter_context(naming_pictures(inputs.sizes))
            output = self.model(**arguments, use_cache=False, logits_to_keep=num_logits)
        self._check_read(reader, positions)
        queries, keys = split if split is not None else (reader.queries, reader.keys)
        return Reading(
            output.logits[:, -num_logits:],  # some models give those of all tokens
            reader.weights if positions is not None else {},
            kept,
            queries,
            keys,
            image.get("image"),
        )

    def _chosen(self, layers: Sequence[int] | None, wanted: bool) -> Sequence[int]:
        return (self.looking if layers is None else layers) if wanted else ()

    def _check_read(self, reader: RowReader, positions: Sequence[Sequence[int]] | None) -> None:
        if positions is not None and not reader.weights:
            raise AttentionUnreadableError(
                f"no attention of {type(self.model).__name__} came by: its layers do not use transformers' "
                "AttentionInterface; ask for occlusion maps"
            )

    @property
    def _cross(self) -> bool:
        return self.family is not None and self.family.cross

    @contextmanager
    def _reading(
        self,
        inputs: Inputs,
        looking: Sequence[int],
        positions: Sequence[Sequence[int]] | None,
        num_front: int,
        keep_states: bool = False,
    ) -> Iterator[RowReader]:
        """Watch the layers that look, if rows of theirs or, in cross-attention, queries and keys are wanted.

        `num_front` queries stand in front of those of the text.
        """
        if positions is None and not (keep_states and self._cross):
            yield RowReader({}, torch.empty(0, 0))
            return
        rows = positions if positions is not None else [[]] * len(inputs.texts)
        longest = max(map(len, rows))
        asked = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows], device=self.model.device).long()
        if self._cross:
            starts = torch.tensor(inputs.sees_from, device=asked.device)[:, None]
            asked = asked.masked_fill(asked < starts, -1)
        asked = torch.where(asked >= 0, asked + num_front, asked)
        watching = RowReader(self.modules_of(looking), asked, keep_states=keep_states and self._cross)
        with reading(watching, self.attention_holder) as reader:
            yield reader

    def modules_of(self, layers: Sequence[int]) -> dict[nn.Module, int]:
        """The number of the layer that each module in some layers belongs to."""
        return {module: number for number in layers for module in self.layers[number].modules()}

    @property
    def attention_holder(self) -> Any:
        """Whose configuration names the attention function of the layers that look."""
        holder = self.family.holder(self.model) if self.family is not None else self.model.get_decoder()
        if not hasattr(holder, "set_attn_implementation"):
            raise AttentionUnreadableError(f"{type(holder).__name__} does not let its attention function be chosen")
        return holder

    @contextmanager
    def _projecting(self, looking: Sequence[int]) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
        """Queries and keys of self-attention, before the rotary embedding, normed where the attention norms heads."""
        queries: dict[int, Tensor] = {}
        keys: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for number in looking:
                attention: Any = getattr(self.layers[number], "self_attn", None)
                if attention is None:
                    continue
                for name, kept in (("q", queries), ("k", keys)):
                    projection = getattr(attention, f"{name}_proj", None)
                    if projection is None:
                        raise ValueError(
                            f"{type(attention).__name__} has no {name}_proj, so its queries and keys cannot be read"
                        )
                    hook = _keep_heads(attention, name, number, kept)
                    stack.callback(projection.register_forward_hook(hook).remove)
            yield queries, keys

    @contextmanager
    def _image_states(self) -> Iterator[dict[str, Tensor]]:
        """What a model with cross-attention makes its keys of."""
        kept: dict[str, Tensor] = {}
        if self.family is None or self.family.image_states is None:
            yield kept
            return
        module = self.model.get_submodule(self.family.image_states)
        handle = module.register_forward_hook(lambda _module, _args, output: kept.update(image=output))
        try:
            yield kept
        finally:
            handle.remove()


def _keep_heads(attention: Any, name: str, number: int, kept: dict[int, Tensor]) -> Any:
    """A hook that keeps a projection (R, X, …) as (R, heads, X, D), normed."""
    norm = getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_layernorm", None)

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        heads_RXHD = output.unflatten(-1, (-1, attention.head_dim))
        kept[number] = (norm(heads_RXHD) if norm is not None else heads_RXHD).transpose(1, 2)

    return hook


@contextmanager
def _states_of(layers: Sequence[nn.Module], wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Hidden states by number in the pass under this context: number i goes into layer i, the last comes out."""
    kept: dict[int, Tensor] = {}
    wrong = [number for number in wanted if not 0 <= number <= len(layers)]
    if wrong:
        raise ValueError(f"there are no hidden states {wrong}: the model has 0 to {len(layers)}")

    def first(_module: nn.Module, args: Any, kwargs: Any) -> None:
        kept[0] = args[0] if args else kwargs["hidden_states"]

    def after(number: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            kept[number] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layers[number - 1].register_forward_hook(after(number)) for number in wanted if number]
    if 0 in wanted:
        handles.append(layers[0].register_forward_pre_hook(first, with_kwargs=True))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
