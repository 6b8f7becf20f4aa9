"""A whole run: recipe → model → four stages → checkpoint, measured and reported. What `agevlm train` calls.

The directory of a run:
    recipe.yaml, environment.json   the resolved recipe, git hash and versions (also beside every checkpoint)
    log.jsonl                       one record for each optimiser step
    stages.json                     what each stage trained, for how long
    1-align/ 2-…/                   the model at the end of each stage, and the newest checkpoint of a stage in progress
    snapshots/1-align-300/ …        the model every `snapshot_steps` steps, where the recipe asks for it
    1-align/adapters/ …             the adapters of a stage as peft reads them, where it keeps them
    tensorboard/                    where the recipe reports to it
    model/                          the model at the end, with its card
    metrics.json, predictions.jsonl, metrics.md, report.html

Under `accelerate launch` every process holds the whole model, or with `shard` its part alone while it trains, and takes
its part of each batch; the main one writes.
"""

from __future__ import annotations

import gc
import json
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from filelock import FileLock, Timeout
from rich.console import Console
from transformers import set_seed

import agevlm
from agevlm.checkpoints import choose_device, computes_in, load_model, resolve_language_model, resolve_model
from agevlm.checkpoints.fit import check_tokens
from agevlm.data.collate import Collator
from agevlm.data.parquet import ParquetDataset, read_parquet
from agevlm.data.scenes import split_seed
from agevlm.files import recover, write_beside
from agevlm.modeling.joined import JoinedModel
from agevlm.modeling.processing_agevlm import AgeVlmProcessor
from agevlm.modeling.versions import checkpoint_activations
from agevlm.modeling.vision import fit_pictures, load_backbone
from agevlm.signals import put_off
from agevlm.training.arithmetic import choose_arithmetic, frozen_in_bfloat16
from agevlm.training.card import write_card
from agevlm.training.compiled import compile_layers, compiled_for
from agevlm.training.dataset import SourceData, StageDataset, asked_questions, taught_words
from agevlm.training.features import cached_features
from agevlm.training.needs import missing, missing_benchmark, not_offered, unreadable
from agevlm.training.own_data import DATA, PROBE, OwnData, prepare
from agevlm.training.progress import RunProgress
from agevlm.training.recipe import (
    LabelsSource,
    ModelRecipe,
    Recipe,
    StageRecipe,
    dump_recipe,
    is_recipe_of,
    load_recipe,
)
from agevlm.training.recipe import ParquetSource as ParquetRecipe
from agevlm.training.reporting import check_reporting, reporters
from agevlm.training.shapes import network_of
from agevlm.training.sharding import check_divisible, drop_weights, give_weights, take_weights
from agevlm.training.sources import DrawnSource, ParquetSource, SceneSource, Source
from agevlm.training.stages import (
    adapted_layers,
    adapter_files,
    describe,
    freeze_for_stage,
    merge_adapters,
    merged_weights,
)
from agevlm.training.trainer import (
    Asked,
    StageTrainer,
    find_checkpoints,
    images_per_process,
    read_log,
    training_arguments,
)
from agevlm.training.views import LabelledPictures, StoredPictures, ViewSource

TRAIN_SPLIT = "train"
SNAPSHOTS = "snapshots"
REPORTS = "tensorboard"
ADAPTERS = "adapters"
LOCK = ".lock"  # held by the process that trains
LEAVING_S = 15.0  # within which a run that was killed is gone, be its memory large
LONGEST_WAIT = timedelta(days=2)  # of the other processes, while the main one computes features


