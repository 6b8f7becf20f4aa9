"""The recipe of a training run: one YAML file, read into these models. What a stage is stands here and nowhere else.

Precedence: defaults, then the file, then `--set stages.2.learning_rate=1e-4`. A key that is not known is an error that
names the nearest one. The resolved recipe is written beside every checkpoint.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from agevlm.data.language import check_kinds
from agevlm.data.mask_noise import MaskNoise
from agevlm.data.scenes import WorldSpec
from agevlm.guidance import GUIDANCE_LOSSES

ModuleName = Literal["gates", "query_key_norms", "projector", "cross_attention", "language_model", "vision_model"]
PARTS = ("gates", "query_key_norms")  # of the cross-attention, and train with it
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    """Settings that refuse keys they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRecipe(Strict):
    """What the network is joined from, and how. `init` goes on from a trained model instead."""

    architecture: Literal["cross_attention", "concat"] = "cross_attention"  # concat: image tokens in front of the text
    language_model: str = "tiny-llama"
    vision_model: str = "tiny-convnext"
    init: str | None = None
    cross_attention_layers: tuple[int, ...] | None = None  # of cross_attention, as the next
    null_token: bool = True
    query_key_norm_init: float = Field(1.0, gt=0)  # above 1 attention starts sharper
    pool_size: int = Field(1, ge=1)  # of concat: side of the squares of cells that make one image token
    image_positions: Literal["none", "values", "keys_and_values"] = "values"  # concat adds them to the image tokens
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    image_size: int | None = Field(None, ge=8)  # None: as the vision model's own processor says


class ScenesSource(Strict):
    """The embedded world: `num_scenes` scenes, drawn from `seed` (None: the recipe's)."""

    scenes: WorldSpec = WorldSpec()
    num_scenes: int = Field(16_000, ge=1)
    seed: int | None = None


class ParquetSource(Strict):
    """A grounded dataset in the project's Parquet schema, as `agevlm data coco` writes it."""

    parquet: Path


def _source_tag(value: Any) -> str:
    is_parquet = "parquet" in value if isinstance(value, dict) else isinstance(value, ParquetSource)
    return _TAGS[is_parquet]


_TAGS = ("a source of scenes", "a source in Parquet")
Source = Annotated[
    Annotated[ScenesSource, Tag(_TAGS[0])] | Annotated[ParquetSource, Tag(_TAGS[1])], Discriminator(_source_tag)
]


class GuidanceRecipe(Strict):
    """The guidance loss of a stage: which, how strong, on which layers and heads, on which positions."""

    loss: str = "kl"
    weight: float = Field(1.0, ge=0)
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = (
        None  # numbers of layers that look at images, from 0; None: all
    )
    heads: Literal["mean", "each"] = "mean"
    answer_position: bool = True  # guide the position that predicts an answer as well, to all that was asked about
    free_answers: tuple[str, ...] = ()  # kinds of conversation whose answer position is left free all the same
    mask_noise: MaskNoise | None = None  # masks as a worse teacher would give them

    @model_validator(mode="after")
    def _known_loss(self) -> GuidanceRecipe:
        if self.loss not in GUIDANCE_LOSSES:
            raise ValueError(f"unknown guidance loss {self.loss!r}; known are {', '.join(GUIDANCE_LOSSES)}")
        return self


