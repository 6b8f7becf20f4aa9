"""A tiny Llama as a GGUF file, written by the package `gguf` as llama.cpp's converter writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import make_text_config

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ' ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)


def make_llama(**overrides: Any) -> Any:
    """A random Llama whose vocabulary is that of the files written here."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = make_text_config(vocab_size=len(_vocabulary()[0]), **overrides)
    return AutoModelForCausalLM.from_config(config).eval()


def write_gguf(path: Path, model: Any, quantise: bool = False, eos: bool = True, without: str | None = None) -> Path:
    """Write a Llama and a byte-level tokenizer to a file.

    `quantise`: matrices become Q8_0. `eos`: whether the tokenizer has an end of text. `without`: leave out a tensor.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, eos)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == without:
            continue
        weights = _permuted(name, tensor, config).numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if quantise and weights.ndim == 2 else gguf.GGMLQuantizationType.F32
        key = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(key, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _permuted(name: str, weights: torch.Tensor, config: Any) -> torch.Tensor:
    """Queries and keys in llama.cpp's order, whose rotary embedding turns neighbours and not halves."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weights
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    return weights.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weights.shape)


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens of a byte-level tokenizer, and its only merge."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return ["<s>", "</s>", *bytes_to_unicode().values(), "is"], ["i s"]


def _add_tokenizer(writer: Any, eos: bool) -> None:
    tokens, merges = _vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])  # control, and normal
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    if eos:
        writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT_TEMPLATE)
