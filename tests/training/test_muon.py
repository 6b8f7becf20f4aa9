"""Muon: orthogonal directions, torch's own updates, AdamW beside it, and a state that survives the disk."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agevlm.training.muon import Muon, orthogonal

BETAS = (0.9, 0.98)


def make_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((12, 8), (8, 12), (8, 8), (8,))
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def make_optimizer(parameters: list[nn.Parameter], **settings: Any) -> Muon:
    groups = [
        {"params": parameters[:3], "weight_decay": 0.1, "muon": True},
        {"params": parameters[3:], "weight_decay": 0.0, "muon": False},
    ]
    return Muon(groups, lr=0.01, betas=BETAS, **settings)


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(100 + number)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16])
def test_singular_vectors_stay_and_values_come_near_one(arithmetic: torch.dtype) -> None:
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(1))
    found = orthogonal(matrices, arithmetic)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ found @ right.mT
    off_diagonal = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
    assert float(off_diagonal.abs().max()) < (1e-4 if arithmetic == torch.float32 else 0.05)
    assert torch.equal(orthogonal(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_matrices_move_as_torchs_own_muon_moves_them() -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer = make_optimizer(ours, arithmetic=torch.bfloat16)
    other = torch.optim.Muon(
        theirs[:3], lr=0.01, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    start = [parameter.detach().clone() for parameter in ours]
    for number in range(5):
        step(optimizer, ours, number)
        step(other, theirs, number)
    for mine, its, before in zip(ours[:3], theirs[:3], start, strict=False):
        moved = float((its - before).norm())
        assert moved > 0.05 and float((mine - its).norm()) < 0.02 * moved


def test_what_is_no_matrix_moves_by_adamw() -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer = make_optimizer(ours)
    other = torch.optim.AdamW(theirs[3:], lr=0.01, betas=BETAS, weight_decay=0.0)
    for number in range(3):
        step(optimizer, ours, number)
        step(other, theirs, number)
    torch.testing.assert_close(ours[3], theirs[3])


def test_without_a_gradient_nothing_moves() -> None:
    parameters = make_parameters()
    optimizer, before = make_optimizer(parameters), [p.detach().clone() for p in parameters]
    parameters[3].grad = torch.ones(8)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters[:3], before, strict=False))
    assert not torch.equal(parameters[3], before[3])


def test_a_state_from_the_disk_goes_on_as_if_nothing_had_been() -> None:
    def trained(stops: bool) -> list[Tensor]:
        parameters = make_parameters()
        optimizer = make_optimizer(parameters)
        for number in range(4):
            if stops and number == 2:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                optimizer = make_optimizer(parameters)
                optimizer.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
            step(optimizer, parameters, number)
        return [parameter.detach() for parameter in parameters]

    for went_on, whole in zip(trained(True), trained(False), strict=True):
        assert torch.equal(went_on, whole)


def test_what_it_cannot_do_is_refused() -> None:
    vector = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"for matrices, got a parameter of the shape \(3,\)"):
        Muon([{"params": [vector], "muon": True}], lr=0.1, betas=BETAS)
    with pytest.raises(ValueError, match="no closure"):
        make_optimizer(make_parameters()).step(lambda: 0)
