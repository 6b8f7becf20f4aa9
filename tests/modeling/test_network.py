"""The network's invariants, on tiny random decoders and backbones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import DECODERS, VISION, VOCABULARY_SIZE, make_model, make_pixels, make_text_config, make_vision_config
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoBackbone, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from agevlm import AgeVlmForConditionalGeneration, AgeVlmModel, ImageMemory
from agevlm.modeling.interleaving import decoder_layers
from agevlm.modeling.versions import checkpoint_activations

IMAGE = VOCABULARY_SIZE  # the placeholder's id, outside the decoder's table


def make_ids(*places: tuple[int, ...], length: int = 9, seed: int = 0) -> Tensor:
    """Random text, one row for each tuple of places of placeholders."""
    ids = torch.randint(5, VOCABULARY_SIZE, (len(places), length), generator=torch.Generator().manual_seed(seed))
    for row, columns in enumerate(places):
        ids[row, list(columns)] = IMAGE
    return ids


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("decoder", DECODERS)
def test_gates_at_zero_give_the_decoder_exactly(decoder: str, vision: str) -> None:
    model = make_model(decoder, vision, gate=0.0)
    ids = make_ids((), (), (), length=11)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    alone = model.language_model(input_ids=ids, attention_mask=mask).logits
    index = torch.tensor([[0, 1], [1, -1], [-1, -1]])
    seen = torch.ones_like(ids) * torch.tensor([[2], [1], [0]])
    looking = model(ids, mask, pixel_values=make_pixels(2), image_index=index, images_seen=seen).logits
    assert torch.equal(looking, alone)
    opened = make_model(decoder, vision)(ids, mask, pixel_values=make_pixels(2), image_index=index, images_seen=seen)
    assert not torch.equal(opened.logits[:2], alone[:2])
    assert torch.equal(opened.logits[2], alone[2])


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_decoder_keeps_its_keys_weights_and_voice(decoder: str) -> None:
    torch.manual_seed(1)
    language_model = AutoModelForCausalLM.from_config(make_text_config(decoder)).eval()
    before = {key: value.clone() for key, value in language_model.state_dict().items()}
    ids = make_ids((), ())
    voice, kernel = language_model(ids).logits, language_model.config._attn_implementation
    vision_model = AutoBackbone.from_config(make_vision_config())
    seen = {key: value.clone() for key, value in vision_model.state_dict().items()}
    model = AgeVlmForConditionalGeneration.from_backbones(language_model, vision_model)
    assert model.language_model is language_model
    assert model.vision_model is vision_model
    inside = {
        key.removeprefix("language_model."): value
        for key, value in model.state_dict().items()
        if key.startswith("language_model.")
    }
    assert inside.keys() == before.keys()
    assert all(torch.equal(inside[key], before[key]) for key in before)
    assert all(torch.equal(model.vision_model.state_dict()[key], seen[key]) for key in seen)
    assert torch.equal(language_model(ids).logits, voice)
    assert model.config._attn_implementation == language_model.config._attn_implementation == kernel
    assert torch.equal(model(ids).logits, voice)
    mean = language_model.get_input_embeddings()(torch.arange(VOCABULARY_SIZE)).mean(0)
    assert torch.equal(model.image_token_embedding, mean)


def test_backbones_come_from_directories_objects_and_plain_vision_checkpoints(tmp_path: Any) -> None:
    torch.manual_seed(1)
    language_model = AutoModelForCausalLM.from_config(make_text_config("qwen3")).to(torch.bfloat16)
    language_model.generation_config.max_new_tokens = 7
    language_model.save_pretrained(tmp_path / "language")
    plain = AutoModel.from_config(make_vision_config("convnextv2"))
    plain.save_pretrained(tmp_path / "vision")
    model = AgeVlmForConditionalGeneration.from_backbones(
        tmp_path / "language", tmp_path / "vision", null_token=True, cross_attention_layers=[0, 3], image_token_id=77
    )
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.cross_attention.parameters()} == {torch.bfloat16}
    assert model.config.image_token_id == 77
    assert model.config.decoder_layers_behind == [0, 2]
    assert model.generation_config.max_new_tokens == 7
    kept = model.vision_model.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in plain.state_dict().items() if key in kept)
    ids = make_ids((0,)).masked_fill(make_ids((0,)) == IMAGE, 77)
    assert model(ids, pixel_values=make_pixels(1)).logits.isfinite().all()
    with pytest.raises(ValueError, match="no feature maps"):
        AgeVlmForConditionalGeneration.from_backbones(language_model, plain)


def test_norms_that_start_higher_make_attention_start_sharper() -> None:
    def highest(start: float) -> float:
        model = make_model(query_key_norm_init=start)
        weights = model(make_ids((0,)), pixel_values=make_pixels(1), output_attention_maps=True).attention_maps
        assert {float(n) for layer in model.cross_attention for n in layer.cross_attn.k_norm.weight} == {start}
        return min(float(layer.flatten(-2).amax(dim=-1).mean()) for layer in weights)

    assert highest(1.0) < highest(2.0) < highest(4.0)


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("places", [((0,), (2,)), ((0, 4), (3,), ())])
def test_fused_attention_equals_the_explicit_one(places: tuple[tuple[int, ...], ...], null_token: bool) -> None:
    model = make_model(null_token=null_token, image_positions="keys_and_values")
    inputs = {"input_ids": make_ids(*places), "pixel_values": make_pixels(sum(map(len, places)))}
    model.set_attn_implementation("sdpa")
    fused = model(**inputs).logits
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**inputs).logits, fused, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("decoder", DECODERS)
def test_text_that_sees_no_image_does_not_move(decoder: str) -> None:
    model = make_model(decoder, null_token=True)
    ids = make_ids((4,), (0, 5), ())
    first = model(ids, pixel_values=make_pixels(3, seed=1)).logits
    second = model(ids, pixel_values=make_pixels(3, seed=2)).logits
    assert torch.equal(first[0, :4], second[0, :4])
    assert torch.equal(first[2], second[2])
    assert not torch.isclose(first[0, 4:], second[0, 4:]).all(dim=-1).any()
    assert not torch.isclose(first[1], second[1]).all(dim=-1).any()
    broken = make_pixels(3, seed=1)
    broken[0] = torch.nan
    assert torch.equal(model(ids, pixel_values=broken).logits[2], first[2])
    swapped = make_pixels(3, seed=1)
    swapped[2] += 1  # the second image of row 1 is seen from token 5 on
    third = model(ids, pixel_values=swapped).logits
    torch.testing.assert_close(third[1, :5], first[1, :5])
    assert not torch.isclose(third[1, 5:], first[1, 5:]).all(dim=-1).any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_cached_decoding_equals_the_full_forward(decoder: str) -> None:
    model = make_model(decoder, null_token=True)
    ids = make_ids((1, 3), (0, 2), length=10)
    memory = model.encode_images(make_pixels(4))
    full = model(ids, image_memory=memory).logits
    steps = [model(ids[:, :5], image_memory=memory, use_cache=True)]
    index = torch.tensor([[0, 1], [2, 3]])
    for place in range(5, 10):
        cache = steps[-1].cache
        steps.append(model(ids[:, place : place + 1], image_memory=memory, image_index=index, cache=cache))
    torch.testing.assert_close(torch.cat([step.logits for step in steps], dim=1), full, atol=1e-5, rtol=1e-4)


def test_a_filled_cache_knows_earlier_images_and_takes_new_ones() -> None:
    model = make_model()
    ids = make_ids((1, 6), length=10)
    memory = model.encode_images(make_pixels(2))
    full = model(ids, image_memory=memory).logits
    cache = model(ids[:, :4], image_memory=memory.select([0]), use_cache=True).cache
    later = model(ids[:, 4:], image_memory=memory, cache=cache).logits
    torch.testing.assert_close(later, full[:, 4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_batch_equals_its_members_alone(decoder: str) -> None:
    model = make_model(decoder, null_token=True)
    pixels = make_pixels(3)
    texts = [make_ids((2,), length=5, seed=1), make_ids((), length=4, seed=2), make_ids((0, 3), length=8, seed=3)]
    alone = [
        model(texts[0], pixel_values=pixels[:1]).logits,
        model(texts[1]).logits,
        model(texts[2], pixel_values=pixels[1:]).logits,
    ]
    ids, mask = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 8 - text.shape[1] :], mask[row, 8 - text.shape[1] :] = text[0], 1
    together = model(ids, mask, pixel_values=pixels).logits
    for row, logits in enumerate(alone):
        torch.testing.assert_close(together[row, 8 - logits.shape[1] :], logits[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("decoder", "vision"), [("llama", "convnext"), ("gemma3_text", "convnextv2")])
def test_save_and_load_give_the_same_logits(decoder: str, vision: str, tmp_path: Any) -> None:
    model = make_model(
        decoder, vision, null_token=True, image_positions="keys_and_values", cross_attention_layers=[1, 4]
    )
    ids, pixels = make_ids((1,), (0, 3)), make_pixels(3)
    before = model(ids, pixel_values=pixels)
    model.save_pretrained(tmp_path)
    again, info = AgeVlmForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.cross_attention_layers == [1, 4]
    assert again.config.image_positions == "keys_and_values"
    assert again.config.get_text_config().model_type == decoder
    assert torch.equal(again(ids, pixel_values=pixels).logits, before.logits)
    for kernel in ("sdpa", "flex_attention"):
        asked = AgeVlmForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=kernel)
        assert asked.config._attn_implementation == asked.language_model.config._attn_implementation == kernel
        assert asked.vision_model.config._attn_implementation == "eager"
    auto = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(auto) is AgeVlmForConditionalGeneration
    assert auto.language_model.config._attn_implementation == "eager"
    torch.testing.assert_close(auto(ids, pixel_values=pixels).logits, before.logits, atol=1e-5, rtol=1e-4)
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is AgeVlmModel
    hidden = bare(ids, pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(bare.get_output_embeddings()(hidden), before.logits)


def gradients(model: Any, **inputs: Any) -> dict[str, Tensor]:
    """The gradients of the loss, by parameter."""
    model.train().zero_grad()
    outputs = model(**inputs)
    guidance = sum(weights[..., 3].sum() for weights in outputs.row_weights)
    (outputs.loss + guidance).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Before 5.23 transformers checkpoints a layer with its hooks, ours among them, which reentrant checkpointing cannot.
REENTRANT = [False, True] if hasattr(PreTrainedModel, "activation_checkpointing_enable") else [False]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("use_reentrant", REENTRANT)
def test_gradient_checkpointing_changes_nothing(decoder: str, use_reentrant: bool) -> None:
    model = make_model(decoder)
    ids = make_ids((1,), (0,))
    inputs = {
        "input_ids": ids,
        "pixel_values": make_pixels(2),
        "labels": ids.masked_fill(ids == IMAGE, -100),
        "attention_rows": torch.tensor([[4, 6], [2, 8]]),
    }
    plain = gradients(model, **inputs)
    checkpoint_activations(model, True, use_reentrant=use_reentrant)
    assert all(layer.gradient_checkpointing for layer in model.cross_attention)
    assert all(layer.gradient_checkpointing for layer in decoder_layers(model.language_model))
    checkpointed = gradients(model, **inputs)
    assert checkpointed.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_every_new_part_gets_a_gradient() -> None:
    model = make_model(null_token=True, image_positions="keys_and_values")
    ids = make_ids((0,), (1,))
    got = gradients(
        model,
        input_ids=ids,
        pixel_values=make_pixels(2),
        labels=ids.masked_fill(ids == IMAGE, -100),
        attention_rows=torch.tensor([[4], [5]]),
    )
    unused = {name for name, _ in model.named_parameters() if not name.startswith(("vision_model", "language_model"))}
    unused -= {name for name, gradient in got.items() if gradient.abs().sum() > 0}
    assert not unused


@pytest.mark.parametrize("null_token", [False, True])
def test_folded_rows_equal_gathered_ones(null_token: bool) -> None:
    model = make_model(null_token=null_token)
    ids, pixels = make_ids((0,), (2,), (1,), (0,), (0,), (4,)), make_pixels(2)
    rows = torch.tensor([[5, 2], [3, 3], [0, 1], [8, 7], [6, 6], [4, 2]])
    index = torch.tensor([[0], [0], [0], [1], [1], [1]])
    gathered = model(ids, pixel_values=pixels, image_index=index, attention_rows=rows)
    folded = model(ids, pixel_values=pixels, rows_per_image=3, attention_rows=rows)
    torch.testing.assert_close(folded.logits, gathered.logits, atol=1e-5, rtol=1e-4)
    for one, other in zip(folded.row_weights, gathered.row_weights, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("null_token", [False, True])
def test_row_weights_equal_the_maps(null_token: bool) -> None:
    model = make_model(null_token=null_token)
    ids, pixels = make_ids((1, 4), (3,), ()), make_pixels(3)
    rows = torch.tensor([[2, 6], [1, 5], [0, 3]])
    maps = model(ids, pixel_values=pixels, output_attention_maps=True)
    asked = model(ids, pixel_values=pixels, attention_rows=rows)
    both = model(ids, pixel_values=pixels, attention_rows=rows, output_attention_maps=True)
    assert asked.attention_maps is None
    assert len(asked.row_weights) == len(maps.attention_maps) == 2
    for layer, weights in enumerate(asked.row_weights):
        whole = maps.attention_maps[layer]
        assert whole.shape == (3, 4, 9, 2, 4, 4)
        flat = whole.flatten(3)
        if null_token:
            flat = torch.cat([flat, maps.null_attention[layer][..., None]], dim=-1)
        expected = torch.stack([flat[row, :, rows[row]] for row in range(3)])
        torch.testing.assert_close(weights, expected)
        torch.testing.assert_close(both.row_weights[layer], expected)
        assert weights.dtype == torch.float32
        total = flat.sum(-1)
        sees = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1], [0] * 9]).float()
        torch.testing.assert_close(total, sees[:, None].expand_as(total))
        assert whole[0, :, 1:4, 1].sum() == 0  # the second image comes later
        assert whole[0, :, 4:, 1].sum() > 0
    assert (maps.null_attention is None) != null_token
    assert torch.equal(both.logits, maps.logits)


def test_the_maps_are_the_attention_that_the_fused_path_pays() -> None:
    model = make_model(image_positions="none")
    layer = model.cross_attention[0].cross_attn
    hidden, features = torch.randn(1, 5, 32), torch.randn(1, 16, 4, 4)
    memory = model.encode_images(image_features=features)
    key, value = memory.keys[0], memory.values[0]
    found, weights = layer(hidden, key, value, None, torch.arange(5)[None])
    mixed = weights @ value.repeat_interleave(2, dim=1)
    torch.testing.assert_close(layer.o_proj(mixed.transpose(1, 2).flatten(2)), found, atol=1e-5, rtol=1e-4)


def test_attention_tells_where_and_not_only_what() -> None:
    same = torch.ones(1, 16, 4, 4)
    told = make_model(image_positions="values").encode_images(image_features=same)
    assert torch.allclose(told.keys[0][..., :1, :], told.keys[0], atol=1e-6)
    assert not torch.allclose(told.values[0][..., :1, :], told.values[0], atol=1e-2)
    both = make_model(image_positions="keys_and_values").encode_images(image_features=same)
    assert not torch.allclose(both.keys[0][..., :1, :], both.keys[0], atol=1e-2)
    none = make_model(image_positions="none").encode_images(image_features=same)
    assert torch.allclose(none.values[0][..., :1, :], none.values[0], atol=1e-6)


def test_image_memory_serves_many_questions() -> None:
    model = make_model(null_token=True)
    pixels, ids = make_pixels(3), make_ids((0,), (2,), (1,))
    memory = model.encode_images(pixels)
    assert len(memory) == 3
    assert memory.grid == (4, 4)
    direct = model(ids, pixel_values=pixels).logits
    torch.testing.assert_close(model(ids, image_memory=memory).logits, direct)
    torch.testing.assert_close(model(ids, image_features=model.vision_features(pixels)).logits, direct)
    joined = ImageMemory.cat([memory.select([2]), memory.select(slice(0, 2))]).to(torch.float64).to(torch.float32)
    index = torch.tensor([[1], [2], [0]])
    torch.testing.assert_close(model(ids, image_memory=joined, image_index=index).logits, direct)
    one_image = model(ids, image_memory=memory, image_index=torch.tensor([[1], [1], [1]])).logits
    torch.testing.assert_close(one_image[1], direct[1])
    other = make_model().encode_images(pixels)
    with pytest.raises(ValueError, match="memories of one model and grid"):
        ImageMemory.cat([memory, other])


def test_a_frozen_vision_model_records_no_graph_and_stays_in_evaluation() -> None:
    model = make_model()
    assert model.vision_features(make_pixels(1)).requires_grad
    model.vision_model.requires_grad_(False)
    model.train()
    assert not model.vision_model.training
    assert model.language_model.training
    assert not model.vision_features(make_pixels(1)).requires_grad
    assert model.encode_images(make_pixels(1)).keys[0].requires_grad


def test_loss_is_shifted_ignores_minus_100_and_honours_num_items() -> None:
    model = make_model()
    ids = make_ids((0,), (1,))
    labels = ids.masked_fill(ids == IMAGE, -100)
    labels[0, :6] = -100
    outputs = model(ids, pixel_values=make_pixels(2), labels=labels, logits_to_keep=0)
    log_probs = outputs.logits[:, :-1].log_softmax(-1)
    picked = log_probs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    valid = labels[:, 1:] != -100
    torch.testing.assert_close(outputs.loss, -picked[valid].mean())
    scaled = model(ids, pixel_values=make_pixels(2), labels=labels, num_items_in_batch=100)
    torch.testing.assert_close(scaled.loss, -picked[valid].sum() / 100)


def test_bfloat16_autocast_trains() -> None:
    model = make_model(null_token=True)
    ids = make_ids((1,), (0,))
    inputs = {"input_ids": ids, "pixel_values": make_pixels(2), "attention_rows": torch.tensor([[3], [4]])}
    exact = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(**inputs, labels=ids.masked_fill(ids == IMAGE, -100), logits_to_keep=0)
    rough.loss.backward()
    assert rough.row_weights[0].dtype == torch.float32
    torch.testing.assert_close(rough.row_weights[0].sum(-1), torch.ones(2, 4, 1))
    torch.testing.assert_close(rough.logits.float(), exact.logits, atol=0.3, rtol=0.1)


def test_hidden_states_and_tuples_come_as_from_any_model() -> None:
    model = make_model()
    ids = make_ids((1,))
    outputs = model(ids, pixel_values=make_pixels(1), output_hidden_states=True)
    assert len(outputs.hidden_states) == 5
    assert torch.equal(model(ids, pixel_values=make_pixels(1), return_dict=False)[0], outputs.logits)
    last = model(ids, pixel_values=make_pixels(1), logits_to_keep=1).logits
    torch.testing.assert_close(last, outputs.logits[:, -1:])


def test_a_copy_of_the_model_is_whole() -> None:
    model = make_model()
    ids, pixels = make_ids((1,)), make_pixels(1)
    twin = copy.deepcopy(model)
    before = model(ids, pixel_values=pixels).logits
    with torch.no_grad():
        for parameter in model.cross_attention.parameters():
            parameter.zero_()
    assert torch.equal(twin(ids, pixel_values=pixels).logits, before)
    joined = AgeVlmForConditionalGeneration.from_backbones(model.language_model, model.vision_model)
    assert torch.equal(joined(make_ids(())).logits, twin.language_model(make_ids(())).logits)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": make_ids((0, 1)), "pixel_values": make_pixels(1)}, "2 image placeholders, but 1 images"),
        ({"input_ids": make_ids((0,))}, "1 image placeholders, but 0 images"),
        ({"input_ids": make_ids(()), "pixel_values": make_pixels(2)}, "0 image placeholders, but 2 images"),
        (
            {
                "input_ids": make_ids((0,), (0,)),
                "pixel_values": make_pixels(2),
                "image_index": torch.tensor([[0, 1], [-1, -1]]),
            },
            r"\[1, 1\] image placeholders and \[2, 0\] images",
        ),
        (
            {"input_ids": make_ids((0,)), "pixel_values": make_pixels(1), "image_index": torch.tensor([[3]])},
            "image 3 of 1",
        ),
        ({"input_ids": make_ids((0,)), "pixel_values": make_pixels(1), "rows_per_image": 2}, "2 rows, got 1"),
        (
            {"input_ids": make_ids((0,)), "pixel_values": make_pixels(1), "image_features": torch.randn(1, 16, 4, 4)},
            "given twice",
        ),
        ({"pixel_values": make_pixels(1)}, "either input_ids or inputs_embeds"),
        ({"inputs_embeds": torch.randn(1, 4, 32), "pixel_values": make_pixels(1)}, "pass images_seen"),
        (
            {"input_ids": make_ids((0,)), "pixel_values": make_pixels(1), "images_seen": torch.ones(1, 3)},
            r"shape \(1, 3\)",
        ),
    ],
)
def test_counts_and_shapes_that_do_not_fit_are_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model()(**inputs)


def test_decoders_that_cannot_be_interleaved_are_named() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no list of decoder layers"):
        AgeVlmForConditionalGeneration.from_backbones(gpt2, AutoBackbone.from_config(make_vision_config()))


def test_a_decoder_that_keeps_the_images_to_itself_is_named() -> None:
    model = make_model()
    decoder_layers(model.language_model)[1]._forward_pre_hooks.clear()
    with pytest.raises(ValueError, match="passed the images to 1 of 2 cross-attention layers"):
        model(make_ids((0,)), pixel_values=make_pixels(1))


def test_it_compiles_without_a_break() -> None:
    model = make_model(null_token=True)
    ids = make_ids((1,), (0,))
    memory = model.encode_images(make_pixels(2))
    told = {"image_memory": memory, "rows_per_image": 1, "images_seen": (ids == IMAGE).cumsum(1)}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, **told).logits, model(ids, **told).logits)


def test_a_compiled_layer_takes_any_length() -> None:
    model = make_model(null_token=True)
    backend = CompileCounterWithBackend("eager")
    layer = model.cross_attention[0]
    layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True, fullgraph=True)
    memory = model.encode_images(make_pixels(2))
    for length in (9, 12, 7):
        ids = make_ids((1,), (2,), (0,), (0,), length=length)
        seen, asked = (ids == IMAGE).cumsum(1), torch.tensor([[3, 4, 6]]).expand(4, -1)
        model(ids, image_memory=memory, rows_per_image=2, images_seen=seen, attention_rows=asked)
    assert backend.frame_count == 1
