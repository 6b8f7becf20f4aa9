"""Measure a model on a named benchmark and write what came out: what `agevlm evaluate` and the end of a training call.

A benchmark is "scenes", drawn fresh from a seed, or the directory of a dataset in the project's Parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agevlm.checkpoints import load_vlm, resolve_language_model, resolve_model
from agevlm.data.chat import render_conversation
from agevlm.data.language import KINDS, family
from agevlm.data.schema import AnnotatedImage, Conversation, Sample
from agevlm.documents import read_yaml
from agevlm.evaluation.answering import PLAIN
from agevlm.evaluation.perplexity import directory_perplexity, text_perplexity
from agevlm.evaluation.questions import LazySamples
from agevlm.evaluation.results import Evaluation, provenance, write_evaluation
from agevlm.evaluation.runner import evaluate
from agevlm.evaluation.scores import Metrics

if TYPE_CHECKING:
    from agevlm.data.parquet import ParquetDataset
    from agevlm.data.scenes import WorldSpec

SCENES = "scenes"
DEFAULT_NUM_SCENES = 600
NUM_TEXTS = 200

Progress = Callable[[str, int, int], None]  # what is asked about, samples done, samples in all


@dataclass(frozen=True)
class Settings:
    """How to measure. `num_images` None is 600 scenes, or the whole dataset; `batch_size` None what suits the model.

    `language_model` is what the VLM was made from, to measure its perplexity before. None: what the recipe beside the
    checkpoint names, where that is on this machine; else "before" stays empty. `correct_prior` adds the figures of
    yes/no answers less what a blank picture says. `allow_outside` takes pictures from outside of a dataset's directory,
    where its rows name such.
    """

    seed: int = 0
    num_images: int | None = None
    split: str = "test"
    parser: str = "first_word"
    answering: str = PLAIN
    batch_size: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    language_model: str | None = None
    correct_prior: bool = False
    allow_outside: bool = False


def evaluate_benchmark(
    model: str | Path,
    benchmark: str | Path,
    out: str | Path,
    settings: Settings = Settings(),
    *,
    progress: Progress | None = None,
) -> Metrics:
    """Measure the model called `model` on `benchmark`, write predictions and metrics to `out`, and give the metrics.

    Any vision-language model of transformers. What cannot be measured of it stands in `provenance.left_out`.
    """
    if str(benchmark) == SCENES:
        return evaluate_scenes(model, out, settings, progress=progress)
    return evaluate_dataset(model, benchmark, out, settings, progress=progress)


def evaluate_scenes(
    model: str | Path,
    out: str | Path,
    settings: Settings = Settings(),
    *,
    spec: WorldSpec | None = None,
    progress: Progress | None = None,
) -> Metrics:
    """Measure on fresh scenes of the embedded world, in which the habits of the training world do not hold.

    `spec` is the training world (None: what the recipe beside the checkpoint says, else the default one). The figures
    at the top are those of the same world with co-occurrence 0.4; those of the training world itself stand under
    "biased", their predictions in `out`/biased.
    """
    from agevlm.data.scenes import WorldSpec
    from agevlm.evaluation.scenes import (
        TEST_CO_OCCURRENCE,
        held_out_conversations,
        training_statistics,
    )

    spec = spec or WorldSpec.model_validate(_recipe_world(model))
    origin = _origin(model, settings)
    network, processor = load_vlm(model, settings.device, settings.dtype)
    Path(out).mkdir(parents=True, exist_ok=True)  # where nothing can be written, say so before the work
    statistics = training_statistics(spec, settings.seed)
    unbiased, biased = (
        _ask(network, processor, _drawn_samples(spec, co_occurrence, settings, statistics), settings, name, progress)
        for name, co_occurrence in ((settings.split, TEST_CO_OCCURRENCE), ("biased", spec.co_occurrence))
    )
    texts = held_out_conversations(spec, settings.seed, split=settings.split, num=NUM_TEXTS)
    perplexity = _perplexity(origin, network, processor, texts)
    metrics = {
        **unbiased.metrics,
        "biased": biased.metrics,
        "text_perplexity": perplexity,
        "provenance": _facts(model, SCENES, unbiased, settings, perplexity, world=spec.model_dump(mode="json")),
    }
    write_evaluation(Path(out) / "biased", biased.records(), biased.metrics)
    write_evaluation(out, unbiased.records(), metrics)
    return metrics


def evaluate_dataset(
    model: str | Path,
    directory: str | Path,
    out: str | Path,
    settings: Settings = Settings(),
    *,
    progress: Progress | None = None,
) -> Metrics:
    """Measure on the stored conversations of a dataset: POPE's and all other questions that have one right answer.

    Captions have none; they are left out and counted in the provenance, which also names the kinds of question that
    the model was never trained on. `settings.split` says nothing here: a dataset is one split.
    """
    from agevlm.data.parquet import read_parquet

    dataset = read_parquet(directory, allow_outside=settings.allow_outside)
    origin = _origin(model, settings)
    samples = _stored_samples(dataset, settings)
    num_images = len(samples)
    network, processor = load_vlm(model, settings.device, settings.dtype)
    Path(out).mkdir(parents=True, exist_ok=True)  # where nothing can be written, say so before the work
    found = _ask(network, processor, samples, settings, dataset.name, progress)
    texts = _first_conversations(dataset, num_images)
    left_out = sum(len(dataset[n].sample.conversations) for n in range(num_images)) - len(found.predictions)
    perplexity = _perplexity(origin, network, processor, texts)
    metrics = {
        **found.metrics,
        "text_perplexity": perplexity,
        "provenance": _facts(model, str(directory), found, settings, perplexity, num_captions_left_out=left_out),
    }
    write_evaluation(out, found.records(), metrics)
    return metrics


def test_samples(model: str | Path, benchmark: str | Path, settings: Settings) -> Sequence[Sample]:
    """The samples that the figures at the top of a benchmark's metrics were measured on, drawn or read again."""
    if str(benchmark) != SCENES:
        from agevlm.data.parquet import read_parquet

        return _stored_samples(read_parquet(benchmark, allow_outside=settings.allow_outside), settings)
    from agevlm.data.scenes import WorldSpec
    from agevlm.evaluation.scenes import TEST_CO_OCCURRENCE, training_statistics

    spec = WorldSpec.model_validate(_recipe_world(model))
    return _drawn_samples(spec, TEST_CO_OCCURRENCE, settings, training_statistics(spec, settings.seed))


