"""The loss where it is supervised: equal to the loss of all logits, without holding them."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY_SIZE, make_pixels, make_text_config, make_vision_config
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaForCausalLM

from agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, ConcatVlmConfig, ConcatVlmForConditionalGeneration
from agevlm.modeling import supervision
from agevlm.modeling.supervision import Head, label_log_probs
from agevlm.modeling.versions import checkpoint_activations

IMAGE = VOCABULARY_SIZE
HEADS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma3_text": {
        "tie_word_embeddings": True,
        "final_logit_softcapping": 1.5,
        "layer_types": ["full_attention"] * 4,
    },
    "granite": {"tie_word_embeddings": False, "logits_scaling": 3.0},
    "cohere": {"tie_word_embeddings": True, "logit_scale": 0.25},
}


def make_network(architecture: str = "age", decoder: str = "llama", **options: Any) -> Any:
    torch.manual_seed(0)
    parts = {
        "text_config": make_text_config(decoder, **HEADS[decoder] | options),
        "vision_config": make_vision_config(),
    }
    if architecture == "age":
        return AgeVlmForConditionalGeneration(AgeVlmConfig(**parts, attn_gate_init=0.7, mlp_gate_init=0.7)).train()
    return ConcatVlmForConditionalGeneration(ConcatVlmConfig(**parts)).train()


def make_batch(num_pictures: int = 2, length: int = 11) -> dict[str, Any]:
    """Two questions on each picture, padded on the left. One row has no label, one has a label at its first token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY_SIZE, (2 * num_pictures, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::2, :2] = 0
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.5, -100)
    labels[:, :4] = -100
    labels[1] = -100
    labels[2, 0] = 7  # nothing stands before it
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": labels,
        "pixel_values": make_pixels(num_pictures),
        "images_seen": mask,
        "rows_per_image": 2,
        "use_cache": False,
    }


def full_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Cross-entropy of the logits of all tokens, as transformers computes it."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(model: Any, batch: dict[str, Any]) -> None:
    full, alone = full_loss(model, batch), model(**batch).loss
    torch.testing.assert_close(alone, full, atol=1e-6, rtol=1e-6)
    wanted, found = gradients(model, full), gradients(model, alone)
    assert found.keys() == wanted.keys()
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 1e-3
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(params=["one block", "blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All supervised tokens at once, or three at a time."""
    if request.param == "blocks":
        monkeypatch.setattr(supervision, "MAX_LOGITS", 3 * VOCABULARY_SIZE)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("decoder", HEADS)
@pytest.mark.parametrize("architecture", ["age", "concat"])
def test_loss_and_gradients_are_those_of_all_logits(architecture: str, decoder: str) -> None:
    assert_same_training(make_network(architecture, decoder), make_batch())


@pytest.mark.usefixtures("blocks")
def test_an_adapted_head_trains_its_adapters() -> None:
    import peft

    model = make_network()
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model.language_model)
    assert "language_model.lm_head.lora_A.default.weight" in dict(model.named_parameters())
    assert_same_training(model, make_batch())


@pytest.mark.usefixtures("blocks")
def test_a_frozen_language_model_passes_gradients_on() -> None:
    model = make_network()
    model.language_model.requires_grad_(False)
    assert_same_training(model, make_batch())


@pytest.mark.usefixtures("blocks")
def test_checkpointed_layers_change_nothing() -> None:
    model = make_network()
    plain = gradients(model, full_loss(model, make_batch()))
    checkpoint_activations(model, True)
    for name, gradient in gradients(model, model(**make_batch()).loss).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5)


def test_text_without_pictures_too() -> None:
    text = ("input_ids", "attention_mask", "position_ids", "labels")
    for architecture in ("age", "concat"):
        batch = make_batch()
        assert_same_training(make_network(architecture), {name: batch[name] for name in text})


@pytest.mark.usefixtures("blocks")
def test_parts_of_a_batch_sum_up_to_the_whole() -> None:
    model, batch = make_network(), make_batch()
    num_tokens = (batch["labels"][:, 1:] != -100).sum()
    whole = gradients(model, model(**batch).loss)
    model.zero_grad()
    for number in range(2):
        rows = slice(2 * number, 2 * number + 2)
        part = {name: value[rows] if isinstance(value, Tensor) else value for name, value in batch.items()}
        part["pixel_values"] = batch["pixel_values"][number : number + 1]
        model(**part, num_items_in_batch=num_tokens).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole[name], atol=1e-6, rtol=1e-5)


def test_a_batch_without_any_label_has_no_loss_and_a_gradient_of_0() -> None:
    model, batch = make_network(), make_batch()
    wanted = gradients(model, model(**batch).loss).keys()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = model(**batch, num_items_in_batch=5).loss
    assert float(loss.detach()) == 0
    found = gradients(model, loss)
    assert found.keys() == wanted, "every process must have a gradient of what trains"
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("architecture", ["age", "concat"])
@torch.no_grad()
def test_log_probabilities_of_labels_stand_at_their_tokens(architecture: str) -> None:
    model, batch = make_network(architecture).eval(), make_batch()
    assert model.train()(**batch).logits is None
    outputs = model.eval()(**batch)
    labels = batch.pop("labels")
    torch.testing.assert_close(outputs.logits, model(**batch).logits)
    log_probs = model(**batch).logits[:, :-1].log_softmax(-1)
    picked = log_probs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    supervised = labels[:, 1:] != -100
    torch.testing.assert_close(outputs.label_log_probs[:, 1:], picked * supervised)
    assert outputs.label_log_probs[2, 0] == 0
    torch.testing.assert_close(outputs.loss, -picked[supervised].mean())


