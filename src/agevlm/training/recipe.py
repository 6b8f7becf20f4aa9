"""The recipe of a training run: one YAML file, read into these models. What a stage is stands here and nowhere else.

Precedence: defaults, then the file, then `--set stages.2.learning_rate=1e-4`. A key that is not known is an error that
names the nearest one. The resolved recipe is written beside every checkpoint.
"""

from __future__ import annotations

import copy
import difflib
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from agevlm.data.augmentation import Augmentation
from agevlm.data.language import PRESENCE_WORDINGS, check_kinds
from agevlm.data.mask_noise import MaskNoise
from agevlm.data.scenes import WorldSpec
from agevlm.documents import Strict, parse_yaml, read_yaml
from agevlm.guidance import GUIDANCE_LOSSES

ModuleName = Literal["gates", "query_key_norms", "projector", "cross_attention", "language_model", "vision_model"]
MAX_SAMPLES = 2**28  # of a stage: their order is drawn before it begins
MAX_QUESTIONS = 2**16  # of a batch: it is in memory at once
PARTS = ("gates", "query_key_norms")  # of the cross-attention, and train with it
Weight = Annotated[float, Field(ge=0, le=1e9)]
Rate = Annotated[float, Field(gt=0, le=1e3)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Steps = Annotated[int, Field(ge=1, le=10**9)]
Images = Annotated[int, Field(ge=1, le=10**9)]
Tested = Annotated[int, Field(ge=1, le=10**5)]
"""Pictures of an evaluation, whose questions and answers are in memory at once."""
Commands = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]
AtOnce = Annotated[int, Field(ge=1, le=2**16)]
"""What is in memory at once: pictures of a batch, questions on a picture."""


class ModelRecipe(Strict):
    """What the network is joined from. With `init` the checkpoint decides all but `attn_implementation`."""

    architecture: Literal["cross_attention", "concat"] = "cross_attention"
    """How the decoder reads the image: by cross-attention, or as image tokens in front of the text (the baseline)."""
    language_model: str = "tiny-llama"
    """A directory, a hub id, a GGUF file, or a name in the package."""
    default_system_prompt: bool = True
    """Whether the chat template may begin a conversation with a system prompt of its own: SmolLM2's has 20 tokens."""
    vision_model: str = "tiny-convnext"
    """A directory, a hub id, `timm/NAME`, or a name in the package."""
    vision_stages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the vision model's feature maps, joined to one grid. Null: what its configuration names, as a rule the
    last."""
    vision_grid: Literal["coarse", "fine"] = "coarse"
    """Of joined feature maps: coarse averages the finer ones down, fine interpolates the coarser ones up."""
    init: str | None = None
    """A trained model to go on from, in place of the two above."""
    cross_attention_layers: tuple[int, ...] | None = None
    """Of cross_attention: indices in the combined stack of layers. Null: evenly spread, one for four decoder layers."""
    null_token: bool = True
    """Of cross_attention: a learnable token that words for absent things are guided to."""
    query_key_norm_init: float = Field(1.0, gt=0, le=1e3)
    """Of cross_attention: start of the norms of queries and keys. Above 1 attention starts sharper."""
    pool_size: int = Field(1, ge=1, le=64)
    """Of concat: side of the squares of cells that make one image token. 2 keeps a quarter of the tokens."""
    image_positions: Literal["none", "values", "keys_and_values"] = "values"
    """Where the code of a place is added. Concat adds it to the image tokens unless none."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """The attention kernel. Null: the decoder's own."""
    image_size: int | None = Field(None, ge=8, le=2048)
    """Side of the square picture in pixels. Null: as the vision model's own processor says."""
    language_shape: str | None = None
    """What a plan takes the language model for while it is not at hand: a shape in the package, or a config.json."""
    vision_shape: str | None = None
    """The same of the vision model."""


class ScenesSource(Strict):
    """The embedded world: scenes that are drawn while training runs."""

    scenes: WorldSpec = WorldSpec()
    """Parameters of the world."""
    num_scenes: Images = 16_000
    """How many scenes."""
    seed: Seed | None = None
    """Which scenes. Null: the recipe's seed."""


class ExpectedData(Strict):
    """What a plan reckons with while a dataset is not there."""

    num_images: Images
    """How many pictures."""
    text_len: AtOnce
    """Tokens of a conversation, the longest of a batch."""


