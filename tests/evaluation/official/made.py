"""Small files of every official benchmark, in the very schema in which it ships, with pictures of noise."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tiny_models import make_picture

Rows = list[dict[str, Any]]


def png(seed: int) -> bytes:
    """A picture of noise as PNG."""
    file = io.BytesIO()
    make_picture(seed).save(file, "PNG")
    return file.getvalue()


def cell(seed: int) -> dict[str, Any]:
    """A picture as the hub's Parquet has it."""
    return {"bytes": png(seed), "path": None}


def base64_png(seed: int) -> str:
    """A picture as VLMEvalKit's TSVs have it."""
    return base64.b64encode(png(seed)).decode()


def write_parquet(path: Path, rows: Rows, rows_a_group: int = 2, like: Path | None = None) -> None:
    """A Parquet file of several row groups, with the types of another (`like`) or those of its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=None if like is None else pq.read_schema(like))
    pq.write_table(table, path, row_group_size=rows_a_group)


def write_lines(path: Path, rows: Rows) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_delimited(path: Path, rows: Rows, delimiter: str = "\t") -> None:
    """TSV or CSV with a line of names."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def picture_files(directory: Path, names: Sequence[str], first_seed: int = 0) -> None:
    """Picture files with these names below a directory."""
    for seed, name in enumerate(names, first_seed):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))


POPE_ROWS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "random": [("1.jpg", "fish", "yes"), ("1.jpg", "boat", "no"), ("2.jpg", "house", "yes"), ("2.jpg", "fish", "no")],
    "popular": [("1.jpg", "fish", "yes"), ("1.jpg", "house", "no"), ("2.jpg", "house", "yes"), ("2.jpg", "fish", "no")],
    "adversarial": [
        ("1.jpg", "fish", "yes"),
        ("1.jpg", "boat", "no"),
        ("2.jpg", "house", "yes"),
        ("2.jpg", "boat", "no"),
    ],
}


def pope(directory: Path, kind: str = "pope") -> Path:
    """The official JSON lines, a file for each split, and the pictures."""
    for split, rows in POPE_ROWS.items():
        write_lines(
            directory / f"coco_{kind}_{split}.json",
            [
                {"question_id": number, "image": image, "text": f"Is there a {thing} in the image?", "label": label}
                for number, (image, thing, label) in enumerate(rows, 1)
            ],
        )
    picture_files(directory / "val2014", ["1.jpg", "2.jpg"])
    return directory


def pope_parquet(directory: Path) -> Path:
    """The hub's Parquet, in which every row has its picture."""
    rows = [
        {
            "id": f"{split}-{number}",
            "question_id": str(number),
            "question": f"Is there a {thing} in the image?",
            "answer": label,
            "image_source": image.removesuffix(".jpg"),
            "image": cell(int(image[0]) - 1),
            "category": split,
        }
        for split, questions in POPE_ROWS.items()
        for number, (image, thing, label) in enumerate(questions, 1)
    ]
    write_parquet(directory / "data" / "test-00000-of-00001.parquet", rows)
    return directory


def repope(directory: Path) -> Path:
    """RePOPE's files are POPE's in form."""
    return pope(directory, "repope")


CV_ROWS: Rows = [
    {"idx": i, "type": kind, "task": task, "source": source, "choices": choices, "answer": answer}
    for i, (kind, task, source, choices, answer) in enumerate(
        [
            ("2D", "Count", "ADE20K", ["3", "2", "1"], "(C)"),
            ("2D", "Count", "COCO", ["0", "1", "2"], "(A)"),
            ("2D", "Relation", "COCO", ["left", "right"], "(B)"),
            ("3D", "Depth", "Omni3D", ["fish", "boat"], "(A)"),
            ("3D", "Distance", "Omni3D", ["house", "boat"], "(B)"),
            ("3D", "Distance", "Omni3D", ["house", "fish"], "(B)"),
        ]
    )
]


def _cv_rows(part: str) -> Rows:
    return [
        {
            **row,
            "question": "how many ?",
            "prompt": "how many ? Select from the following choices.\n"
            + "\n".join(f"({letter}) {text}" for letter, text in zip("ABC", row["choices"], strict=False)),
            "filename": f"img/{part}/{row['idx']}.png",
        }
        for row in CV_ROWS
        if row["type"] == part
    ]


def cv_bench(directory: Path) -> Path:
    """The hub's two Parquet files."""
    for part in ("2D", "3D"):
        rows = [{**row, "image": cell(row["idx"])} for row in _cv_rows(part)]
        write_parquet(directory / f"test_{part.lower()}.parquet", rows)
    return directory


