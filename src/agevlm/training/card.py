"""The model card of a run: README.md beside the weights, with the front matter that the hub reads.

What it was joined from, trained on and measured by is taken from the run's own files; what they do not say (a licence,
languages, names of datasets) from the recipe's `card`. All names and texts are escaped.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from agevlm.checkpoints import PACKAGED
from agevlm.evaluation.results import section_namer
from agevlm.files import write_beside
from agevlm.modeling.language import is_gguf, split_hub_file
from agevlm.training.recipe import LabelsSource, ParquetSource, Recipe, ScenesSource, Source, StageRecipe, load_recipe

CARD = "README.md"
TAG = "image-text-to-text"  # what the hub calls models that take pictures with text and give text
_MARKS = re.compile(r"([\\`*_{}\[\]()#~|!$])")
_LIMITS = """\
- It may name things that are not there, miss things that are, and be wrong with confidence. Do not let it decide about
  anything that matters.
- It knows what its data show, and what its parts had learned before. Their limits and biases are its own.
- Where it looks is no proof of why it answers."""

_LOADING = """\
```python
import agevlm

model, processor = agevlm.load_model("path/to/this/directory")
look = agevlm.look((model, processor), "picture.jpg", "is there a dog in the picture?", out="look.png")
print(look.answer)
```

Behind `import agevlm` the Auto classes of transformers load it too: `AutoModelForImageTextToText.from_pretrained`."""


def write_card(run: Path) -> Path:
    """Write the card of a run beside its model, from what the run holds by now, and give its path.

    Figures are there once the run has been measured.
    """
    path = run / "model" / CARD
    with write_beside(path) as beside:
        beside.write_text(card_of(run), encoding="utf-8")
    return path


def card_of(run: Path) -> str:
    """The text of a card: of `recipe.yaml`, `environment.json`, `stages.json` and `metrics.json`, where they are."""
    recipe = load_recipe(run / "recipe.yaml")
    environment, stages, metrics = (_read(run / f"{name}.json") for name in ("environment", "stages", "metrics"))
    sections = [
        f"---\n{_front_matter(recipe)}\n---",
        f"# {escaped(recipe.name)}",
        _summary(recipe, environment or {}),
        f"## Made of\n\n{_table(('part', 'from'), _parts(recipe, stages or []))}",
        f"## Trained on\n\n{_table(('data', 'what', 'in stages'), _sources(recipe))}",
        f"## Stages\n\n{_table(_STAGE, _stages(recipe, stages or []))}",
        f"## Figures\n\n{_figures(recipe, metrics)}",
        f"## Limits\n\n{_LIMITS}",
        f"## How to load it\n\n{_LOADING}",
    ]
    return "\n\n".join(sections) + "\n"


def escaped(text: str) -> str:
    """Text as Markdown shows it, on one line: no mark-up, no HTML, no cell of a table begins in it."""
    return _MARKS.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _front_matter(recipe: Recipe) -> str:
    """YAML; what is not known is left out."""
    card = recipe.card
    data = ModelCardData(
        base_model=_base_models(recipe) or None,
        datasets=list(card.datasets) or None,
        language=list(card.languages) or None,
        library_name="agevlm",
        license=card.license,
        model_name=recipe.name,
        pipeline_tag=TAG,
        tags=["agevlm", "vision-language-model", "attention-guidance"],
    )
    return data.to_yaml()


def _base_models(recipe: Recipe) -> list[str]:
    """Hub ids of what the network is joined from, those that the recipe's card names included."""
    settings = recipe.model
    named = [settings.init] if settings.init else [settings.language_model, settings.vision_model]
    found = [on_hub for name in named if name and (on_hub := _on_hub(name))]
    return list(dict.fromkeys([*found, *recipe.card.base_models]))


def _on_hub(name: str) -> str | None:
    """The hub id of a model, which may be that of its GGUF file; None where it is not on the hub."""
    file = split_hub_file(name)
    if file is not None:
        return file[0]
    return name if name.count("/") == 1 and not is_gguf(name) and not Path(name).exists() else None


def _summary(recipe: Recipe, environment: Mapping[str, Any]) -> str:
    how = "cross-attention" if recipe.model.architecture == "cross_attention" else "image tokens in front of the text"
    guided = any(stage.guidance and stage.guidance.weight for stage in recipe.stages)
    where = ", guided to where things are in its pictures" if guided else ""
    made = f"agevlm {escaped(str(environment.get('agevlm', '')))}".strip()
    return (
        f"A vision-language model that reads pictures by {how}{where}. Trained by {made} on the recipe in "
        "[recipe.yaml](recipe.yaml); versions and machine are in [environment.json](environment.json)."
    )