class ParquetSource(Strict):
    """A grounded dataset in the project's Parquet schema, as `agevlm data coco` writes it."""

    parquet: Path
    """The directory of the dataset."""
    share: float = Field(1.0, gt=0, le=1)
    """Of its samples, how many are taken. What a smaller share has, a larger one of the same seed has too."""
    seed: Seed | None = None
    """Which samples a share below 1 takes. Null: the recipe's seed."""
    expected: ExpectedData | None = None
    """What a plan reckons with while the dataset is not there. Null: what it assumes of any."""
    allow_outside: bool = False
    """Take pictures from outside of the directory, where the dataset names such."""
    augment: Augmentation | None = None
    """Other views of its pictures; all questions are then made from the annotated instances. Null: the pictures as they
    are."""
    shuffle: Literal["samples", "groups"] = "samples"
    """samples: all among each other. groups: row groups, and then the samples of eight at a time, so that a pass reads
    a large dataset once; the order is less mixed."""

    @model_validator(mode="after")
    def _consistent(self) -> ParquetSource:
        if self.seed is not None and self.share == 1:
            raise ValueError("seed says which samples a share takes: give a share below 1, or leave out seed")
        if self.augment is not None and self.shuffle == "groups":
            raise ValueError("views of pictures are drawn in any order: shuffle groups without augment, or samples")
        return self


class LabelsSource(Strict):
    """Pictures whose class is known and whose masks are not."""

    labels: Path
    """A directory with a folder of pictures for each class."""
    names: dict[str, str | None] = Field({})
    """Folder → what its class is called. Null leaves the folder out. Else its own name, with spaces for underscores."""
    augment: Augmentation | None = None
    """Other views of its pictures. Null: the pictures as they are."""


def _source_tag(value: Any) -> str:
    for kind, key, tag in ((ParquetSource, "parquet", _TAGS[1]), (LabelsSource, "labels", _TAGS[2])):
        if key in value if isinstance(value, dict) else isinstance(value, kind):
            return tag
    return _TAGS[0]


_TAGS = ("a source of scenes", "a source in Parquet", "a source of labels")
Source = Annotated[
    Annotated[ScenesSource, Tag(_TAGS[0])]
    | Annotated[ParquetSource, Tag(_TAGS[1])]
    | Annotated[LabelsSource, Tag(_TAGS[2])],
    Discriminator(_source_tag),
]


class GuidanceRecipe(Strict):
    """The guidance loss of a stage: which, how strong, on which layers and heads, on which positions."""

    loss: str = "kl"
    """The name of a guidance loss: kl, mass or bce_dice."""
    weight: Weight = 1.0
    """Beside language modelling. 0: not computed. From 0.5 to 3 it hardly matters, below it learns more slowly."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Numbers of the layers that look at images, from 0. Null: all."""
    heads: Literal["mean", "each"] = "mean"
    """Whether the average of the heads is guided, or every head."""
    answer_position: bool = True
    """Guide the position that predicts the answer as well, to all that was asked about."""
    free_answers: tuple[str, ...] = ()
    """Kinds of conversation whose answer position is left free all the same."""
    mask_noise: MaskNoise | None = None
    """Masks as a worse teacher would give them."""

    @model_validator(mode="after")
    def _known_loss(self) -> GuidanceRecipe:
        if self.loss not in GUIDANCE_LOSSES:
            raise ValueError(f"unknown guidance loss {self.loss!r}; known are {', '.join(GUIDANCE_LOSSES)}")
        return self


class LoraRecipe(Strict):
    """Low-rank adapters on the language model in place of its own weights; merged into them at the end of the stage."""

    rank: AtOnce = 16
    """Of the two factors."""
    alpha: float = Field(32.0, gt=0, le=1e6)
    """Scale times rank."""
    dora: bool = False
    """[DoRA](https://arxiv.org/abs/2402.09353): the lengths of the rows of weights train on their own."""
    keep: bool = False
    """Write the adapters, too, beside the stage's model: `adapters/`, which peft reads."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of linear layers of the decoder. Null: every linear layer of the decoder's layers."""


class PresenceRecipe(Strict):
    """Questions about presence that leave no habit to learn."""

    balanced: bool = True
    """Every category of a source is asked as often where it is as where it is not."""
    hard_ratio: float = Field(0.0, ge=0, le=1)
    """Of the questions about absent things, before they are balanced: those that ask for one often seen with something
    that is there."""
    wordings: tuple[Annotated[str, Field(pattern=r"^[^{}]*\{(plural)?\}[^{}]*$")], ...] = Field(
        PRESENCE_WORDINGS, min_length=1
    )
    """The question in words, each with {} for the thing and its article, or {plural}; one is drawn each time."""