class LoraRecipe(Strict):
    """Low-rank adapters on the language model in place of its own weights; merged into them at the end of the stage."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class StageRecipe(Strict):
    """One stage: data and mixture, trainable modules, losses, optimiser."""

    name: str = Field(pattern=r"^[\w.-]+$")  # names the stage's directory
    data: dict[str, Weight] = {"scenes": 1.0}  # name of a source → weight in the mixture
    kinds: dict[str, float] | None = None  # kind of conversation → weight; None: DEFAULT_KINDS of data/language.py
    trainable: tuple[ModuleName, ...]
    lora: LoraRecipe | None = None
    guidance: GuidanceRecipe | None = None
    steps: int = Field(ge=1)
    images_per_batch: int = Field(32, ge=1)
    questions_per_image: int = Field(4, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    group_by_length: bool = True  # batches of long kinds (captions, conversations) or of short ones
    text_ratio: float = Field(
        0.0, ge=0, le=1
    )  # of conversations, read as plain text without their pictures: keeps language
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of layers; all else by AdamW
    learning_rate: float = Field(2e-3, gt=0)
    module_learning_rates: dict[ModuleName, Rate] = {}  # for modules that want another one than the rest
    lr_scheduler: Literal["cosine", "linear", "constant_with_warmup", "warmup_stable_decay"] = "cosine"
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> StageRecipe:
        if self.kinds is not None:
            check_kinds(self.kinds)
        if not any(self.data.values()):
            raise ValueError(f"stage {self.name!r} has no data of a weight above 0, got {self.data}")
        if not self.modules:
            raise ValueError(f"stage {self.name!r} trains nothing; name modules in trainable")
        if self.lora and "language_model" in self.trainable:
            raise ValueError(f"stage {self.name!r} trains the language model whole and by lora; choose one")
        unused = set(self.module_learning_rates) - self.modules
        if unused:
            raise ValueError(
                f"stage {self.name!r} has a learning rate for {sorted(unused)[0]}, which it does not train"
            )
        return self

    @property
    def modules(self) -> set[str]:
        """What trains: gates and norms go with the cross-attention, adapters with the language model."""
        parts = PARTS if "cross_attention" in self.trainable else ()
        adapted = ("language_model",) if self.lora else ()
        return {*self.trainable, *parts, *adapted}


class EvaluationRecipe(Strict):
    """What is measured at the end. `benchmark` is "scenes" or a directory of the project's Parquet."""

    benchmark: str = "scenes"
    num_images: int = Field(600, ge=1)
    split: Literal["validation", "test"] = "test"
    seed: int = 0
    batch_size: int = Field(256, ge=1)  # questions at once; scores do not depend on it


class Recipe(Strict):
    """A whole run."""

    name: str = "run"
    seed: int = 0
    model: ModelRecipe = ModelRecipe()
    data: dict[str, Source] = {"scenes": ScenesSource()}
    stages: tuple[StageRecipe, ...] = Field(min_length=1)
    evaluation: EvaluationRecipe | None = EvaluationRecipe()
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"  # of products; auto: see `choose_arithmetic`
    compile: bool = False  # the layers of the decoder, those of cross-attention with them, by torch.compile
    cache_features: bool = True  # keep the feature maps of a frozen vision model on disk
    num_workers: int = Field(1, ge=0)
    save_steps: int = Field(500, ge=1)
    snapshot_steps: int | None = Field(None, ge=1)  # keep the model every so many steps of a stage, in snapshots/
    cache_dir: Path | None = None  # None: inside the run, removed at its end; a directory: kept, and shared by runs
    max_length: int = Field(512, ge=8)  # tokens of a conversation; what is longer is cut, and counted

    @model_validator(mode="after")
    def _sources_exist(self) -> Recipe:
        for stage in self.stages:
            for name in stage.data:
                if name not in self.data:
                    known = ", ".join(self.data)
                    raise ValueError(f"stage {stage.name!r} asks for data {name!r}; the recipe has {known}")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages must have names of their own, got {names}")
        return self

    @property
    def reads_features(self) -> bool:
        """Whether stages read cached feature maps: no stage trains the vision model, and `cache_features` is on."""
        return self.cache_features and all("vision_model" not in stage.trainable for stage in self.stages)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read a recipe file, apply `key.path=value` overrides and a seed, and check everything.

    Errors are ValueErrors of one line for each wrong key: what was got, what was expected, the nearest known name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, a recipe is a mapping with the key stages")
    if "arms" in content:
        raise ValueError(f"{path} is a comparison of several runs: train it with agevlm compare run")
    content = apply_overrides(content, overrides)
    if seed is not None:
        content["seed"] = seed
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[str, Any], name: str) -> Recipe:
    """Check the content of a recipe; `name` says in errors where it came from."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ValueError("\n".join(f"{name}: {line}" for line in explain(error))) from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe's content with each `key.path=value` set, in order; values are YAML."""
    changed = copy.deepcopy(content)
    for override in overrides:
        _apply(changed, override)
    return changed


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {override!r} is not of the form key.path=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override!r}: the value is not YAML: {' '.join(str(error).split())}") from error
    parts = key.split(".")
    place: Any = content
    while parts:
        at, parts = _next(place, parts, key)
        if not parts:
            place[at] = parsed
        elif place[at] is None:
            place[at] = {}
        elif not isinstance(place[at], dict | list):
            raise ValueError(f"--set {key}: {place[at]!r} holds no {parts[0]!r}")
        place = place[at]