def _parts(recipe: Recipe, stages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    settings = recipe.model
    if stages:
        yield "parameters", f"{stages[-1]['total_parameters'] / 1e6:.3g} million"
    if settings.image_size:
        yield "side of a picture", f"{settings.image_size} pixels"
    if settings.init:
        yield "trained model to go on from", _named(settings.init)
        return
    yield "language model", _named(settings.language_model)
    yield "vision model", _named(settings.vision_model)


def _named(model: str) -> str:
    """A part without the path of whoever trained it."""
    if model in PACKAGED:
        return f"{escaped(model)} of the package"
    return f"{escaped(Path(model).name)}, files of whoever trained it" if Path(model).exists() else escaped(model)


def _sources(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    for name, source in recipe.data.items():
        stages = [escaped(stage.name) for stage in recipe.stages if stage.data.get(name)]
        if stages:
            yield escaped(name), escaped(_told(source)), ", ".join(stages)


def _told(source: Source) -> str:
    if isinstance(source, ScenesSource):
        return f"{source.num_scenes} scenes drawn by the package"
    if isinstance(source, LabelsSource):
        return f"pictures with labels, {source.labels.name}"
    assert isinstance(source, ParquetSource)
    share = "" if source.share == 1 else f", {source.share:.0%} of its samples"
    return f"a dataset, {source.parquet.name}{share}"


_STAGE = ("stage", "steps", "pictures a step", "learning rate", "trains", "loss", "minutes")


def _stages(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    seconds = {record["name"]: record["seconds"] for record in records}
    for stage in recipe.stages:
        pictures = stage.images_per_batch * stage.gradient_accumulation_steps
        took = f"{seconds[stage.name] / 60:.1f}" if stage.name in seconds else "–"
        numbers = (str(stage.steps), str(pictures), f"{stage.learning_rate:g}")
        yield escaped(stage.name), *numbers, escaped(_trains(stage)), _loss(stage), took


def _trains(stage: StageRecipe) -> str:
    adapters = ["adapters of the language_model"] if stage.lora else []
    return ", ".join([*stage.trainable, *adapters])


def _loss(stage: StageRecipe) -> str:
    if stage.guidance is None or not stage.guidance.weight:
        return "language modelling"
    return f"language modelling + {stage.guidance.weight:g} × guidance ({escaped(stage.guidance.loss)})"


def _figures(recipe: Recipe, metrics: Any) -> str:
    if not metrics or recipe.evaluation is None:
        return "It has not been measured."
    about = metrics.get("provenance", {})
    strange = about.get("not_trained", ())
    parts = {name: part for name, part in metrics.items() if name != "provenance"}
    rows = list(_scores(parts, section_namer(metrics), strange))
    pictures = f", {about['num_images']} pictures" if "num_images" in about else ""
    head = (
        f"Measured on {escaped(Path(recipe.evaluation.benchmark).name)}{pictures}; in brackets 95 % intervals over the "
        "pictures. A coin is right about half of yes and no."
    )
    never = f"Never asked in training, and left out here: {escaped(', '.join(strange))}." if strange else ""
    told = (head, _table(("questions", "number", "accuracy", "answered yes"), rows), never, _looking(metrics))
    return "\n\n".join(text for text in told if text)


def _looking(metrics: Mapping[str, Any]) -> str:
    """Whether attention lies on what a word names, in sentences; "" where that was not measured."""
    pointing, null = metrics.get("pointing"), metrics.get("null_token")
    told = []
    if pointing:
        told.append(
            f"Its attention is highest on the thing that a word names for {_with_interval(pointing)} of "
            f"{pointing['num_words']} words."
        )
    if null:
        told.append(f"The null token tells words whose thing is absent with an AUROC of {null['auroc']:.3f}.")
    return " ".join(told)


def _scores(
    metrics: Mapping[str, Any], name_of: Callable[[str], str], strange: Collection[str], prefix: str = ""
) -> Iterator[Sequence[str]]:
    for name, part in metrics.items():
        if not isinstance(part, dict) or name.startswith("by_") or prefix + name in strange:
            continue
        if "accuracy" in part and "num_questions" in part:
            yes = part.get("yes_ratio")
            shown = "–" if yes is None else f"{yes:.3f}"
            yield escaped(name_of(prefix + name)), str(part["num_questions"]), _with_interval(part), shown
        yield from _scores(part, name_of, strange, f"{prefix}{name}.")


def _with_interval(part: Mapping[str, Any]) -> str:
    interval = part.get("accuracy_interval")
    return f"{part['accuracy']:.3f}" + (" ({:.3f} to {:.3f})".format(*interval) if interval else "")


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