class StageRecipe(Strict):
    """One stage: data and mixture, trainable modules, losses, optimiser."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Letters, digits, `.`, `-` and `_`. Names the stage's directory."""
    data: dict[str, Weight] = Field({"scenes": 1.0})
    """Name of a source → its weight in the mixture."""
    kinds: dict[str, Weight] | None = None
    """Kind of conversation → its weight. Null: the default mixture, `DEFAULT_KINDS`."""
    presence: PresenceRecipe | None = None
    """How presence is asked. Null: naturally, what is there and what is not equally often."""
    trainable: tuple[ModuleName, ...]
    """Names of modules. May be empty where `lora` trains."""
    lora: LoraRecipe | None = None
    """Adapters on the language model. Null: none."""
    guidance: GuidanceRecipe | None = None
    """The guidance loss. Null: none."""
    steps: Steps
    """Optimiser steps."""
    images_per_batch: AtOnce = 32
    """Samples of a batch, all processes together."""
    questions_per_image: AtOnce = 4
    """Conversations on each sample. They share its vision pass."""
    gradient_accumulation_steps: AtOnce = 1
    """Batches of a step."""
    group_by_length: bool = True
    """A batch holds long kinds (captions, conversations) or short ones: less padding."""
    text_ratio: float = Field(0.0, ge=0, le=1)
    """Share of conversations read as plain text, without their pictures: keeps language."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW with betas 0.9 and 0.98, or [Muon](https://kellerjordan.github.io/posts/muon) for matrices of layers."""
    learning_rate: Rate = 2e-3
    """Peak of the schedule. Updates of Muon are as large as those of AdamW usually are."""
    module_learning_rates: dict[ModuleName, Rate] = Field({})
    """Module → a learning rate of its own."""
    lr_scheduler: Literal["cosine", "linear", "constant_with_warmup", "warmup_stable_decay"] = "cosine"
    """Course of the learning rate. warmup_stable_decay falls in the last 30 % of the steps."""
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    """Share of the steps."""
    weight_decay: Weight = 0.01
    """Of matrices. Norms, gates, embeddings and other vectors do not decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool = False
    """Less memory, more time, the same gradients."""

    @model_validator(mode="after")
    def _consistent(self) -> StageRecipe:
        if self.kinds is not None:
            asked = check_kinds(self.kinds)
            if self.presence and not asked.keys() & {"presence", "conversation"}:
                raise ValueError(
                    f"stage {self.name!r} says how presence is asked and asks none: give kinds a presence, or leave "
                    "out presence"
                )
        if not any(self.data.values()):
            raise ValueError(f"stage {self.name!r} has no data of a weight above 0, got {self.data}")
        samples = self.steps * self.images_per_batch * self.gradient_accumulation_steps
        if samples > MAX_SAMPLES:
            raise ValueError(
                f"stage {self.name!r} sees {samples} samples (steps × images_per_batch × gradient_accumulation_steps), "
                f"and the most are {MAX_SAMPLES}"
            )
        questions = self.images_per_batch * self.questions_per_image
        if questions > MAX_QUESTIONS:
            raise ValueError(
                f"stage {self.name!r} has {questions} questions in a batch (images_per_batch × questions_per_image), "
                f"and the most are {MAX_QUESTIONS}"
            )
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
    """What is measured at the end."""

    benchmark: str = "scenes"
    """scenes, or the directory of a dataset in the project's Parquet schema."""
    num_images: Tested = 600
    """Pictures to ask about, at most."""
    split: Literal["validation", "test"] = "test"
    """Of scenes: which range of seeds they are drawn from."""
    seed: Seed = 0
    """Of the test world."""
    correct_prior: bool = False
    """Report yes/no answers less what a blank picture says, beside those given."""
    allow_outside: bool = False
    """Of a dataset: take pictures from outside of its directory, where it names such."""
    batch_size: AtOnce = 256
    """Questions at once. Scores do not depend on it."""


class CardRecipe(Strict):
    """What the model card says that a run cannot know."""

    license: str | None = None
    """Of the trained weights, by its name on the hub (apache-2.0, llama3.2, …). Null: not told."""
    languages: tuple[str, ...] = ()
    """Of the text, by their codes (en)."""
    datasets: tuple[str, ...] = ()
    """Hub ids of what the data were made of."""
    base_models: tuple[str, ...] = ()
    """Hub ids beside those that `model` names: what a converted vision model was."""


