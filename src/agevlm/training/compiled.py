"""torch.compile for the layers of a network: each kind once for all of its kind, for every length, kept on disk.

Compiling takes the better part of a minute the first time on a machine and some seconds after, for torch keeps what it
has compiled (`TORCHINDUCTOR_CACHE_DIR`). Only long stages are worth it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch._dynamo
import torch._inductor.config

from agevlm.modeling.decoding import check_compiler
from agevlm.modeling.interleaving import decoder_layers
from agevlm.modeling.joined import JoinedModel

MIN_STEPS = 100  # of a stage: a shorter one is over before compiling for it has paid
MAX_GRAPHS = 64  # of one layer's code: kinds of layers, what trains in each stage, short and long batches


def compile_layers(model: JoinedModel) -> None:
    """Compile the decoder layers of a network and its cross-attention layers, once for all layers of a kind.

    What stands between them stays as it is: it knows its place in the decoder, and would be compiled place by place.
    Settings of torch.compile that hold for the whole process are changed. On a CPU, no C++ compiler is a ValueError.
    """
    if model.projector.weight.device.type == "cpu":
        check_compiler()
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    torch._dynamo.config.specialize_float = True  # numbers of the configuration: else every graph is traced twice
    for name in ("_enter_autocast", "_exit_autocast"):  # graphs with a float32 part under autocast are kept on disk too
        torch._inductor.config.unsafe_marked_cacheable_functions[f"torch.amp.autocast_mode.{name}"] = torch.__version__
    for layer in (*decoder_layers(model.language_model), *getattr(model, "cross_attention", ())):
        layer.forward = torch.compile(layer.forward, dynamic=True)  # lengths of batches differ


def compiled_for(num_steps: int) -> AbstractContextManager[None]:
    """In here layers that are compiled run so if there are steps enough for it to pay, else as they were written."""
    return torch.compiler.set_stance("default" if num_steps >= MIN_STEPS else "force_eager")