def train(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    own: OwnData | None = None,
    console: Console | None = None,
) -> Path:
    """Run a recipe into the directory `out`, and give the directory of the trained model.

    `own` are annotations of one's own, for the recipe's data; see `own_data.py`.

    `resume` goes on after a kill: whole stages are kept, a stage in progress goes on from its newest checkpoint, with
    the losses of a run that was never killed; where there is no run, one begins, and a line says so. Without it an
    `out` that holds a run is a ValueError; nothing there is touched. `dry_run` says what is missing, builds the model,
    prints what each stage would train, and stops. Launched in several processes, it is the same run: they divide the
    pictures of each batch. A batch that they cannot divide is a ValueError.
    Ctrl-C and SIGTERM take effect behind the step in progress, when a checkpoint is written; a second one at once.
    """
    console = console or Console(stderr=True)
    if own is not None:
        assert not isinstance(recipe, Recipe), "a recipe that is read already has its data"
        check_out(Path(out), resume)
        with open_processes().main_process_first():
            overrides = [*prepare(Path(recipe), Path(out), own, console, overrides, seed), *overrides]
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides, seed)
    run = Run(resolved, Path(out), console)
    if dry_run:
        run.describe()
        return run.out
    faults = chain(missing_benchmark(resolved), unreadable(resolved), not_offered(resolved))
    for fault in faults:  # before hours of training, not behind them
        raise ValueError(str(fault))
    run.open(resume)
    try:
        return run.train()
    finally:
        run.close()


