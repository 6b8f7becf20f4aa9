"""Make the packaged model `photos`: its data before training, and the package with its card afterwards.

    python tools/package_photos.py data --photos DIR --coco-mini DIR --without 172648 516916 --out data/photos
    agevlm train photos-package --out runs/photos
    python tools/package_photos.py pack runs/photos/model --out src/agevlm/checkpoints/photos
    agevlm evaluate photos --benchmark data/indoor/test --out runs/photos/indoor
    python tools/package_photos.py card --figures indoor=runs/photos/indoor --out src/agevlm/checkpoints/photos

`card` writes what is measured into the package's README.md; figures are those of the package, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from agevlm.checkpoints import load_model
from agevlm.data.formats.coco import CocoOptions, convert_coco
from agevlm.data.parquet import Record, read_parquet, write_parquet
from agevlm.files import write_beside

MAX_BYTES = 16_000_000
FILES = ("recipe.yaml", "environment.json")  # of the run, that go into the package
CARD = """# photos

An AGE-VLM of {parameters:.1f} million parameters for photographs: EfficientNet-Lite0 with ImageNet weights (frozen), a
LLaMA of 4 layers, {layers} gated cross-attention layers with a null token. Trained by `agevlm train photos-package`
([recipe.yaml](recipe.yaml), [environment.json](environment.json)), kept in bfloat16 ({megabytes:.1f} MB).

```sh
agevlm look photos my.jpg "is there a dog in the picture?" --out look.png
```

## What it knows

It answers whether a thing is in a picture, and shows where it looked. It learned {num_words} words; of every other one
`agevlm look` says that it is not among them, for an answer about it means nothing:

{words}.

## How far to trust it

**It may be wrong about each of them.** Questions as POPE asks them, half of them answered by yes; a coin is right to
.500:

{figures}

{note}It was trained on few photographs, so that rare things were seen a few times. Ask it in the singular: "are
there any dogs?" is answered hardly better than by a coin. It does not count, read, or tell colours and places. It knows
nothing of people beyond that somebody is there. Do not let it decide about anything that matters.

## Data and licences

| part | from | licence |
|---|---|---|
| backbone | EfficientNet-Lite0, ImageNet weights published by Google | Apache-2.0 |
| language model | `tiny-llama` of this package | Apache-2.0 |
| photographs with masks | COCO 2017, {num_coco} pictures | annotations CC BY 4.0; photographs: COCO's terms of use |
| rooms with masks | NYUv2 through DAQUAR, {num_indoor} pictures | the terms of its authors |
| pictures with labels | Caltech-101, {num_objects} pictures | CC BY 4.0 |

None of these pictures is in the package. Pictures that the official POPE questions ask about were kept out. The
weights: Apache-2.0, as the package.
"""


def make_data(photos: Path, mini: Path, without: Collection[str], out: Path) -> None:
    """Write the datasets that `recipes/photos-package.yaml` reads; COCO's without the pictures of these ids."""
    parts = out.parent / f".{out.name}.parts"
    options = CocoOptions(skip_broken=True)
    sources = {
        "coco": [(photos / "coco/train.json", photos / "coco/train")],
        "mini": [(mini / f"annotations/instances_{part}.json", mini / part) for part in ("train2017", "val2017")],
        "indoor": [(photos / f"indoor/{part}.json", photos / f"indoor/{part}") for part in ("train", "val")],
    }
    for name, files in sources.items():
        for number, (instances, images) in enumerate(files):
            convert_coco(instances, images, parts / f"{name}-{number}", options)
        read = [read_parquet(parts / f"{name}-{number}") for number in range(len(files))]
        vocabulary = list(dict.fromkeys(word for dataset in read for word in dataset.vocabulary))
        summary = write_parquet(out / name, _joined(read, set(without)), vocabulary=vocabulary)
        print(f"{out / name}: {summary.num_samples} pictures, {summary.num_instances} instances")
    shutil.rmtree(parts)
    for part in ("train", "val"):
        for folder in sorted(path for path in (photos / "objects" / part).iterdir() if path.is_dir()):
            (out / "objects" / folder.name).mkdir(parents=True, exist_ok=True)
            for picture in folder.iterdir():
                shutil.copyfile(picture, out / "objects" / folder.name / f"{part}-{picture.name}")