@pytest.mark.parametrize("architecture", ["age", "concat"])
@torch.no_grad()
def test_logits_come_beside_labels_where_they_are_asked_for(architecture: str) -> None:
    model, batch = make_network(architecture).eval(), make_batch()
    both = model(**batch, logits_to_keep=0)
    labels = batch.pop("labels")
    torch.testing.assert_close(both.logits, model(**batch).logits)
    for keep, columns in ((2, slice(-2, None)), (torch.tensor([1, 4]), [1, 4])):
        some = model(**batch, labels=labels, logits_to_keep=keep).logits
        torch.testing.assert_close(some, both.logits[:, columns])
        torch.testing.assert_close(some, model(**batch, logits_to_keep=keep).logits)


class LargestLogits(TorchDispatchMode):
    """The most elements of a tensor over the vocabulary that any operation made, weights and their gradients aside."""

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.vocabulary_size, self.weight, self.largest = vocabulary_size, vocabulary_size * width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            of_logits = isinstance(tensor, Tensor) and tensor.shape[-1:] == (self.vocabulary_size,)
            if of_logits and tensor.numel() != self.weight:
                self.largest = max(self.largest, tensor.numel())
        return made


@pytest.mark.parametrize("architecture", ["age", "concat"])
def test_no_step_holds_the_logits_of_all_tokens(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary_size = 331
    model, batch = make_network(architecture, vocab_size=vocabulary_size), make_batch(length=40)
    num_supervised = int((batch["labels"][:, 1:] != -100).sum())

    def largest(loss: Callable[[], Tensor]) -> int:
        with LargestLogits(vocabulary_size, model.config.text_config.hidden_size) as seen:
            loss().backward()
        return seen.largest // vocabulary_size

    assert largest(lambda: full_loss(model, batch)) == batch["labels"].numel()
    assert largest(lambda: model(**batch).loss) == num_supervised < batch["labels"].numel() // 2
    monkeypatch.setattr(supervision, "MAX_LOGITS", 5 * vocabulary_size)
    assert largest(lambda: model(**batch).loss) == 5


@pytest.mark.parametrize("architecture", ["age", "concat"])
@torch.no_grad()
def test_an_answer_wants_the_logits_of_one_token(architecture: str) -> None:
    model, batch = make_network(architecture).eval(), make_batch()
    del batch["labels"]
    for use_cache in (False, True):
        with LargestLogits(VOCABULARY_SIZE, model.config.text_config.hidden_size) as seen:
            model(**batch | {"use_cache": use_cache}, logits_to_keep=1)
        assert seen.largest == len(batch["input_ids"]) * VOCABULARY_SIZE


class TwiceForCausalLM(LlamaForCausalLM):
    """Its logits are of two passes of its decoder."""

    def forward(self, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        hidden = self.model(inputs_embeds=inputs_embeds, **kwargs).last_hidden_state
        return super().forward(inputs_embeds=hidden, **kwargs)


def test_a_head_of_another_kind_is_refused_and_the_decoder_left_as_it_was() -> None:
    odd = TwiceForCausalLM(make_text_config())
    hidden = torch.randn(2, 3, 32)
    outputs = odd.model(inputs_embeds=hidden)
    with pytest.raises(ValueError, match="TwiceForCausalLM does not make its logits of the last hidden states"):
        label_log_probs(Head(odd, outputs), outputs.last_hidden_state, torch.full((2, 3), 4))
    assert "forward" not in vars(odd.model)


@torch.no_grad()
def test_threads_that_share_a_model_do_not_meet() -> None:
    model = LlamaForCausalLM(make_text_config()).eval()
    embeds = torch.randn(2, 5, 32)
    outputs, wanted = model.model(inputs_embeds=embeds), model(inputs_embeds=embeds).logits
    found: list[Tensor] = []

    def look_aside(*_: Any) -> None:
        if not found:
            found.append(torch.empty(0))
            other = Thread(target=lambda: found.append(model(inputs_embeds=embeds).logits))
            other.start()
            other.join()

    model.lm_head.register_forward_pre_hook(look_aside)
    alone = Head(model, outputs)(outputs.last_hidden_state[:, :1])
    torch.testing.assert_close(alone, wanted[:, :1])
    torch.testing.assert_close(found[1], wanted)


def test_what_is_wrapped_around_a_decoder_stays() -> None:
    plain = LlamaForCausalLM(make_text_config())
    outputs = plain.model(inputs_embeds=torch.randn(1, 3, 32))
    wrapped = plain.model.forward = lambda *args, **kwargs: pytest.fail("the decoder is not run again")
    torch.testing.assert_close(
        Head(plain, outputs)(outputs.last_hidden_state), plain.lm_head(outputs.last_hidden_state)
    )
    assert plain.model.forward is wrapped


@pytest.mark.parametrize("architecture", ["age", "concat"])
def test_a_batch_with_nothing_supervised_has_a_loss_and_gradients_of_zero(architecture: str) -> None:
    model, batch = make_network(architecture), make_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    for given in ({}, {"num_items_in_batch": torch.tensor(1)}):
        loss = model(**batch, **given).loss
        found = gradients(model, loss)
        assert float(loss) == 0 and found
        assert all(bool((gradient == 0).all()) for gradient in found.values())