def cv_bench_lines(directory: Path, pictures: bool = True) -> Path:
    """The hub's two files of JSON lines, and the folder of pictures."""
    for part in ("2D", "3D"):
        write_lines(directory / f"test_{part.lower()}.jsonl", _cv_rows(part))
    if pictures:
        picture_files(directory, [f"img/{row['type']}/{row['idx']}.png" for row in CV_ROWS])
    return directory


def mmvp(directory: Path) -> Path:
    """The authors' CSV, the first heading misspelt as there, and the folder of pictures."""
    rows = [
        {"lndex": n, "Question": "is the fish red or blue ?", "Options": "(a) red (b) blue", "Correct Answer": answer}
        for n, answer in enumerate(["(a)", "(b)", "(b)", "(a)"], 1)
    ]
    write_delimited(directory / "Questions.csv", rows, ",")
    picture_files(directory / "MMVP Images", [f"{n}.jpg" for n in range(1, 5)])
    return directory


def mmvp_parquet(directory: Path) -> Path:
    """lmms-eval's Parquet."""
    rows = [
        {
            "Index": n,
            "Question": "is the fish red or blue ?",
            "Options": "(a) red (b) blue",
            "Correct Answer": answer,
            "image": cell(n),
        }
        for n, answer in enumerate(["(a)", "(b)", "(b)", "(a)"], 1)
    ]
    write_parquet(directory / "train-00000-of-00001.parquet", rows)
    return directory


def realworldqa(directory: Path) -> Path:
    """The hub's Parquet: letters, a number and a word."""
    answers = ["A", "C", "2", "Left"]
    rows = [
        {"image_path": f"{n}.webp", "image": cell(n), "question": f"how many fish {n} ?", "answer": answer}
        for n, answer in enumerate(answers)
    ]
    write_parquet(directory / "test.parquet", rows)
    return directory


MMSTAR_ROWS = [
    ("math", "geometry", "A"),
    ("math", "geometry", "B"),
    ("math", "statistical reasoning", "C"),
    ("logical reasoning", "common reasoning", "D"),
]


def mmstar(directory: Path) -> Path:
    """The hub's Parquet, in which options stand in the question and pictures are bare bytes."""
    rows = [
        {
            "index": n,
            "question": f"what is there {n} ?\nOptions: A: fish, B: boat, C: house, D: no",
            "image": png(n),
            "answer": answer,
            "category": category,
            "l2_category": kind,
            "meta_info": {"source": "made", "split": "test", "image_path": f"{n}.jpg"},
        }
        for n, (category, kind, answer) in enumerate(MMSTAR_ROWS)
    ]
    write_parquet(directory / "mmstar.parquet", rows)
    return directory


def mmstar_tsv(directory: Path) -> Path:
    """VLMEvalKit's TSV: options in columns, pictures in base64."""
    rows = [
        {
            "index": n,
            "question": f"what is there {n} ?",
            "image": base64_png(n),
            "answer": answer,
            "category": category,
            "l2-category": kind,
            "A": "fish",
            "B": "boat",
            "C": "house",
            "D": "no",
        }
        for n, (category, kind, answer) in enumerate(MMSTAR_ROWS)
    ]
    write_delimited(directory / "MMStar.tsv", rows)
    return directory


HALLUSION = [  # category, subcategory, visual_input, set, figure, question, answer
    ("VD", "illusion", "1", "0", "0", "0", "1"),
    ("VD", "illusion", "1", "0", "0", "1", "0"),
    ("VD", "illusion", "1", "0", "1", "0", "0"),
    ("VD", "illusion", "1", "0", "1", "1", "1"),
    ("VS", "chart", "0", "0", "0", "0", "1"),
    ("VS", "chart", "1", "0", "1", "0", "1"),
    ("VS", "chart", "2", "0", "2", "0", "0"),
]


def hallusionbench(directory: Path) -> Path:
    """The authors' JSON, a list, and the pictures in folders of category and subcategory."""
    names = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "gt_answer")
    rows = [
        {
            **dict(zip(names, row, strict=True)),
            "question": f"is the fish {row[5]} left of the boat ?",
            "gt_answer_details": "",
            "filename": None if row[2] == "0" else f"./hallusion_bench/{row[0]}/{row[1]}/{row[3]}_{row[4]}.png",
        }
        for row in HALLUSION
    ]
    (directory / "HallusionBench.json").write_text(json.dumps(rows))
    picture_files(directory, [row["filename"] for row in rows if row["filename"]])
    return directory


def _hallusion_rows(figures: bool) -> Rows:
    names = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "gt_answer")
    return [
        {
            **dict(zip(names, row, strict=True)),
            "sample_note": "made",
            "question": f"is the fish {row[5]} left of the boat ?",
            "gt_answer_details": "",
            "filename": f"./hallusion_bench/{row[0]}/{row[1]}/{row[3]}_{row[4]}.png" if figures else None,
            "image": cell(n) if figures else None,
        }
        for n, row in enumerate(HALLUSION)
        if (row[2] != "0") == figures
    ]


