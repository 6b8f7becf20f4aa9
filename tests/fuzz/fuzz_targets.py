"""What reads a changed input, the way that people's commands do, and what must hold of whatever it accepts.

Each target is given the corpus, an empty directory and a plan. It ends (accepted), or raises what a user would see.
An AssertionError is a wrong result without a word.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz_corpus import SIZES, rows_of
from fuzz_plans import Plan, change_bytes, change_values
from PIL import Image

Target = Callable[[Path, Path, Plan], None]


def pictures(corpus: Path, work: Path, plan: Plan) -> None:
    """A damaged picture, or one of an odd size: its size, its pixels, and in one case of four `look`, some drawn."""
    from agevlm.data.images import image_size, open_image

    files = sorted((corpus / "pictures").iterdir())
    source = files[int(plan.file * len(files))]
    path = work / source.name
    if plan.choice < len(SIZES):
        path = work / "odd.png"
        Image.new("RGB", SIZES[plan.choice], "red").save(path)
    else:
        path.write_bytes(change_bytes(source.read_bytes(), plan))
    size = image_size(path)
    picture = open_image(path)
    assert (picture.height, picture.width) == size, (picture.size, size)
    if plan.choice % 4 == 0:
        _look(path, "is there a fish?", work / "look.png" if _is_drawn(plan) else None)


def questions(corpus: Path, work: Path, plan: Plan) -> None:
    """A hostile question to `look`; the same text as a category, a caption and a benchmark's question."""
    from agevlm.data.chat import tokenise_conversation
    from agevlm.data.schema import Conversation, Message
    from agevlm.evaluation.questions import questions_of
    from agevlm.vlms import Vlm

    model, processor = _tiny()
    with_text = (Message("user", plan.text, 1), Message("assistant", f"a {plan.text}."))
    conversation = Conversation("c", "caption", with_text)
    chat = tokenise_conversation(processor, conversation, 512)
    special = set(processor.tokenizer.all_special_ids) | {processor.image_token_id}
    plain = tokenise_conversation(
        processor, Conversation("c", "caption", (Message("user", "x", 1), Message("assistant", "a x.")))
    )
    found, expected = ([token for token in ids if token in special] for ids in (chat.input_ids, plain.input_ids))
    assert found == expected[: len(found)], "text became a special token"
    sample = _sample(conversation)
    questions_of(Vlm(model, processor), [sample])
    _look(corpus / "pictures" / "picture.png", plan.text, work / "look.png" if _is_drawn(plan) else None)


def coco(corpus: Path, work: Path, plan: Plan) -> None:
    """`agevlm data coco`, with and without leaving out what is broken."""
    from agevlm.data.formats.coco import CocoOptions, convert_coco

    path = _changed_json(corpus / "coco" / "instances.json", work, plan)
    skips = {"skip_broken": bool(plan.choice & 1), "skip_missing": bool(plan.choice & 2)}
    convert_coco(
        path, corpus / "coco" / "images", work / "data", CocoOptions(num_per_image=2, pope_per_image=1, **skips)
    )
    _check_accepted(work)


def convert(corpus: Path, work: Path, plan: Plan) -> None:
    """`agevlm data convert` of each of the formats."""
    from agevlm.data.formats.dialogues import DialogueOptions, convert_dialogues

    kinds = (("llava", "llava.json"), ("messages", "messages.jsonl"), ("messages", "messages.json"),
             ("captions", "captions.json"), ("folder", "metadata.jsonl"))  # fmt: skip
    kind, name = kinds[int(plan.file * len(kinds))]
    source = _changed_json(corpus / "convert" / name, work, plan)
    images = corpus / "convert"
    if kind == "folder":
        source = images = work
        for path in (corpus / "convert").glob("*.png"):
            shutil.copy(path, work)
    options = DialogueOptions(skip_broken=bool(plan.choice & 1), skip_missing=bool(plan.choice & 2))
    convert_dialogues(kind, source, images, work / "data", options)  # type: ignore[arg-type]
    _check_accepted(work)


def refer(corpus: Path, work: Path, plan: Plan) -> None:
    """`agevlm data refer`: changed expressions as JSON or as a pickle, or changed instances."""
    from agevlm.data.formats.refer import convert_refer

    refs, instances = corpus / "refer" / "refs.json", corpus / "coco" / "instances.json"
    if plan.file < 0.4:
        refs = _changed_json(refs, work, plan)
    elif plan.file < 0.7:
        content = pickle.loads((corpus / "refer" / "refs.p").read_bytes())
        data = pickle.dumps(content) if plan.as_bytes else pickle.dumps(change_values(content, plan))
        refs = work / "refs.p"
        refs.write_bytes(change_bytes(data, plan) if plan.as_bytes else data)
    else:
        instances = _changed_json(instances, work, plan)
    skips = {"skip_broken": bool(plan.choice & 1), "skip_missing": bool(plan.choice & 2)}
    convert_refer(refs, instances, corpus / "coco" / "images", work / "data", **skips)
    _check_accepted(work)