def _joined(datasets: Iterable[Iterable[Record]], without: Collection[str]) -> Iterator[Record]:
    """All records but those of some ids; ids that two datasets share are told apart by the number of the second."""
    seen: set[str] = set()
    for number, dataset in enumerate(datasets):
        for record in dataset:
            identity = record.sample.id
            if identity in without:
                continue
            if identity in seen:
                record = Record(replace(record.sample, id=f"{identity}-{number}"), record.annotated)
            seen.add(record.sample.id)
            yield record


def pack(model_directory: Path, out: Path) -> None:
    """Write a trained model in bfloat16, with its recipe and environment; one that is too large is a ValueError."""
    model, processor = load_model(model_directory, device="cpu", dtype="bfloat16")
    if not model.config.known_words:
        raise ValueError(f"{model_directory} does not say what it learned: train it with annotated pictures")
    with write_beside(out) as beside:
        model.save_pretrained(beside)
        processor.save_pretrained(beside)
        for name in FILES:
            shutil.copyfile(model_directory / name, beside / name)
        size = sum(path.stat().st_size for path in beside.iterdir())
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes are more than the {MAX_BYTES} that the package takes")
    print(f"{out}: {size / 1e6:.1f} MB, {len(model.config.known_words)} words")


def write_card(directory: Path, figures: dict[str, Path], counts: dict[str, int], note: str) -> None:
    """Write README.md of the package from its configuration and from what was measured, by name."""
    model, _ = load_model(directory, device="cpu")
    words: list[str] = model.config.known_words
    text = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        layers=model.config.num_guided_layers,
        megabytes=(directory / "model.safetensors").stat().st_size / 1e6,
        num_words=len(words),
        words=", ".join(words),
        figures=_table(figures),
        note=f"{note}\n\n" if note else "",
        **{f"num_{name}": counts.get(name, "…") for name in ("coco", "indoor", "objects")},
    )
    with write_beside(directory / "README.md") as beside:
        beside.write_text(text, encoding="utf-8")
    print(directory / "README.md")


def _table(figures: dict[str, Path]) -> str:
    head = (
        "| test pictures | questions | random | popular | adversarial | false yes | pointing |\n" + "|---" * 7 + "|\n"
    )
    return head + "\n".join(
        _row(name, json.loads((path / "metrics.json").read_text(encoding="utf-8"))) for name, path in figures.items()
    )


def _row(name: str, metrics: dict[str, Any]) -> str:
    pope = metrics["pope"]
    splits = [pope[split] for split in ("random", "popular", "adversarial")]
    points = metrics.get("pointing", {}).get("accuracy")
    cells = [str(sum(split["num_questions"] for split in splits)), *(f"{split['accuracy']:.3f}" for split in splits)]
    cells += [f"{splits[2]['false_yes_ratio']:.3f}", "–" if points is None else f"{points:.3f}"]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Read the command line and do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    data, packing, card = (verbs.add_parser(name) for name in ("data", "pack", "card"))
    data.add_argument("--photos", type=Path, required=True, help="holds coco, indoor and objects")
    data.add_argument("--coco-mini", type=Path, required=True, help="holds annotations, train2017 and val2017")
    data.add_argument("--without", nargs="*", default=[], help="ids of COCO pictures to keep out")
    packing.add_argument("model", type=Path, help="the model directory of a run")
    card.add_argument("--figures", action="append", default=[], metavar="NAME=DIR", help="what agevlm evaluate wrote")
    card.add_argument("--count", action="append", default=[], metavar="NAME=NUMBER", help="pictures of a kind of data")
    card.add_argument("--note", default="", help="a paragraph below the figures")
    for verb in (data, packing, card):
        verb.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "data":
        make_data(given.photos, given.coco_mini, given.without, given.out)
    elif given.verb == "pack":
        pack(given.model, given.out)
    else:
        figures = {name: Path(path) for name, path in (pair.split("=", 1) for pair in given.figures)}
        counts = {name: int(number) for name, number in (pair.split("=", 1) for pair in given.count)}
        write_card(given.out, figures, counts, given.note)


if __name__ == "__main__":
    main()