class Run:
    """One run in its directory."""

    def __init__(self, recipe: Recipe, out: Path, console: Console) -> None:
        self.processes = open_processes()
        self.is_main = self.processes.is_main_process
        self.recipe, self.out, self.console = recipe, out, console if self.is_main else Console(quiet=True)
        for stage in recipe.stages:
            images_per_process(stage, self.processes.num_processes)
        check_reporting(recipe.report_to)
        self.divides = recipe.shard and self.processes.num_processes > 1
        self.dtype = choose_arithmetic(recipe.dtype)
        self.lock = FileLock(out / LOCK)
        facts = {"seed": recipe.seed, "processes": self.processes.num_processes, **environment()}
        facts["arithmetic"] = str(self.dtype).removeprefix("torch.")
        self.files = {"recipe.yaml": dump_recipe(recipe), "environment.json": json.dumps(facts, indent=2)}

    def stage_directory(self, index: int) -> Path:
        return self.out / f"{index + 1}-{self.recipe.stages[index].name}"

    def snapshot_directory(self, index: int, step: int) -> Path:
        return self.out / SNAPSHOTS / f"{index + 1}-{self.recipe.stages[index].name}-{step}"

    def open(self, resume: bool) -> None:
        """Make the directory of the run, or check that the one that is there is this recipe's."""
        if self.is_main:
            self._open(resume)
        self.processes.wait_for_everyone()

    def _open(self, resume: bool) -> None:
        known = check_out(self.out, resume)
        if known.exists() and not is_recipe_of(known, self.recipe):
            raise ValueError(
                f"{known} differs from the recipe given: a run goes on with its own recipe; choose another --out"
            )
        if resume and not known.exists():
            self.console.print(f"there is no run in {self.out} to go on with: it begins anew", highlight=False)
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=LEAVING_S if resume else 0)
        except Timeout as error:
            raise ValueError(f"{self.out} is being trained by another process: wait for it, or end it") from error
        if resume:
            recover(self.out, anybodys=True)
        for name, text in self.files.items():
            self._write(name, text)

    def close(self) -> None:
        """Leave the directory to others; the end of the process does so too."""
        if self.lock.is_locked:
            with suppress(OSError):  # Windows keeps a file that is open
                (self.out / LOCK).unlink()  # while it is held: filelock lets nobody have one that is gone
            self.lock.release()

    def describe(self) -> None:
        """Print what each stage would train. ValueError, a line for each, where something that it names is missing.

        So is data whose first sample cannot be read, or that has nothing of what a stage asks.
        """
        faults = [*map(str, missing(self.recipe)), *unreadable(self.recipe)]
        if faults := faults or [*not_offered(self.recipe)]:
            raise ValueError("\n".join(faults))
        model, _ = build_model(self.recipe)
        _check_layers(self.recipe, model)
        for stage in self.recipe.stages:
            self._announce(stage, freeze_for_stage(model, stage))
            if stage.lora:
                merge_adapters(model)

    def train(self) -> Path:
        """Train all stages that are not done, measure, and report."""
        set_seed(self.recipe.seed)
        if not computes_in(self.dtype, choose_device()):
            self.console.print(
                "this machine emulates bfloat16, many times slower than float32: `dtype: auto` would take that"
            )
        model, processor = build_model(self.recipe)
        _check_layers(self.recipe, model)
        if self.divides:
            check_divisible(model)
        model.to(choose_device())
        first = self._first_open_stage()
        if first:
            _take_over(model, self.stage_directory(first - 1))
        if self.recipe.compile:
            compile_layers(model)
        cache = self.recipe.cache_dir or self.out / "cache"
        if first < len(self.recipe.stages):
            with RunProgress(self.console, self.recipe, self.out / "log.jsonl") as progress:
                with self.processes.main_process_first():  # it writes the cache, the others read it
                    data = self._load_data(model, processor, cache, progress)
                known_before = model.config.known_questions if self.recipe.model.init else []
                model.config.known_questions = asked_questions(self.recipe.stages, known_before)
                model.config.known_words = self._known_words(model, data)
                if self.divides:
                    model.cpu()  # each stage brings it to the device, to be divided there
                with _left_out_of_collections():
                    for index in range(first, len(self.recipe.stages)):
                        with put_off() as asked:
                            stopped = self._train_stage(index, model, processor, data, progress, asked)
                        if stopped:  # another process was asked
                            raise KeyboardInterrupt(f"stage {self.recipe.stages[index].name} was stopped")
        self.processes.wait_for_everyone()
        final = self.out / "model"
        if self.is_main:
            if self.recipe.cache_dir is None:
                shutil.rmtree(cache, ignore_errors=True)
            self._save(final, model, processor)
            write_card(self.out)
            self._measure(final)
        return final

    def _known_words(self, model: Any, data: dict[str, SourceData]) -> list[str] | None:
        """What the stages tell of their pictures, and what the model knew before; None where either is not known."""
        found = [taught_words(self.recipe.stages, name, data[name].source) for name in sorted(self.recipe.used_data)]
        if self.recipe.model.init:
            found.append(model.config.known_words)
        if any(words is None for words in found):
            return None
        return sorted({word for words in found for word in words or ()})

    def _first_open_stage(self) -> int:
        done = [(self.stage_directory(index) / "config.json").exists() for index in range(len(self.recipe.stages))]
        return done.index(False) if False in done else len(done)

    def _load_data(self, model: Any, processor: Any, cache: Path, progress: RunProgress) -> dict[str, SourceData]:
        data = {}
        for name, settings in self.recipe.data.items():
            if name not in self.recipe.used_data:
                continue
            source = open_source(settings, self.recipe.seed)
            features = None
            if self.recipe.reads_features:
                model.requires_grad_(False)
                features = cached_features(
                    source,
                    cache,
                    model,
                    processor,
                    dtype=self.dtype,
                    num_workers=self.recipe.num_workers,
                    progress=progress.preparing(name),
                )
            for note in source_notes(source):
                self.console.print(f"data {name}: {note}", highlight=False)
            data[name] = SourceData(source, features, runs_of(source, settings))
        return data

    def _train_stage(
        self,
        index: int,
        model: Any,
        processor: Any,
        data: dict[str, SourceData],
        progress: RunProgress,
        asked_to_stop: Asked,
    ) -> bool:
        """Train a stage to its end, or to a checkpoint where the process is asked to stop: then True."""
        stage, directory = self.recipe.stages[index], self.stage_directory(index)
        set_seed(self.recipe.seed + index)  # of adapters: the same whether the stage before ran in this process or not
        counts = freeze_for_stage(model, stage)
        self._announce(stage, counts)
        if stage.gradient_checkpointing:
            checkpoint_activations(model, True)
        checkpoints = find_checkpoints(directory)
        resume_from = str(checkpoints[-1]) if checkpoints else None
        self.processes.wait_for_everyone()  # all have read where the stage stands
        if self.is_main:
            progress.start_stage(index, int(checkpoints[-1].name.rsplit("-", 1)[1]) if checkpoints else 0)
        trainer = self._trainer(index, model, processor, data, progress)
        trainer.asked_to_stop = asked_to_stop
        for note in trainer.train_dataset.notes:
            self.console.print(f"  {note}", highlight=False)
        narrowed = nullcontext() if self.divides else frozen_in_bfloat16(model.language_model, self.dtype)
        with compiled_for(stage.steps), narrowed:
            trainer.train(resume_from_checkpoint=resume_from)
        self._gather(trainer, model)
        if trainer.state.global_step < stage.steps:
            return True
        if stage.gradient_checkpointing:
            checkpoint_activations(model, False)
        adapters = adapter_files(model) if stage.lora and stage.lora.keep else {}
        if stage.lora:
            merge_adapters(model)
        if self.is_main:
            self._record(index, counts)
            self._save(directory, model, processor, adapters)
        return trainer.stopped

    def _trainer(
        self, index: int, model: Any, processor: Any, data: dict[str, SourceData], progress: RunProgress
    ) -> StageTrainer:
        stage, settings = self.recipe.stages[index], self.recipe
        arguments = training_arguments(
            stage,
            self.stage_directory(index),
            seed=settings.seed + index,
            dtype=self.dtype,
            num_workers=settings.num_workers,
            save_steps=settings.save_steps,
            num_processes=self.processes.num_processes,
        )

        def on_step(record: dict[str, Any]) -> None:
            if self.is_main:
                progress.step(record)
            if settings.snapshot_steps and record["step"] % settings.snapshot_steps == 0 < stage.steps - record["step"]:
                self._gather(trainer, model)
                if self.is_main:
                    self._save(self.snapshot_directory(index, record["step"]), model, processor)
                if self.divides:
                    drop_weights(model)  # gathered again at the end

        collator = stage_collator(settings, stage, model, processor)
        trainer = StageTrainer(
            model=take_weights(model) if self.divides else model,
            args=replace(arguments, run_name=f"{settings.name}-{stage.name}"),
            callbacks=reporters(settings.report_to, self.out / REPORTS / stage.name),
            train_dataset=StageDataset(stage, data, seed=_stage_seed(settings.seed, index)),
            data_collator=collator,
            stage=stage,
            on_step=on_step,
            files=self.files,
            shard=self.divides,
        )
        return trainer

    def _gather(self, trainer: StageTrainer, model: Any) -> None:
        """Bring what a divided model has learned into the whole one; all processes together."""
        if self.divides:
            assert trainer.shards is not None, "training divides the model before anything else"
            give_weights(model, trainer.shards.weights())

    def _record(self, index: int, counts: dict[str, dict[str, int]]) -> None:
        """Add a stage to stages.json, summed up from the log, so that a resumed stage counts as a whole one."""
        path = self.out / "stages.json"
        records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        stage = self.recipe.stages[index]
        steps = [line for line in read_log(self.out / "log.jsonl") if line["stage_index"] == index]
        left_out: Counter[str] = sum((Counter(line.get("left_out")) for line in steps), Counter())
        for reason, number in left_out.items():
            self.console.print(f"  left out: {number} {reason}", highlight=False)
        record = {
            "name": stage.name,
            "steps": stage.steps,
            "seconds": round(max(line["time_s"] for line in steps), 3),
            "trainable_parameters": sum(count["trainable"] for count in counts.values()),
            "total_parameters": sum(count["parameters"] for count in counts.values()),
            "trainable_modules": {name: count["trainable"] for name, count in counts.items() if count["trainable"]},
            "batches_without_masks": sum(line.get("batches_without_masks", 0) for line in steps),
            "left_out": dict(left_out),
        }
        records = [old for old in records if old["name"] != stage.name] + [record]
        self._write("stages.json", json.dumps(records, indent=2))

    def _announce(self, stage: StageRecipe, counts: dict[str, dict[str, int]]) -> None:
        self.console.print(f"[bold]stage {stage.name}[/bold]  {stage.steps} steps")
        for line in describe(counts):
            self.console.print(f"  {line}", highlight=False)

    def _save(
        self, directory: Path, model: Any, processor: Any, adapters: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Write a whole checkpoint; what a stage in progress left in the directory goes."""
        with write_beside(directory) as beside:
            model.save_pretrained(beside, state_dict=merged_weights(model))
            processor.save_pretrained(beside)
            for name, text in self.files.items():
                (beside / name).write_text(text, encoding="utf-8")
            for name, content in adapters.items():
                (beside / ADAPTERS).mkdir(exist_ok=True)
                (beside / ADAPTERS / name).write_bytes(content)

    def _measure(self, model_directory: Path) -> None:
        from agevlm.training.measure import measure

        if self.recipe.evaluation is not None:
            measure(self.recipe, self.out, model_directory, self.console)
            write_card(self.out)

    def _write(self, name: str, text: str) -> None:
        with write_beside(self.out / name) as beside:
            beside.write_text(text, encoding="utf-8")


@contextmanager
def _left_out_of_collections() -> Iterator[None]:
    """What is there now is no garbage: Trainer has all objects searched for it before each stage, a second and more."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def open_processes() -> PartialState:
    """The processes that train together, as `accelerate launch` started them; one without it.

    A launch that divides the model itself (accelerate's FSDP, DeepSpeed) is a ValueError: `shard` of a recipe does.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise ValueError(
                f"accelerate is set to {name}, which divides a model over processes in a way of its own: launch with "
                "--multi_gpu, or --cpu, and set shard=true in the recipe to divide the model"
            )
    return PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)


def build_model(recipe: Recipe) -> tuple[JoinedModel, AgeVlmProcessor]:
    """The network that a recipe starts from: joined from two foundations, or a trained one to go on from."""
    settings = recipe.model
    if settings.init:
        model, processor = load_model(settings.init, device="cpu", dtype="float32")
    else:
        model, processor = _join(recipe)
    if settings.attn_implementation:
        _set_kernel(model, settings.attn_implementation)
    return model.float(), processor


def _set_kernel(model: JoinedModel, kernel: str) -> None:
    try:
        model.set_attn_implementation(kernel)
    except ImportError as error:  # of transformers, which tells it in a paragraph
        raise ValueError(
            f"model.attn_implementation: {kernel} needs the package flash-attn, which is not installed or does not run "
            "on this machine: pip install flash-attn, or choose sdpa"
        ) from error


def _join(recipe: Recipe) -> tuple[JoinedModel, AgeVlmProcessor]:
    settings = recipe.model
    torch.manual_seed(recipe.seed)
    language, vision = resolve_language_model(settings.language_model), resolve_model(settings.vision_model)
    processor = join_processor(settings, language, vision)
    backbone = load_backbone(vision, settings.vision_stages)
    fit_pictures(backbone, processor.image_processor, settings.image_size)
    kind, fields = network_of(settings)
    model = kind.from_backbones(language, backbone, image_token_id=processor.image_token_id, **fields)
    check_tokens(settings.language_model, model, processor)
    return model, processor


def join_processor(settings: ModelRecipe, language: str, pictures: str | int) -> AgeVlmProcessor:
    """The processor of a network that is joined; `pictures` is its vision model, or the side of what that sees."""
    return AgeVlmProcessor.from_backbones(language, pictures, default_system_prompt=settings.default_system_prompt)


def _take_over(model: Any, directory: Path) -> None:
    """Give a model what a stage before has learned; the other one is gone afterwards."""
    done, _ = load_model(directory, device="cpu")
    model.load_state_dict(done.state_dict())
    model.config.known_words, model.config.known_questions = done.config.known_words, done.config.known_questions


def _check_layers(recipe: Recipe, model: Any) -> None:
    """Refuse guidance and adapters on layers that the model does not have, before anything trains."""
    number = model.config.num_guided_layers
    for stage in recipe.stages:
        adapted_layers(model, stage)
        wrong = [layer for layer in (stage.guidance and stage.guidance.layers) or () if not 0 <= layer < number]
        if wrong:
            raise ValueError(
                f"stage {stage.name!r} guides attention layer {wrong[0]}; the model has {number}, counted from 0"
            )


def stage_collator(recipe: Recipe, stage: StageRecipe, model: Any, processor: Any) -> Collator:
    """What makes the batches of a stage, with the guidance that it asks for."""
    return Collator(
        processor,
        grid=image_grid(model, processor),
        guided=stage.guidance is not None and stage.guidance.weight > 0,
        answer_position=stage.guidance is not None and stage.guidance.answer_position,
        free_answers=stage.guidance.free_answers if stage.guidance else (),
        mask_noise=stage.guidance.mask_noise if stage.guidance else None,
        max_length=recipe.max_length,
    )


def check_out(out: Path, resume: bool) -> Path:
    """The recipe of the run in a directory, which may not be there yet; ValueError where a run cannot go into it."""
    known = out / "recipe.yaml"
    if known.exists():
        if not resume:
            raise ValueError(f"{out} holds a run already; go on with --resume or choose another --out")
    elif out.exists() and any(path for path in out.iterdir() if not _is_leftover(path)):
        raise ValueError(f"{out} is not empty and holds no run; choose another --out")
    return known


def _is_leftover(path: Path) -> bool:
    """Whether a file may be there before a run: features, data made for it, what a kill left of a file in writing."""
    return path.name in ("cache", LOCK, DATA, PROBE) or (path.name.startswith(".") and path.suffix in (".part", ".old"))


def open_source(settings: Any, seed: int) -> Source:
    """The source that a recipe describes."""
    if isinstance(settings, LabelsSource):
        return ViewSource(LabelledPictures(settings.labels, settings.names), settings.augment, seed)
    if isinstance(settings, ParquetRecipe):
        dataset = open_dataset(settings, seed)
        if settings.augment is None:
            return ParquetSource(dataset)
        return ViewSource(StoredPictures(dataset), settings.augment, seed)
    scene_seed = split_seed(TRAIN_SPLIT, seed if settings.seed is None else settings.seed)
    return SceneSource(settings.scenes, scene_seed, settings.num_scenes)


def open_dataset(settings: ParquetRecipe, seed: int) -> ParquetDataset:
    """The stored dataset that a recipe names, or the share of it that it takes."""
    drawn_by = seed if settings.seed is None else settings.seed
    return read_parquet(settings.parquet, allow_outside=settings.allow_outside, share=settings.share, seed=drawn_by)


def runs_of(source: Source, settings: Any) -> list[int] | None:
    """Sizes of the runs of samples that a source reads together, where its recipe wants them to stay near."""
    near = isinstance(settings, ParquetRecipe) and settings.shuffle == "groups"
    return source.dataset.group_sizes() if near and isinstance(source, ParquetSource) else None


def source_notes(source: Source) -> list[str]:
    """What people should know of the pictures of a source: what was left out of them, and how views came out."""
    read = list(source.pictures.notes) if isinstance(source, ViewSource) else []
    drawn = (source.notes or {}).items() if isinstance(source, DrawnSource) else ()
    return [*(f"left out: {note}" for note in read), *(f"{number} {note}" for note, number in drawn)]


@torch.no_grad()
def image_grid(model: Any, processor: Any) -> tuple[int, int]:
    """The (h, w) of image tokens that the model makes of a picture."""
    size = processor.image_processor.size
    weight = next(model.vision_model.parameters())
    pixels = torch.zeros(1, 3, size["height"], size["width"], device=weight.device)
    height, width = model.encode_images(pixels).grid
    return int(height), int(width)


def environment() -> dict[str, Any]:
    """Git hash, versions and machine: what a figure depends on beside its recipe."""
    packages = ("torch", "transformers", "accelerate", "numpy", "pillow", "pycocotools")
    return {
        "git": _git_hash(),
        "agevlm": agevlm.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": choose_device(),
    }


def _git_hash() -> str | None:
    """The commit of the checkout that holds this file, with "+" where it has been changed; None in a wheel."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a virtual environment may lie in somebody else's checkout
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _stage_seed(seed: int, index: int) -> int:
    return seed * 1009 + index