def recipes(corpus: Path, work: Path, plan: Plan) -> None:
    """A changed recipe or comparison, or `--set` with a changed value; what is accepted begins to train."""
    from agevlm.comparison.recipe import load_comparison
    from agevlm.training.recipe import dump_recipe, load_recipe

    files = sorted((corpus / "recipes").iterdir())
    path, overrides = files[int(plan.file * len(files))], []
    if plan.choice % 3 == 0:
        keys = (
            "seed",
            "stages.0.steps",
            "stages.0.kinds.caption",
            "data.scenes.num_scenes",
            "stages",
            "model.init",
            "x",
            "a.b.c",
        )
        value = plan.ops[0].value
        overrides = [f"{keys[plan.choice % len(keys)]}={value}", *([plan.text] if plan.choice > 40 else [])]
        if plan.choice % 12 == 0:  # a number that does: beyond the parser lies more
            path, overrides = corpus / "recipes" / "quickstart.yaml", [f"stages.0.warmup_ratio={plan.file}"]
    else:
        target = work / path.name
        data = path.read_bytes()
        if not plan.as_bytes:
            content = change_values(yaml.safe_load(data), plan)
            data = yaml.safe_dump(content, allow_unicode=False).encode("utf-8", "surrogatepass")
        target.write_bytes(change_bytes(data, plan) if plan.as_bytes else data)
        path = target
        for other in files:  # which some extend
            if other.name != path.name:
                (work / other.name).symlink_to(other)
    if "common" in (path.read_bytes().decode("utf-8", "replace")):
        load_comparison(path, overrides)
        return
    recipe = load_recipe(path, overrides)
    (work / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(work / "again.yaml") == recipe, "a recipe that was written out is another one"
    _begin(recipe, work)


def parquet(corpus: Path, work: Path, plan: Plan) -> None:
    """A dataset with a damaged shard, summary or rows: inspected, read, exported, and its masks used."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from agevlm.data.rows import arrow_schema

    shutil.copytree(corpus / "parquet" / "data", work / "data")
    shard = next((work / "data").glob("*.parquet"))
    if plan.file < 0.2:
        _changed_json(work / "data" / "dataset.json", work / "data", plan)
    elif plan.as_bytes:
        shard.write_bytes(change_bytes(shard.read_bytes(), plan))
    else:
        rows = change_values(rows_of(corpus / "parquet" / "data"), plan)
        try:
            table = pa.Table.from_pylist(rows, schema=arrow_schema() if plan.choice & 1 else None)
            pq.write_table(table, shard)
        except Exception:  # no such file can be written
            return
    _check_accepted(work, inspected=True)


def checkpoints(corpus: Path, work: Path, plan: Plan) -> None:
    """A checkpoint with a damaged or missing file; what loads answers a question, with finite numbers."""
    directory = work / "checkpoint"
    directory.mkdir()
    files = sorted(path for path in (corpus / "checkpoint").iterdir() if path.name not in _BESIDE_A_CHECKPOINT)
    chosen = files[int(plan.file * len(files))]
    for path in files:
        if path != chosen:
            (directory / path.name).symlink_to(path)
    if plan.choice % 16 == 0:
        pass  # it is missing
    elif chosen.name == "model.safetensors" and not plan.as_bytes:
        (directory / chosen.name).write_bytes(_changed_weights(chosen.read_bytes(), plan))
    elif chosen.suffix == ".json":
        _changed_json(chosen, directory, plan)
    else:
        (directory / chosen.name).write_bytes(change_bytes(chosen.read_bytes(), plan))
    seen = _look(corpus / "pictures" / "picture.png", "is there a fish?", None, directory)
    assert all(np.isfinite(word.map).all() for word in seen.words), "a map that is no numbers"


def report(corpus: Path, work: Path, plan: Plan) -> None:
    """The report of a damaged run."""
    from agevlm.analysis.report import write_report

    shutil.copytree(corpus / "run", work / "run")
    files = sorted(path for path in (work / "run").rglob("*") if path.is_file())
    chosen = files[int(plan.file * len(files))]
    if chosen.suffix in (".json", ".jsonl"):
        _changed_json(chosen, chosen.parent, plan)
    else:
        chosen.write_bytes(change_bytes(chosen.read_bytes(), plan))
    page = write_report(work / "run").read_text("utf-8")
    assert "<script>alert" not in page, "a text on the page is a script"


TARGETS: dict[str, Target] = {
    "pictures and `look`": pictures,
    "COCO annotations": coco,
    "`data convert`": convert,
    "`data refer`": refer,
    "recipes and `--set`": recipes,
    "Parquet read, inspect, export": parquet,
    "checkpoints": checkpoints,
    "questions": questions,
    "damaged run, `report`": report,
}
_CHEAP = ("COCO annotations", "`data convert`", "`data refer`", "Parquet read, inspect, export")  # milliseconds
SHARES = {  # of the inputs, by what they cost: the others ask a model, or draw
    **dict.fromkeys(TARGETS, 1.0),
    **dict.fromkeys(_CHEAP, 6.0),
    "recipes and `--set`": 2.0,
    "damaged run, `report`": 0.2,
}
_BESIDE_A_CHECKPOINT = ("README.md", "environment.json", "recipe.yaml")  # nothing reads these when it loads
NAMELESS = ("questions", "recipes and `--set`")  # a question is no file, and of a recipe the key is named


# ----------------------------------------------------------------------------------------------------------- helpers


def _changed_json(source: Path, directory: Path, plan: Plan) -> Path:
    """A changed JSON file, or one of JSON lines, under its own name in a directory."""
    data, target = source.read_bytes(), directory / source.name
    if not plan.as_bytes:
        if source.suffix == ".jsonl":
            lines = change_values([json.loads(line) for line in data.decode().splitlines()], plan)
            text = "\n".join(_json(line) for line in (lines if isinstance(lines, list) else [lines]))
        else:
            text = _json(change_values(json.loads(data), plan))
        data = text.encode()
    else:
        data = change_bytes(data, plan)
    target.write_bytes(data)
    return target


def _json(value: Any) -> str:
    return json.dumps(value, default=repr)


def _changed_weights(data: bytes, plan: Plan) -> bytes:
    """Weights with a tensor that is missing, of another shape or not finite."""
    from safetensors.torch import load, save

    weights = load(data)
    for op in plan.ops:
        names = sorted(weights)
        name = names[int(op.where * len(names))]
        if op.kind == "delete":
            del weights[name]
        elif op.kind in ("copy", "wrap"):
            weights[name] = weights[names[int(op.other * len(names))]].clone()
        else:
            weights[name].view(-1)[0] = math.nan if op.other < 0.5 else math.inf
    return save(weights, metadata={"format": "pt"})


def _check_accepted(work: Path, inspected: bool = False) -> None:
    """What the inspector approves, every reader takes; what a converter wrote, the inspector approves."""
    from agevlm.data.check import check_dataset
    from agevlm.data.formats.coco_export import export_coco
    from agevlm.data.masks import union_mask
    from agevlm.data.parquet import read_parquet
    from agevlm.data.row_check import HARMLESS

    faults = check_dataset(work / "data")
    whole = not set(faults.counts) - set(HARMLESS)
    assert whole or inspected, f"a converter wrote {faults.counts}"
    try:
        records = list(read_parquet(work / "data"))
        for record in records:
            masks = [g.masks for c in record.sample.conversations for g in c.groundings if g.masks]
            assert all(np.array_equal(union_mask(own), union_mask(own)) for own in masks)
            paths = [image.path for image in record.sample.images if image.path is not None]
            assert all(path.resolve().is_relative_to((work / "data").resolve()) for path in paths), (
                f"a picture elsewhere: {paths}"
            )
        export_coco(work / "export", read_parquet(work / "data"))
    except ValueError as error:
        if whole:
            raise AssertionError(f"the inspector approves what readers refuse: {error}") from error
        raise


def _begin(recipe: Any, work: Path) -> None:
    """What a run does before its first step, where its sources are scenes of a small world and its batches small."""
    import torch

    from agevlm.training.dataset import SourceData, StageDataset
    from agevlm.training.recipe import ScenesSource
    from agevlm.training.run import open_source
    from agevlm.training.trainer import training_arguments

    for stage in recipe.stages:
        if (
            stage.steps * stage.images_per_batch * stage.gradient_accumulation_steps > 10**7
            or stage.questions_per_image > 64
        ):
            continue
        training_arguments(stage, work / "run", seed=recipe.seed, dtype=torch.float32, num_workers=0, save_steps=1)
        named = {name: recipe.data[name] for name in stage.data}
        small = all(isinstance(s, ScenesSource) and s.scenes.image_size < 200 for s in named.values())
        if small and stage.presence is None:
            sources = {name: SourceData(open_source(settings, recipe.seed)) for name, settings in named.items()}
            StageDataset(stage, sources, seed=recipe.seed)[0]


@cache
def _tiny() -> tuple[Any, Any]:
    from agevlm.checkpoints import load_vlm

    return load_vlm("tiny")


def _is_drawn(plan: Plan) -> bool:
    """Whether a figure is drawn, which takes most of the time: of half of the odd sizes, and of one in twenty else."""
    return plan.choice % (4 if plan.choice < len(SIZES) else 20) == 0


def _look(picture: Path, question: str, out: Path | None, model: Path | None = None) -> Any:
    from agevlm.api import look

    return look(_tiny() if model is None else model, picture, question, out=out, max_new_tokens=4)


def _sample(conversation: Any) -> Any:
    from agevlm.data.schema import ImageSource, Sample

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return Sample("s", (ImageSource("i", 4, 4, data=buffer.getvalue()),), (conversation,))


def _misbehave(corpus: Path, work: Path, plan: Plan) -> None:
    """What the harness must notice, for its own test."""
    if os.environ.get("AGEVLM_FUZZ_SELFTEST") == "die":
        os.abort()
    while True:
        pass


SELFTEST = {"selftest": _misbehave}
