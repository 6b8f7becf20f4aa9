"""`agevlm ground` on a Ray cluster: Ray Data hands the shards that are not done to workers on its machines.

A worker loads the teacher once. Dataset, directory of output and weights lie where all machines have them under one
path. Ray is the extra `ray`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agevlm.teachers.launch import Outcome, Show, Task
from agevlm.teachers.stopwatch import Stopwatch


class _Worker:
    """Grounds the shards whose numbers it is given."""

    def __init__(self, task: Task, directory: str) -> None:
        os.chdir(directory)  # so that paths mean what they mean where the task was given
        import ray

        device = task.teacher_options.device
        if device == "auto":
            device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.stopwatch = Stopwatch()
        self.teacher, self.finder = task.load(device, self.stopwatch)
        self.run = task.open(self.finder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        numbers = [int(number) for number in batch["shard"]]
        self.stopwatch.seconds.clear()
        self.stopwatch.handled.clear()
        self.run.run(self.teacher, self.finder, numbers, self.stopwatch)
        times = json.dumps(vars(self.stopwatch))
        return {"samples": [self.run.num_samples(numbers)], "times": [times]}


def ground_on_ray(
    task: Task, num_workers: int, stopwatch: Stopwatch | None = None, show: Show = lambda done, total: None
) -> Outcome:
    """Do a task by `num_workers` workers on the cluster of the environment variable RAY_ADDRESS, else on this machine.

    Each has a GPU where the cluster has any. Files and errors are those of `launch.ground`, which may also go on with
    what was begun here; one that a worker meets comes back as itself. Without Ray, a ValueError.
    """
    if find_spec("ray") is None:
        raise ValueError("Ray is not installed: pip install 'agevlm[ray]'")
    import ray

    stopwatch = stopwatch or Stopwatch()
    own = Path.cwd()
    _, finder = task.load("cpu", Stopwatch())  # what is wrong is told before anything is written
    run = task.open(finder)
    run.remove_leftovers()
    todo = run.todo
    if todo:
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(log_to_driver=False, logging_level="error")
        try:
            on_gpus = ray.cluster_resources().get("GPU", 0) > 0 and task.teacher_options.device != "cpu"
            answers = ray.data.from_items([{"shard": number} for number in todo], override_num_blocks=len(todo))
            answers = answers.map_batches(
                _Worker,
                fn_constructor_args=(task, str(own)),
                compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(todo))),
                batch_size=1,
                num_cpus=1,
                num_gpus=1 if on_gpus else 0,
            )
            done = 0
            for row in answers.iter_rows():
                done += row["samples"]
                show(done, run.num_samples(todo))
                stopwatch.add(Stopwatch(**{part: Counter(known) for part, known in json.loads(row["times"]).items()}))
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        finally:
            if started_here:
                ray.shutdown()
    finished = run.finish()
    assert finished is not None
    return finished
