"""A model divided over the processes that train it: weights, gradients and optimiser, by torch's FSDP2.

A unit is a decoder layer or a cross-attention layer; what stands between them is the last one. Each is whole only while
it is computed. Not accelerate's FSDP: that makes a unit of embedding, last norm and head, which a head that is asked
alone and in blocks does not fit, takes no parameter without a dimension, and does not run on CPUs.

Checkpoints are gathered, and are the files that one process writes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from agevlm.modeling.interleaving import decoder_layers


class Shards:
    """A model divided in place over all processes, which must all make, gather and divide together.

    A parameter that is no floating-point number is a ValueError, before anything is divided.
    """

    def __init__(self, model: Any, device_type: str) -> None:
        check_divisible(model)
        self.model = model
        self.scalars = _give_scalars_a_dimension(model)
        mesh = init_device_mesh(device_type, (dist.get_world_size(),))
        for layer in (*decoder_layers(model.language_model), *getattr(model, "cross_attention", ())):
            fully_shard(layer, mesh=mesh)
            if hasattr(layer, "encode"):  # asked apart from forward, by `encode_images`
                register_fsdp_forward_method(layer, "encode")
        fully_shard(model, mesh=mesh)

    def weights(self) -> dict[str, Tensor]:
        """The state of the undivided model, under its names and in its shapes, on the CPU."""
        return {name: _whole(value, name in self.scalars) for name, value in self.model.state_dict().items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state of an optimiser as it would be of the undivided model."""
        scalars = {parameter for name, parameter in self.model.named_parameters() if name in self.scalars}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = optimizer.state_dict()
        state["state"] = {
            number: {name: _whole(value, parameters[number] in scalars) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return state

    @staticmethod
    def divide_optimizer_state(optimizer: Any) -> None:
        """Divide the state of an undivided model, loaded into an optimiser of a divided one, as its parameters are."""
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if name != "step" and not isinstance(value, DTensor):
                    value = value.reshape(parameter.shape).to(parameter.device)
                    values[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)


def take_weights(model: nn.Module) -> nn.Module:
    """A copy of a model that has its weights, to be divided. The model has none from then on, until `give_weights`.

    So nobody holds a whole model beside a divided one.
    """
    weights = [parameter.data for parameter in model.parameters()]
    drop_weights(model)
    taken = copy.deepcopy(model)
    for parameter, weight in zip(taken.parameters(), weights, strict=True):
        parameter.data = weight
    return taken


def drop_weights(model: nn.Module) -> None:
    """Leave a model without its weights."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def give_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model that has none the state of `Shards.weights`, in the types that it had, on the CPU."""
    for name, parameter in model.named_parameters():
        parameter.data = weights[name].to(parameter.dtype)
    model.load_state_dict(weights)  # buffers, and a name that is missing or too many is an error


def check_divisible(model: nn.Module) -> None:
    """Raise ValueError for a parameter that cannot be divided: quantised weights are no floating-point numbers."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(
                f"{name} holds {str(parameter.dtype).removeprefix('torch.')}, and only floating-point weights can be "
                "divided over processes: load the model without quantisation, or set shard=false"
            )


def _give_scalars_a_dimension(model: nn.Module) -> frozenset[str]:
    """Parameters without a dimension, which cannot be divided, get one; their names."""
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, leaf)
        setattr(module, leaf, nn.Parameter(old.detach().reshape(1), requires_grad=old.requires_grad))
    return frozenset(names)


@torch.no_grad()
def _whole(value: Any, scalar: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return (value.reshape(()) if scalar else value).detach().cpu()