def _next(place: Any, parts: list[str], key: str) -> tuple[Any, list[str]]:
    """Where a key's path goes next in a mapping or list, and the parts of it that are left.

    Names have dots, too (`caption.relation`): the longest that is there goes before its parts, and beside a name with a
    value of its own (`caption: 0.8`) what follows is a longer name.
    """
    if isinstance(place, list):
        return _position(place, parts[0], key), parts[1:]
    for end in range(len(parts), 0, -1):
        if (name := ".".join(parts[:end])) in place:
            if end < len(parts) and isinstance(place[name], int | float):
                return ".".join(parts), []
            return name, parts[end:]
    place[parts[0]] = None
    return parts[0], parts[1:]


def _position(place: list[Any], part: str, key: str) -> int:
    named = [index for index, item in enumerate(place) if isinstance(item, dict) and item.get("name") == part]
    if named:
        return named[0]
    if not part.isdigit() or int(part) >= len(place):
        raise ValueError(f"--set {key}: {part!r} is neither a number below {len(place)} nor a name in the list")
    return int(part)


def explain(error: ValidationError, root: type[BaseModel] = Recipe) -> Iterator[str]:
    """A line for each thing that is wrong in a recipe of the kind `root`; unknown keys with the nearest known one."""
    problems = error.errors()
    for problem in problems:
        inside = [other["loc"] for other in problems if other["loc"][: len(problem["loc"])] == problem["loc"]]
        if problem["type"] == "too_short" and len(inside) > 1:
            continue  # only because an item of it is wrong, which has a line of its own
        place = [str(part) for part in problem["loc"] if part not in _TAGS]
        where = ".".join(place) or "recipe"
        if problem["type"] == "extra_forbidden":
            known = _known_keys(place[:-1], root)
            nearest = difflib.get_close_matches(place[-1], known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(known)}"
            yield f"{where}: unknown key{hint}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            got = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r}"
            yield f"{where}: {message}{got if problem['type'] != 'value_error' else ''}"


def _known_keys(place: Sequence[str], root: type[BaseModel]) -> list[str]:
    """The keys that the settings at a place of the recipe know."""
    kinds: list[Any] = [root]
    for part in place:
        kinds = [inner for kind in kinds for inner in _inside(kind, part)]
    return [name for kind in kinds for name in kind.model_fields]


def _inside(kind: Any, part: str) -> list[Any]:
    """The settings, or collections of them, that `part` names inside settings or a collection of a kind."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _plain(kind.model_fields[part].annotation) if part in kind.model_fields else []
    return _plain(get_args(kind)[1 if get_origin(kind) is dict else 0])


def _plain(annotation: Any) -> list[Any]:
    """An annotation without its metadata and alternatives, as far as it holds settings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (dict, tuple):
        return [annotation] if any(_plain(argument) for argument in get_args(annotation)) else []
    return [inner for argument in get_args(annotation) for inner in _plain(argument)]