def caption_samples(model: str | Path, benchmark: str | Path, settings: Settings) -> Sequence[Sample]:
    """The pictures of `test_samples` with captions; a stored dataset's samples come with all their conversations."""
    from agevlm.data.scenes import WorldSpec
    from agevlm.evaluation.scenes import TEST_CO_OCCURRENCE, captioned_scenes

    num_images = settings.num_images or DEFAULT_NUM_SCENES
    if str(benchmark) != SCENES:
        from agevlm.data.parquet import read_parquet

        dataset = read_parquet(benchmark, allow_outside=settings.allow_outside)
        return LazySamples(min(num_images, len(dataset)), lambda number: dataset[number].sample)
    spec = WorldSpec.model_validate(_recipe_world(model))
    world = spec.model_copy(update={"co_occurrence": TEST_CO_OCCURRENCE})
    return captioned_scenes(world, settings.seed, num_images, split=settings.split)


def held_out_texts(model: str | Path, processor: Any, benchmark: str | Path, settings: Settings) -> list[str]:
    """The texts that text perplexity is measured on."""
    if str(benchmark) != SCENES:
        from agevlm.data.parquet import read_parquet

        dataset = read_parquet(benchmark, allow_outside=settings.allow_outside)
        return _texts(processor, _first_conversations(dataset, len(_stored_samples(dataset, settings))))
    from agevlm.data.scenes import WorldSpec
    from agevlm.evaluation.scenes import held_out_conversations

    spec = WorldSpec.model_validate(_recipe_world(model))
    return _texts(processor, held_out_conversations(spec, settings.seed, split=settings.split, num=NUM_TEXTS))


def _first_conversations(dataset: ParquetDataset, num_images: int) -> list[Conversation]:
    return [c for number in range(min(NUM_TEXTS, num_images)) for c in dataset[number].sample.conversations[:1]]


def _stored_samples(dataset: ParquetDataset, settings: Settings) -> LazySamples:
    """The first samples of a dataset, as many as are asked for, without their captions."""
    num_images = min(settings.num_images or len(dataset), len(dataset))
    return LazySamples(num_images, lambda number: _scored(dataset[number].sample))


def _drawn_samples(
    spec: WorldSpec, co_occurrence: float, settings: Settings, statistics: Sequence[AnnotatedImage]
) -> list[Sample]:
    """Fresh scenes of a training world, with a co-occurrence of their own."""
    from agevlm.evaluation.scenes import scenes_benchmark

    world = spec.model_copy(update={"co_occurrence": co_occurrence})
    num_images = settings.num_images or DEFAULT_NUM_SCENES
    return scenes_benchmark(world, settings.seed, num_images, split=settings.split, statistics=statistics)


def _scored(sample: Sample) -> Sample:
    return replace(sample, conversations=tuple(c for c in sample.conversations if family(c.kind) != "caption"))