class Recipe(Strict):
    """A whole run."""

    name: str = "run"
    """A name for people."""
    seed: Seed = 0
    """Of scenes, new weights and the order of data."""
    model: ModelRecipe = ModelRecipe()
    """What the network is joined from."""
    data: dict[str, Source] = Field({"scenes": ScenesSource()})
    """Name → source."""
    prepare: dict[str, Commands] = Field({})
    """Directory or hub id that the recipe names → the commands that make it, one or several in order. `--dry-run` tells
    them where it is missing; nothing runs them."""
    stages: tuple[StageRecipe, ...] = Field(min_length=1)
    """A list of stages, each with a name of its own."""
    evaluation: EvaluationRecipe | None = EvaluationRecipe()
    """What is measured at the end. Null: nothing."""
    card: CardRecipe = CardRecipe()
    """Licence, languages and names of data, for the model card."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of products; what trains is float32. auto: bfloat16 where the machine computes in it, else float32."""
    compile: bool = False
    """Compile the decoder and the cross-attention by `torch.compile`: about a third less time for each step."""
    shard: bool = False
    """Under `accelerate launch`: divide weights, gradients and optimiser over the processes (FSDP2), in place of a
    whole model in each."""
    cache_features: bool = True
    """Keep the feature maps of a frozen vision model on disk."""
    num_workers: int = Field(1, ge=0, le=1024)
    """Processes that draw, read and collate."""
    save_steps: Steps = 500
    """Steps between checkpoints."""
    snapshot_steps: Steps | None = None
    """Keep the model every so many steps of a stage, in `snapshots/`, to be measured along the training."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where losses and learning rates go beside the log, as they come. The packages are the user's to install."""
    cache_dir: Path | None = None
    """Where feature maps are kept. Null: inside the run, removed at its end. A directory may be shared by runs."""
    max_length: int = Field(512, ge=8, le=10**6)
    """Tokens of a conversation. What is longer is cut, and counted."""

    @model_validator(mode="after")
    def _sources_exist(self) -> Recipe:
        for stage in self.stages:
            for name in stage.data:
                if name not in self.data:
                    known = ", ".join(self.data)
                    raise ValueError(f"stage {stage.name!r} asks for data {name!r}; the recipe has {known}")
        if self.shard and self.compile:
            raise ValueError("shard divides the layers that compile would compile: set one of them to false")
        whole = [stage.name for stage in self.stages if self.shard and stage.optimizer == "muon"]
        if whole:
            raise ValueError(
                f"stage {whole[0]!r} trains by muon, which wants whole matrices: use adamw, or shard=false"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages must have names of their own, got {names}")
        return self

    @property
    def used_data(self) -> set[str]:
        """Names of the sources that a stage reads: of a weight above 0 in any."""
        return {name for stage in self.stages for name, weight in stage.data.items() if weight}

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
        raise FileNotFoundError(errno.ENOENT, "no recipe at", str(path))
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, a recipe is a mapping with the key stages")
    if is_comparison(content):
        raise ValueError(f"{path} is a comparison of several runs: train it with agevlm compare run")
    content = apply_overrides(content, overrides)
    if seed is not None:
        content["seed"] = seed
    return parse_recipe(content, str(path))


def is_comparison(content: Any) -> bool:
    """Whether this is the content of a comparison's file, and not of one training's."""
    return isinstance(content, dict) and bool({"arms", "extends"} & content.keys())


def parse_recipe(content: dict[str, Any], name: str) -> Recipe:
    """Check the content of a recipe; `name` says in errors where it came from."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ValueError("\n".join(f"{name}: {line}" for line in explain(error))) from error


def is_recipe_of(path: Path, recipe: Recipe) -> bool:
    """Whether a file holds this recipe. Keys that it lacks, for an earlier version wrote it, have their defaults."""
    try:
        return parse_recipe(read_yaml(path), str(path)) == recipe
    except ValueError:
        return False


def dump_recipe(recipe: Strict) -> str:
    """The resolved recipe, or comparison, as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe's content with each `key.path=value` set, in order; values are YAML."""
    changed = copy.deepcopy(content)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {override!r:.120} is not of the form key.path=value")
        _set(changed, key, parse_yaml(value, f"--set {override!r:.120}: the value"))
    return changed


def apply_changes(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's content with each key path → value set, in order."""
    changed = copy.deepcopy(content)
    for key, value in changes.items():
        _set(changed, key, copy.deepcopy(value))
    return changed


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    parts = key.split(".")
    place: Any = content
    while parts:
        at, parts = _next(place, parts, key)
        if not parts:
            place[at] = value
        elif place[at] is None:
            place[at] = {}
        elif not isinstance(place[at], dict | list):
            raise ValueError(f"--set {key}: {place[at]!r:.120} holds no {parts[0]!r}")
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
    numbers = {str(index): index for index in range(len(place))}
    if part not in numbers:
        raise ValueError(
            f"--set {key:.120}: {part!r:.120} is neither a number below {len(place)} nor a name in the list"
        )
    return numbers[part]


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
