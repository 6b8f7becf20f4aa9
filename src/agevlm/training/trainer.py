"""One stage of training: a transformers Trainer with two losses, each divided by its own count of supervised positions.

Language modelling is divided by the supervised tokens, guidance by the guided rows, both summed over accumulation steps
and processes: so a loss does not depend on how a batch was cut up. Everything else (data parallelism, mixed precision,
resume) is the Trainer's own.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from agevlm.data.schema import IGNORE_INDEX
from agevlm.guidance import guidance_loss
from agevlm.training.arithmetic import narrow
from agevlm.training.muon import Muon
from agevlm.training.recipe import StageRecipe
from agevlm.training.reporting import scalars
from agevlm.training.sharding import Shards
from agevlm.training.stages import parameter_groups

EXTRA_INPUTS = ("guidance_shares", "guidance_present", "sample_ids", "left_out")  # of a batch; not for the model
BETAS = (0.9, 0.98)  # of AdamW
DECAY_RATIO = 0.3  # of a stage's steps, in which a rate that is stable before falls to 0
MAX_NAMED = 20  # samples named in an error
OnStep = Callable[[dict[str, Any]], None]
Asked = Callable[[], bool]  # whether the process was asked to stop


class StageTrainer(Trainer):
    """Trains one stage. `on_step` is given a record of every step; `files` are written beside every checkpoint.

    Where `asked_to_stop` says so in any process, training ends behind the step in progress with a checkpoint, and
    `stopped` is True. With `shard` the model is divided over the processes, in place; see `sharding.py`.
    """

    def __init__(
        self,
        *,
        args: TrainingArguments,
        stage: StageRecipe,
        on_step: OnStep,
        files: dict[str, str],
        shard: bool = False,
        **kwargs: Any,
    ) -> None:
        self.shards: Shards | None = None  # once training has begun, of a model to be divided
        self._divides = shard
        args._n_gpu = min(args.n_gpu, 1)  # a process trains on one GPU: nn.DataParallel would make batches larger
        super().__init__(args=args, **kwargs)
        if (config := getattr(self.model, "config", None)) is not None:
            vars(config).pop("use_cache", None)  # Trainer's note for itself, which would be saved
        self.stage, self.on_step, self.files = stage, on_step, files
        self.loss_is_scaled_for_ga = True  # both losses are divided by counts over the whole accumulated batch
        self.asked_to_stop: Asked = lambda: False
        self.stopped = False
        self._num_guided = 0.0
        self._losses = [0.0, 0.0]  # language modelling and guidance of the step in progress
        self._counts: dict[str, Any] = {}  # of the step in progress, for the log
        self.reports = bool(kwargs.get("callbacks"))
        self.remove_callback(PrinterCallback)
        self.add_callback(_Reporter(self))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The stage's optimiser over its trainable parameters: AdamW, and Muon for groups that say so."""
        if self.optimizer is None:  # type: ignore[has-type]
            arithmetic = torch.bfloat16 if self.args.bf16 else torch.float32
            groups, rate = parameter_groups(self.model, self.stage), self.stage.learning_rate
            self.optimizer = Muon(groups, lr=rate, betas=BETAS, arithmetic=arithmetic)
        return self.optimizer

    def create_accelerator_and_postprocess(self) -> None:
        """As any trainer's; a model that is divided already is not wrapped for data parallelism."""
        super().create_accelerator_and_postprocess()
        if self._divides:
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def _wrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Divide the model, whose weights are those to begin with by now; the optimiser is made anew of its parts."""
        if self._divides and self.shards is None:
            narrow(model.language_model, torch.bfloat16 if self.args.bf16 else torch.float32)
            self.shards = Shards(model, self.accelerator.device.type)
            self.optimizer = None  # type: ignore[assignment]
            self.create_optimizer()
        return super()._wrap_model(model, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As any trainer's; a divided model is gathered first."""
        if self.shards is None:
            super().save_model(output_dir, _internal_call)
            return
        self._save(output_dir, state_dict=self.shards.weights())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self.shards.optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.shards is not None and checkpoint is not None:
            self.shards.divide_optimizer_state(self.optimizer)

    def get_train_dataloader(self) -> Any:
        """As any trainer's; a stop that all processes are told, as schedulers do, is for the main one to act on."""
        loader = super().get_train_dataloader()
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of one optimiser step, and the number of supervised tokens in them over all ranks."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        tokens = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
        guided = [self._count_guided(batch) for batch in batches]
        without_masks = {"batches_without_masks": guided.count(0)} if self._guides else {}
        self._counts = _summed([without_masks, *({"left_out": batch.get("left_out")} for batch in batches)])
        counts = torch.tensor([tokens, sum(guided)], dtype=torch.float32, device=device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self._num_guided = float(counts[1])
        return batches, counts[0].clamp(min=1)

    @property
    def _guides(self) -> bool:
        return self.stage.guidance is not None and self.stage.guidance.weight > 0

    def _count_guided(self, batch: dict[str, Any]) -> int:
        if "guidance_present" not in batch:
            return 0
        present, shares = batch["guidance_present"], batch["guidance_shares"]
        there = (present == 1) & (shares.sum(-1) > 0)
        return int((there | ((present == 0) & self._null_token)).sum())

    @property
    def _null_token(self) -> bool:
        return bool(self.accelerator.unwrap_model(self.model).config.null_token)

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Language modelling plus weighted guidance. A loss that is not finite is an error with the sample ids."""
        extra = {name: inputs.pop(name, None) for name in EXTRA_INPUTS}
        if extra["guidance_present"] is None:
            inputs.pop("attention_rows", None)
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, use_cache=False)
        loss = outputs.loss
        guidance = self._guidance(outputs, extra) if self._guides else None
        self._losses[0] += float(loss.detach())
        if guidance is not None:
            assert self.stage.guidance is not None
            self._losses[1] += float(guidance.detach())
            loss = loss + self.stage.guidance.weight * guidance
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"stage {self.stage.name!r}, step {self.state.global_step + 1}: the loss is {float(loss)} "
                f"on {_culprits(outputs.label_log_probs, extra['sample_ids'])}; "
                "look at these samples or lower the learning rate"
            )
        loss = loss * self.accelerator.num_processes  # ranks average gradients; the counts are sums over ranks
        return (loss, outputs) if return_outputs else loss

    def _guidance(self, outputs: Any, extra: dict[str, Any]) -> Tensor | None:
        settings = self.stage.guidance
        if extra["guidance_present"] is None or settings is None or not self._num_guided:
            return None
        if outputs.row_weights is None:  # no picture in the batch
            return None
        with torch.autocast(outputs.loss.device.type, enabled=False):
            total, _ = guidance_loss(
                outputs.row_weights,
                extra["guidance_shares"],
                extra["guidance_present"],
                loss=settings.loss,
                layers=settings.layers,
                heads=settings.heads,
                null_token=self._null_token,
            )
        return total / self._num_guided

    def take_record(self) -> dict[str, Any]:
        """The losses and counts of the step that just ended; the guidance loss is None where nothing was guided."""
        parts: list[Any] = [(*self._losses, self._counts, self.asked_to_stop())]
        if self.args.world_size > 1:
            parts = gather_object(parts)
        language, guidance = (sum(part[number] for part in parts) for number in (0, 1))
        self._losses = [0.0, 0.0]
        self.stopped = any(part[3] for part in parts)  # all processes agree on the step
        weight = self.stage.guidance.weight if self.stage.guidance else 0.0
        return {
            "loss": language + weight * guidance,
            "lm_loss": language,
            "guidance_loss": guidance if self._guides and self._num_guided else None,
            **_summed([part[2] for part in parts]),
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint beside and rename it, so that one that exists is whole; only the newest is kept."""
        target = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside = target.with_name(".writing")
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        output_dir, self.args.output_dir = self.args.output_dir, str(aside)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = output_dir
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written = aside / target.name
            for name, text in self.files.items():
                (written / name).write_text(text, encoding="utf-8")
            older = find_checkpoints(target.parent)
            os.replace(written, target)
            for checkpoint in older:
                shutil.rmtree(checkpoint)
            shutil.rmtree(aside, ignore_errors=True)


def _summed(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of several batches or processes in one: batches without masks, and what was left out by reason."""
    total: dict[str, Any] = {}
    if without_masks := [count["batches_without_masks"] for count in counts if "batches_without_masks" in count]:
        total["batches_without_masks"] = sum(without_masks)
    if left_out := sum((Counter(count.get("left_out")) for count in counts), Counter[str]()):
        total["left_out"] = dict(left_out)
    return total


def find_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints of a stage, oldest first."""
    found = [path for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (path / "trainer_state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _start_worker(start: Callable[[int], None] | None, number: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if start is not None:
        start(number)


class _Reporter(TrainerCallback):
    """Hands a record of every optimiser step to the trainer's `on_step`."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer
        self.learning_rate = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.learning_rate = self.trainer._get_learning_rate()
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        record = {"step": state.global_step, **self.trainer.take_record(), "learning_rate": self.learning_rate}
        self.trainer.on_step(record)
        if self.trainer.reports:
            self.trainer.log(scalars(record))
        if self.trainer.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        return control


def _culprits(log_probs_RT: Tensor, ids: list[str] | None) -> str:
    """The ids of the rows whose own labels have no finite probability; of all rows where there is none such."""
    if not ids:
        return "a batch without ids"
    wrong = (~torch.isfinite(log_probs_RT).all(dim=1)).tolist()
    named = [name for name, bad in zip(ids, wrong, strict=True) if bad] or ids
    more = len(named) - MAX_NAMED
    return ", ".join(named[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def images_per_process(stage: StageRecipe, num_processes: int) -> int:
    """Samples of a batch that each process takes: a recipe means the same batch on any number of them.

    A batch that cannot be divided evenly is a ValueError.
    """
    images, left = divmod(stage.images_per_batch, num_processes)
    if left:
        raise ValueError(
            f"stage {stage.name!r}: {num_processes} processes cannot divide images_per_batch = "
            f"{stage.images_per_batch} among them; set a multiple of {num_processes}"
        )
    return images


def training_arguments(
    stage: StageRecipe,
    directory: Path,
    *,
    seed: int,
    dtype: torch.dtype,
    num_workers: int,
    save_steps: int,
    num_processes: int = 1,
) -> TrainingArguments:
    """The Trainer's settings for a stage. It logs and reports through `on_step`, so its own logging is off."""
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=stage.steps,
        per_device_train_batch_size=images_per_process(stage, num_processes),
        gradient_accumulation_steps=stage.gradient_accumulation_steps,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.lr_scheduler,
        lr_scheduler_kwargs=_scheduler_settings(stage),
        warmup_steps=round(stage.warmup_ratio * stage.steps),
        max_grad_norm=stage.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        train_sampling_strategy="sequential",
        dataloader_num_workers=num_workers,
        dataloader_persistent_workers=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        seed=seed,
        data_seed=seed,
        save_strategy="steps",
        save_steps=save_steps,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )


def _scheduler_settings(stage: StageRecipe) -> dict[str, int] | None:
    if stage.lr_scheduler != "warmup_stable_decay":
        return None
    return {"num_decay_steps": round(DECAY_RATIO * stage.steps)}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; a last line that a kill cut short is left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records
