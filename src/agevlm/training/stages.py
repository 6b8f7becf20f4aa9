"""What a stage trains: names of modules in a recipe → parameters of the network, frozen and counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from safetensors.torch import save
from torch import Tensor, nn

from agevlm.modeling.interleaving import decoder_layers
from agevlm.training.recipe import PARTS, ModuleName, StageRecipe

# Gates and the norms of queries and keys lie inside cross-attention and go by names of their own.
MODULES: tuple[str, ...] = get_args(ModuleName)
NO_MATRICES = ("embed", "lm_head", "null_", "lora_")  # parts of names: tables, vectors side by side, adapters


def module_of(parameter_name: str) -> str:
    """The trainable module that a parameter of the network belongs to.

    The placeholder's embedding and the code of places in front of the text go with the projector, and adapters with
    the language model that they sit on.
    """
    if parameter_name.endswith(("attn_gate", "mlp_gate")):
        return "gates"
    head = parameter_name.split(".")[0]
    if head == "cross_attention" and parameter_name.endswith(("q_norm.weight", "k_norm.weight")):
        return "query_key_norms"
    if head in ("projector", "position_proj", "image_token_embedding"):
        return "projector"
    if head in MODULES:
        return head
    raise AssertionError(f"parameter {parameter_name} belongs to no module of {MODULES}")


def freeze_for_stage(model: nn.Module, stage: StageRecipe) -> dict[str, dict[str, int]]:
    """Let exactly the stage's modules train, and count parameters: module → {"parameters", "trainable"}.

    The cross-attention's gates and norms train with it. With `lora`, adapters on the language model train alone.
    A module without parameters is a ValueError.
    """
    if stage.lora:
        _add_adapters(model, stage)
    trainable = stage.modules - ({"language_model"} if stage.lora else set())
    counts = {name: {"parameters": 0, "trainable": 0} for name in MODULES}
    for name, parameter in model.named_parameters():
        module = module_of(name)
        parameter.requires_grad_("lora_" in name or module in trainable)
        counts[module]["parameters"] += parameter.numel()
        counts[module]["trainable"] += parameter.numel() * parameter.requires_grad
    empty = [name for name in stage.trainable if name in trainable and not counts[name]["trainable"]]
    if empty:
        raise ValueError(f"stage {stage.name!r} trains {empty[0]}, which has no parameters in this model")
    return counts


def parameter_groups(model: nn.Module, stage: StageRecipe) -> list[dict[str, Any]]:
    """Optimiser groups by learning rate and weight decay; norms, gates, embeddings and other vectors do not decay.

    For Muon the matrices of layers are groups of their own, with `muon: True`: not embeddings, heads and adapters.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = _learning_rate(stage, module_of(name))
            decay = stage.weight_decay if parameter.ndim >= 2 and "embed" not in name else 0.0
            muon = stage.optimizer == "muon" and parameter.ndim == 2 and not any(part in name for part in NO_MATRICES)
            groups.setdefault((rate, decay, muon), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": decay, "muon": muon}
        for (rate, decay, muon), params in groups.items()
    ]


def _learning_rate(stage: StageRecipe, module: str) -> float:
    """The module's own rate, for a part of cross-attention else that of the whole, else the stage's."""
    rates = {str(name): rate for name, rate in stage.module_learning_rates.items()}
    shared = rates.get("cross_attention", stage.learning_rate) if module in PARTS else stage.learning_rate
    return rates.get(module, shared)


def describe(counts: dict[str, dict[str, int]]) -> Iterable[str]:
    """One line for each module: what it has and what of it trains."""
    for name, count in counts.items():
        state = "frozen" if not count["trainable"] else "trains"
        if 0 < count["trainable"] < count["parameters"]:
            state = f"trains {count['trainable']:,}"
        yield f"{name:16} {count['parameters']:>12,}  {state}"


def _add_adapters(model: Any, stage: StageRecipe) -> None:
    peft = _peft()
    assert stage.lora is not None
    config = peft.LoraConfig(
        r=stage.lora.rank,
        lora_alpha=stage.lora.alpha,
        use_dora=stage.lora.dora,
        target_modules=adapted_layers(model, stage),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    peft.inject_adapter_in_model(config, model.language_model)


def adapted_layers(model: Any, stage: StageRecipe) -> list[str]:
    """The linear layers that a stage puts adapters on, by their names in the language model; none without `lora`.

    ValueError where the recipe names another layer, or one whose weight is that of another module too.
    """
    if stage.lora is None:
        return []
    where = f"stage {stage.name!r}: lora.target_modules"
    decoder = model.language_model
    linear = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    if stage.lora.target_modules is None:
        inside = {id(module) for module in decoder_layers(decoder).modules()}
        chosen = [name for name, module in linear.items() if id(module) in inside]
    else:
        chosen = _named_layers(list(linear), stage.lora.target_modules, where)
    owners: dict[int, list[str]] = {}
    for name, module in decoder.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name in chosen:
        others = [owner for owner in owners[id(linear[name].weight)] if owner != name]
        if others:
            raise ValueError(
                f"{where}: the weight of {name} is that of {others[0]} too, and merging would change both; leave it out"
            )
    return chosen


def _named_layers(linear: Sequence[str], targets: Sequence[str], where: str) -> list[str]:
    """Of the names of linear layers those that are a target, or end in one behind a dot."""
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
            raise ValueError(f"{where}: {target!r} is no linear layer of the decoder; choose among {known}")
    return [name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)]


def merge_adapters(model: Any) -> None:
    """Fold the adapters of a stage into the language model's own weights, so that the next stage sees a plain model."""
    peft = _peft()
    for name, module in list(model.language_model.named_modules()):
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.merge()
            model.language_model.set_submodule(name, module.get_base_layer())
    if hasattr(model.language_model, "peft_config"):  # left by the adapters: there are none any more
        del model.language_model.peft_config


def merged_weights(model: Any) -> dict[str, Tensor]:
    """The weights that `merge_adapters` would leave, in float32 and under their plain names; the model stays as is."""
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    weights = {
        name.replace(".base_layer.", "."): weight.float()
        for name, weight in model.state_dict().items()
        if not any(name.startswith(f"{prefix}.lora_") for prefix in adapted)
    }
    for name, module in adapted.items():
        merged = copy.deepcopy(module).float()
        merged.merge()
        weights[f"{name}.weight"] = merged.get_base_layer().weight.detach()
    return weights


def adapter_files(model: Any) -> dict[str, bytes]:
    """The adapters on the language model as the files that peft reads: `PeftModel.from_pretrained(decoder, directory)`.

    What trains beside them is not in it; the base weights are those that the stage began with.
    """
    peft = _peft()
    weights = peft.get_peft_model_state_dict(model.language_model, adapter_name="default")
    named = {f"base_model.model.{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    settings = {name: sorted(x) if isinstance(x, set) else x for name, x in _adapters_of(model).to_dict().items()}
    return {
        "adapter_model.safetensors": save(named, metadata={"format": "pt"}),
        "adapter_config.json": json.dumps({**settings, "inference_mode": True}, indent=2, default=str).encode(),
    }


def _adapters_of(model: Any) -> Any:
    return model.language_model.peft_config["default"]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("lora needs the package peft: pip install 'agevlm[lora]'") from error
    return peft