def _ask(
    network: Any,
    processor: Any,
    samples: Sequence[Sample],
    settings: Settings,
    name: str,
    progress: Progress | None,
) -> Evaluation:
    return evaluate(
        network,
        processor,
        samples,
        batch_size=settings.batch_size,
        parser=settings.parser,
        correct_prior=settings.correct_prior,
        answering=settings.answering,
        progress=(lambda done, total: progress(name, done, total)) if progress else None,
    )


def _perplexity(origin: str | None, network: Any, processor: Any, conversations: Iterable[Conversation]) -> Metrics:
    """Perplexity of the same texts for the language model before, where it is known, and inside the VLM.

    {} for a processor without a chat template: then it is not known how a conversation is written.
    """
    if getattr(processor, "chat_template", None) is None:
        return {}
    texts = _texts(processor, conversations)
    before = directory_perplexity(resolve_language_model(origin), texts, device=network.device) if origin else None
    after = text_perplexity(network, processor.tokenizer, texts)
    return {"before": before, "after": after, "language_model": origin, "num_texts": len(texts)}


def _texts(processor: Any, conversations: Iterable[Conversation]) -> list[str]:
    """Conversations as plain text, without their pictures."""
    shown = ([replace(message, num_images=0) for message in c.messages] for c in conversations)
    return [render_conversation(processor, messages, in_parts=True).text for messages in shown]


def _origin(model: str | Path, settings: Settings) -> str | None:
    """The language model to compare with; an unknown name is an error where a user gave it."""
    if settings.language_model:
        resolve_language_model(settings.language_model)
        return settings.language_model
    start = _recipe(model).get("model") or {}
    try:
        if start.get("init"):
            return _origin(start["init"], settings)
        name = start.get("language_model")
        return name if name and Path(resolve_language_model(name)).exists() else None
    except ValueError:  # a recipe may name a directory of another machine
        return None


def untrained_kinds(recipe: Mapping[str, Any], asked: Collection[str]) -> list[str]:
    """Of the kinds of question that were asked, those that no stage of a recipe trained; [] where it is not known.

    A family counts where nothing of it was trained: `relation`, of `relation.yes_no` and `relation.choice`.
    """
    mixtures = [stage.get("kinds") for stage in recipe.get("stages") or ()]
    if None in mixtures or (recipe.get("model") or {}).get("init"):
        return []
    trained = {kind for kinds in mixtures for kind, weight in kinds.items() if weight}
    strange = {kind for kind in asked if kind in KINDS and kind not in trained} if trained else set()
    families = {family(kind) for kind in strange} - {family(kind) for kind in {*asked, *trained} - strange}
    return sorted(strange | families)


def _recipe_world(model: str | Path) -> dict[str, Any]:
    """The settings of the world that a checkpoint was trained in; {} where its recipe names none."""
    sources = (_recipe(model).get("data") or {}).values()
    return next((source["scenes"] for source in sources if isinstance(source, dict) and "scenes" in source), {})


def _recipe(model: str | Path) -> dict[str, Any]:
    """The recipe beside a checkpoint, {} where there is none."""
    path = Path(resolve_model(model)) / "recipe.yaml"
    content = (read_yaml(path) or {}) if path.is_file() else {}
    if not _has_sections(content):
        raise ValueError(f"{path} is no recipe: take it away, or copy the checkpoint again")
    return content


def _has_sections(content: Any) -> bool:
    """Whether what is read here of a recipe, which may be of another version, has the form that it should."""
    if not isinstance(content, dict) or not isinstance(stages := content.get("stages") or [], list):
        return False
    sections = [content.get("data"), content.get("model"), *stages]
    mixtures = [stage.get("kinds") for stage in stages if isinstance(stage, dict)]
    return all(isinstance(part or {}, dict) for part in (*sections, *mixtures))


def _facts(
    model: str | Path,
    benchmark: str,
    found: Evaluation,
    settings: Settings,
    perplexity: Metrics,
    **more: Any,
) -> Metrics:
    left_out = [f"localisation of words: {found.note}"] if found.note else []
    left_out += [] if perplexity else ["text perplexity: the processor has no chat template"]
    not_trained = untrained_kinds(_recipe(model), {prediction.question.kind for prediction in found.predictions})
    return provenance(
        model=str(model),
        benchmark=benchmark,
        seed=settings.seed,
        split=settings.split,
        parser=settings.parser,
        answering=settings.answering,
        num_questions=len(found.predictions),
        num_images=len({prediction.question.image for prediction in found.predictions}),
        **({"not_trained": not_trained} if not_trained else {}),
        **({"left_out": left_out} if left_out else {}),
        **more,
    )
