"""Guidance losses on maps made by hand, and which rows, layers and heads they count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from agevlm.guidance import GUIDANCE_LOSSES, guidance_loss
from agevlm.guidance.losses import bce_dice_loss, kl_loss, mass_loss

# Shapes: R text rows, H heads, K guided positions of a row, N image tokens.

MASK_N = torch.tensor([0.0, 1.0, 1.0, 0.0])


def spread(*weights: float) -> Tensor:
    """Attention of one head at one position of one row: (1, 1, 1, N)."""
    return torch.tensor(weights).reshape(1, 1, 1, -1)


def loss_of(weights_RHKN: Tensor, shares_N: Tensor = MASK_N, present: int = 1, **settings: object) -> tuple[float, int]:
    total, rows = guidance_loss([weights_RHKN], shares_N.reshape(1, 1, -1), torch.tensor([[present]]), **settings)  # type: ignore[arg-type]
    return float(total), rows


@pytest.mark.parametrize("name", GUIDANCE_LOSSES)
def test_the_better_map_has_the_smaller_loss(name: str) -> None:
    perfect, blurred, even, wrong = (
        loss_of(spread(*weights), loss=name)[0]
        for weights in ([0, 0.5, 0.5, 0], [0.1, 0.4, 0.4, 0.1], [0.25] * 4, [0.5, 0, 0, 0.5])
    )
    assert perfect < blurred < even < wrong
    assert perfect == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", GUIDANCE_LOSSES)
def test_descent_pulls_attention_into_the_mask(name: str) -> None:
    scores = torch.tensor([1.0, 0.0, -1.0, 2.0], requires_grad=True)
    optimizer = torch.optim.SGD([scores], lr=1.0)
    before = float(scores.detach().softmax(-1)[1:3].sum())
    for _ in range(60):
        total, _ = guidance_loss(
            [scores.softmax(-1).reshape(1, 1, 1, 4)], MASK_N.reshape(1, 1, 4), torch.tensor([[1]]), loss=name
        )
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    after = float(scores.detach().softmax(-1)[1:3].sum())
    assert before < 0.25
    assert after > 0.8


def test_kl_is_what_the_formula_says() -> None:
    weights, shares = torch.tensor([0.2, 0.5, 0.3, 0.0]), torch.tensor([0.0, 1.0, 0.5, 0.0])
    expected = 2 / 3 * math.log(2 / 3 / 0.5) + 1 / 3 * math.log(1 / 3 / 0.3)
    assert float(kl_loss(weights, shares)) == pytest.approx(expected, rel=1e-5)


def test_mass_is_the_negative_log_of_what_lies_inside() -> None:
    weights = torch.tensor([0.2, 0.5, 0.3, 0.0])
    assert float(mass_loss(weights, MASK_N)) == pytest.approx(-math.log(0.8), rel=1e-5)
    thin = torch.tensor([0.0, 0.1, 0.05, 0.0])  # a mask thinner than a cell: its fullest cell counts whole
    assert float(mass_loss(weights, thin)) == pytest.approx(-math.log(0.5 + 0.15), rel=1e-5)
    assert float(mass_loss(torch.tensor([0.9, 0.0, 0.0, 0.1]), MASK_N)) == pytest.approx(-math.log(1e-6), rel=1e-5)


def test_bce_and_dice_ask_for_the_whole_shape() -> None:
    half, whole = (bce_dice_loss(torch.tensor(w), MASK_N) for w in ([0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]))
    assert float(mass_loss(torch.tensor([0.0, 1.0, 0.0, 0.0]), MASK_N)) == 0
    assert float(half) > float(whole) + 0.3


def test_an_absent_word_is_led_to_the_null_token() -> None:
    elsewhere, there = spread(0.25, 0.25, 0.2, 0.2, 0.1), spread(0.0, 0.0, 0.0, 0.0, 1.0)
    nothing = torch.zeros(4)
    far, rows = loss_of(elsewhere, nothing, present=0, null_token=True)
    near, _ = loss_of(there, nothing, present=0, null_token=True)
    assert rows == 1
    assert far == pytest.approx(-math.log(0.1), rel=1e-5)
    assert near == pytest.approx(0, abs=1e-5)


def test_the_null_token_is_no_place_for_a_present_word() -> None:
    inside, outside = spread(0, 0.5, 0.5, 0, 0), spread(0, 0.1, 0.1, 0, 0.8)
    assert loss_of(inside, null_token=True)[0] < loss_of(outside, null_token=True)[0]


@pytest.mark.parametrize(
    ("shares", "present"), [(torch.zeros(4), 0), (MASK_N, -1), (torch.zeros(4), 1)], ids=["absent", "padding", "empty"]
)
def test_rows_without_a_target_are_left_alone(shares: Tensor, present: int) -> None:
    weights = spread(0.25, 0.25, 0.25, 0.25).requires_grad_()
    total, rows = guidance_loss([weights], shares.reshape(1, 1, 4), torch.tensor([[present]]))
    total.backward()
    assert rows == 0
    assert float(total) == 0
    assert torch.equal(weights.grad, torch.zeros_like(weights))


def test_rows_are_summed_and_counted_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 3, 2, 4, generator=generator).softmax(-1)
    shares = torch.stack([MASK_N, MASK_N.flip(0).roll(1), torch.ones(4), MASK_N]).reshape(2, 2, 4)
    present = torch.tensor([[1, -1], [1, 1]])
    total, rows = guidance_loss([weights], shares, present)
    single = [kl_loss(weights[r, :, k].mean(0), shares[r, k]) for r, k in ((0, 0), (1, 0), (1, 1))]
    assert rows == 3
    assert float(total) == pytest.approx(float(sum(single)), rel=1e-5)


def test_heads_are_averaged_before_or_after() -> None:
    """Two heads that share the mask between them: together right, each by itself wrong."""
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]).reshape(1, 2, 1, 4)
    mean, each = loss_of(weights)[0], loss_of(weights, heads="each")[0]
    alone = [float(kl_loss(weights[0, head, 0], MASK_N)) for head in range(2)]
    assert mean == pytest.approx(0, abs=1e-5)
    assert each == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_layers_are_chosen_by_number_and_averaged() -> None:
    layers = [spread(0, 0.5, 0.5, 0), spread(0.25, 0.25, 0.25, 0.25), spread(0.4, 0.1, 0.1, 0.4)]
    arguments = (MASK_N.reshape(1, 1, 4), torch.tensor([[1]]))
    single = [float(guidance_loss([layer], *arguments)[0]) for layer in layers]
    assert float(guidance_loss(layers, *arguments)[0]) == pytest.approx(sum(single) / 3, rel=1e-5)
    assert float(guidance_loss(layers, *arguments, layers=[1])[0]) == pytest.approx(single[1], rel=1e-5)
    assert float(guidance_loss(layers, *arguments, layers=(0, 2))[0]) == pytest.approx((single[0] + single[2]) / 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": [3]}, "layer 3; the model has 2"),
        ({"layers": [-1]}, "layer -1; the model has 2"),
        ({"layers": []}, "no cross-attention layer"),
        ({"loss": "kld"}, "unknown guidance loss 'kld'; known are kl, mass, bce_dice"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        guidance_loss([spread(1, 0)] * 2, torch.ones(1, 1, 2), torch.tensor([[1]]), **settings)  # type: ignore[arg-type]


def test_a_model_without_cross_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one cross-attention layer"):
        guidance_loss([], torch.ones(1, 1, 2), torch.tensor([[1]]))


def test_half_precision_weights_give_a_float32_loss() -> None:
    total, _ = guidance_loss([spread(0, 0.5, 0.5, 0).bfloat16()], MASK_N.reshape(1, 1, 4), torch.tensor([[1]]))
    assert total.dtype == torch.float32


@pytest.mark.parametrize("name", GUIDANCE_LOSSES)
def test_extreme_maps_give_finite_losses_and_gradients(name: str) -> None:
    for weights in ([0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]):
        map_RHKN = spread(*weights).requires_grad_()
        total, _ = guidance_loss([map_RHKN], (MASK_N * 1e-3).reshape(1, 1, 4), torch.tensor([[1]]), loss=name)
        total.backward()
        assert torch.isfinite(total) and torch.isfinite(map_RHKN.grad).all()


def test_the_masks_given_are_not_changed() -> None:
    shares = torch.zeros(1, 1, 4)
    guidance_loss([spread(0.2, 0.2, 0.2, 0.2, 0.2)], shares, torch.tensor([[0]]), null_token=True)
    assert torch.equal(shares, torch.zeros(1, 1, 4))