def hallusionbench_parquet(directory: Path) -> Path:
    """The hub's two parts, with and without figures, of the same columns."""
    with_figures = directory / "data" / "image-00000-of-00001.parquet"
    write_parquet(with_figures, _hallusion_rows(True))
    write_parquet(directory / "data" / "non_image-00000-of-00001.parquet", _hallusion_rows(False), like=with_figures)
    return directory


def hallusionbench_tsv(directory: Path) -> Path:
    """VLMEvalKit's TSV, which has the questions with a figure only."""
    rows = [
        {
            "index": "_".join(row[:6]),
            "category": row[0],
            "l2-category": row[1],
            "question": f"is the fish {row[5]} left of the boat ?",
            "answer": "Yes" if row[6] == "1" else "No",
            "image": base64_png(n),
        }
        for n, row in enumerate(HALLUSION)
        if row[2] != "0"
    ]
    write_delimited(directory / "HallusionBench.tsv", rows)
    return directory


AMBER_TYPES = [
    (1005, "discriminative-attribute-state", "yes"),
    (1006, "discriminative-attribute-state", "no"),
    (1007, "discriminative-attribute-number", "no"),
    (1008, "discriminative-attribute-action", "no"),
    (1009, "discriminative-hallucination", "no"),
    (1010, "relation", "yes"),
]


def amber(directory: Path) -> Path:
    """Queries and annotations, of the generative part too, and the pictures."""
    queries: Rows = [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}]
    annotations: Rows = [{"id": 1, "type": "generative", "truth": ["fish"], "hallu": ["boat"]}]
    for n, (identity, kind, truth) in enumerate(AMBER_TYPES):
        queries.append({"id": identity, "image": f"AMBER_{n % 2 + 1}.jpg", "query": f"Is the fish {n} red?"})
        annotations.append({"id": identity, "type": kind, "truth": truth})
    (directory / "query").mkdir()
    (directory / "query" / "query_all.json").write_text(json.dumps(queries))
    (directory / "query" / "query_discriminative.json").write_text(json.dumps(queries[1:]))
    (directory / "annotations.json").write_text(json.dumps(annotations))
    picture_files(directory / "image", ["AMBER_1.jpg", "AMBER_2.jpg"])
    return directory


def amber_tsv(directory: Path) -> Path:
    """VLMEvalKit's TSV, in which a picture that was there before is the index of its row."""
    rows = [
        {
            "index": identity,
            "image": base64_png(n) if n < 2 else AMBER_TYPES[n % 2][0],
            "image_path": f"AMBER_{n % 2 + 1}.jpg",
            "question": f"Is the fish {n} red?",
            "answer": truth,
            "category": kind,
        }
        for n, (identity, kind, truth) in enumerate(AMBER_TYPES)
    ]
    write_delimited(directory / "AMBER.tsv", rows)
    return directory


def chair(directory: Path) -> Path:
    """COCO's two files of annotations, a list of synonyms and the pictures."""
    names = ["COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg"]
    images = [{"id": n, "file_name": name, "height": 24, "width": 40} for n, name in enumerate(names, 1)]
    instances = {
        "images": images,
        "categories": [{"id": 1, "name": "person"}, {"id": 16, "name": "bird"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1}, {"id": 2, "image_id": 2, "category_id": 16}],
    }
    captions = {
        "images": images,
        "annotations": [
            {"id": 1, "image_id": 1, "caption": "A man sits on a bench."},
            {"id": 2, "image_id": 2, "caption": "Two birds at a stop sign."},
        ],
    }
    (directory / "instances_val2014.json").write_text(json.dumps(instances, indent=1))
    (directory / "captions_val2014.json").write_text(json.dumps(captions, indent=1))
    (directory / "synonyms.txt").write_text(
        "person, man, woman, child, people, policeman, gentleman\nbird, duck\nbench, pew\nstop sign\ndog, puppy\n"
        "chair, seat\ntoilet\ntie\ntrain\nwine glass\nteddy bear, teddybear\nbear\nbus\ncow, calf, buffalo\n"
        "bicycle, bike\nmotorcycle, scooter,  motor bike, motor cycle\ncake,  cheesecake, cupcake\nskis, ski\n"
    )
    picture_files(directory / "val2014", names)
    return directory


ALL: Mapping[str, Callable[[Path], Path]] = {
    "pope": pope,
    "repope": repope,
    "cv-bench": cv_bench,
    "cv-bench-2d": cv_bench,
    "cv-bench-3d": cv_bench,
    "mmvp": mmvp,
    "realworldqa": realworldqa,
    "mmstar": mmstar,
    "hallusionbench": hallusionbench,
    "amber": amber,
    "chair": chair,
}
