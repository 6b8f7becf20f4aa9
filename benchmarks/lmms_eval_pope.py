"""Does lmms-eval's own POPE task give the answers and scores that `agevlm evaluate --benchmark pope` gives?

Needs lmms-eval beside this package. Draws scenes, writes POPE's questions about them in the schema of the hub's
Parquet, has lmms-eval run its task `pope` on that file through the plug-in, and our command under the protocol
`lmms-eval`; then compares every answer and every figure. A model of the drawn world answers that task's prompt with
no yes and no no, so the task is run once more without the sentence that it adds to the question. First both judge the
same made-up answers to the tasks whose rules are restated here.

    python benchmarks/lmms_eval_pope.py --model tiny --num-scenes 40

With `--base-url` lmms-eval does not load the model: its own client `openai` asks a server of ours, which runs already:
`agevlm serve tiny --port 8123`.

    python benchmarks/lmms_eval_pope.py --model tiny --num-scenes 40 --base-url http://127.0.0.1:8123/v1
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agevlm.data.pope import POPE_KINDS
from agevlm.data.scenes import WorldSpec
from agevlm.evaluation.official.benchmark import Question
from agevlm.evaluation.official.files import open_source
from agevlm.evaluation.official.measures import records
from agevlm.evaluation.official.run import Settings, evaluate_official
from agevlm.evaluation.official.table import find_benchmark
from agevlm.evaluation.scenes import scenes_benchmark
from agevlm.files import read_json_lines, write_beside

Outcome = tuple[dict[str, float], dict[str, str]]  # figures, and answers by question
FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
ADDED = "\\nAnswer the question using a single word or phrase."  # as the task's file spells it
ARMS = {  # the name of a task: what it is called, the protocol that asks as it does, and its added sentence
    "pope_drawn": ("the task as it is", "lmms-eval", ADDED),
    "pope_drawn_bare": ("the task without its added sentence", "official", ""),
}


def write_dataset(directory: Path, num_scenes: int, seed: int) -> int:
    """POPE's questions about drawn scenes, a row each, in the schema of lmms-lab/POPE. The number of rows."""
    import datasets

    rows = []
    for sample in scenes_benchmark(WorldSpec(), seed, num_scenes):
        for conversation in sample.conversations:
            if conversation.kind in POPE_KINDS:
                question, answer = conversation.messages
                rows.append(
                    {
                        "id": str(len(rows)),
                        "question_id": str(len(rows)),
                        "question": question.content,
                        "answer": answer.content,
                        "image_source": sample.id,
                        "image": {"bytes": sample.images[0].data, "path": None},
                        "category": conversation.kind.removeprefix("pope."),
                    }
                )
    text = datasets.Value("string")
    names = ("id", "question_id", "question", "answer", "image_source", "category")
    features = datasets.Features(dict.fromkeys(names, text) | {"image": datasets.Image()})
    (directory / "data").mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(directory / "data" / "test-00000-of-00001.parquet")
    return len(rows)


def write_task(directory: Path, name: str, dataset: Path, added: str) -> None:
    """lmms-eval's own task `pope`, its functions untouched: with another name, place of the data and added sentence."""
    import lmms_eval

    own = Path(lmms_eval.__file__).parent / "tasks" / "pope"
    (directory / "utils.py").write_text((own / "utils.py").read_text())
    text = (own / "pope.yaml").read_text()
    assert ADDED in text, "the task asks otherwise now: see its file"
    changed = {"dataset_path": f"dataset_path: {dataset}", "task": f"task: {name}"}
    lines = [changed.get(line.split(":")[0], line) for line in text.replace(ADDED, added).splitlines()]
    kept = [line for line in lines if line.strip() not in ("dataset_kwargs:", "token: True")]
    (directory / f"{name}.yaml").write_text("\n".join(kept) + "\n")


def asked_by(model: str, base_url: str | None) -> list[str]:
    """The arguments of lmms-eval for a model: the plug-in on the CPU, or its own client of a server."""
    if base_url is None:
        return ["--model", "agevlm", "--model_args", f"pretrained={model}", "--device", "cpu"]
    served = f"model={model},base_url={base_url},api_key=none,timeout=120,num_concurrent=8"
    return ["--model", "openai", "--model_args", served]


def run_lmms_eval(
    arguments: Sequence[str], names: Sequence[str], tasks: Path, out: Path, batch_size: int
) -> dict[str, Outcome]:
    """Figures, and answers by question, of each task that lmms-eval finds."""
    command = [sys.executable, "-m", "lmms_eval", *arguments, "--batch_size", str(batch_size)]
    command += ["--tasks", ",".join(names), "--include_path", str(tasks), "--log_samples", "--output_path", str(out)]
    subprocess.run(command, check=True)
    results = json.loads(next(out.rglob("*_results.json")).read_text())["results"]
    found = {}
    for name in names:
        figures = {key.split(",")[0].removeprefix("pope_"): value for key, value in results[name].items() if "," in key}
        figures["f1"] = figures.pop("f1_score")
        samples = read_json_lines(next(out.rglob(f"*_samples_{name}.jsonl")))
        answers = {sample["pope_accuracy"]["question_id"]: sample["filtered_resps"] for sample in samples}
        texts = {key: text if isinstance(text, str) else text[0] for key, text in answers.items()}
        found[name] = {key: figures[key] for key in FIGURES}, texts
    return found


def run_ours(model: str, protocol: str, dataset: Path, out: Path, batch_size: int) -> Outcome:
    """The same of `agevlm evaluate`; its answers are always scored as lmms-eval does."""
    evaluate_official(model, "pope", dataset, out, Settings(protocol=protocol, device="cpu", batch_size=batch_size))
    answers = {record["id"]: record["answer"] for record in read_json_lines(out / "predictions.jsonl")}
    pope = find_benchmark("pope")
    scoring = pope.protocol("lmms-eval")
    marks = [scoring.mark(q, answers[q.id]) for q in pope.read(open_source(dataset)).questions]
    figures = records(scoring.figures(marks))["all"]
    return {name: figures[name] for name in FIGURES}, {key.split("/")[1]: text for key, text in answers.items()}


def compare(theirs: Outcome, ours: Outcome) -> dict[str, Any]:
    """Figures of both on the same questions with the same prompt, how many answers differ, and what they say."""
    assert ours[1].keys() == theirs[1].keys()
    said = Counter(ours[1].values())
    return {
        "num_questions": len(ours[1]),
        "num_different_answers": sum(ours[1][key] != theirs[1][key] for key in ours[1]),
        "largest_difference": max(abs(ours[0][name] - theirs[0][name]) for name in FIGURES),
        "lmms_eval": theirs[0],
        "agevlm": ours[0],
        "num_distinct_answers": len(said),
        "most_common_answers": dict(said.most_common(5)),
    }


def compare_rules(num_answers: int = 4000) -> dict[str, int]:
    """How many made-up answers were judged, task by task; one that is judged differently is an AssertionError."""
    rng = random.Random(0)
    pieces = "yes no Yes No A B C D (A) (b) C. d: the answer is option I choose a fish left 3 . , ! ? \n ( ) not".split(
        " "
    )
    answers = [
        "".join(rng.choice((" ", "")) + rng.choice(pieces) for _ in range(rng.randrange(7))) for _ in range(num_answers)
    ]
    for name, (document, question, theirs) in _rules().items():
        protocol = find_benchmark(name).protocol("lmms-eval")
        for answer in answers:
            given = answer.strip()  # as lmms-eval hands it over
            ours = protocol.mark(question, given).correct
            assert ours == bool(theirs(document, [given])), (name, given, ours)
    return dict.fromkeys(_rules(), num_answers)


def _rules() -> dict[str, tuple[dict[str, Any], Question, Callable[[Mapping[str, Any], list[str]], Any]]]:
    """For each task a document, the same as a question, and whether lmms-eval finds an answer right."""
    from lmms_eval.tasks.cv_bench.utils import cv_bench_process_results
    from lmms_eval.tasks.mmstar.utils import mmstar_process_results
    from lmms_eval.tasks.mmvp.utils import mmvp_process_results
    from lmms_eval.tasks.pope.utils import pope_process_results
    from lmms_eval.tasks.realworldqa.utils import realworldqa_process_results

    def asked(answer: str, **facts: str) -> Question:
        return Question("1", "?", answer, None, "1", facts, dict(zip("ABCD", ("a", "b", "c", "d"), strict=True)))

    star = {"answer": "B", "category": "math", "l2_category": "geometry", "index": 1}
    cv = {"answer": "(B)", "idx": 1, "type": "2D", "task": "Count", "source": "COCO"}
    return {
        "pope": (
            {"answer": "yes", "question_id": "1"},
            asked("yes"),
            lambda d, r: pope_process_results(d, r)["pope_accuracy"]["score"],
        ),
        "cv-bench": (cv, asked("B"), lambda d, r: cv_bench_process_results(d, r)["cv_bench_acc"]["is_correct"]),
        "mmvp": (
            {"Correct Answer": "(b)", "Index": 1},
            asked("B"),
            lambda d, r: mmvp_process_results(d, r)["mmvp_accuracy"]["is_correct"],
        ),
        "realworldqa": (
            {"answer": "B"},
            asked("B", kind="letter"),
            lambda d, r: realworldqa_process_results(d, r)["exact_match"],
        ),
        "mmstar": (star, asked("B"), lambda d, r: mmstar_process_results(d, r)["average"]["score"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, a directory or a hub id")
    parser.add_argument("--num-scenes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--base-url", help="of a server of this model, which lmms-eval is to ask")
    parser.add_argument("--json", type=Path, help="the file of results")
    args = parser.parse_args()
    name = "lmms_eval_pope" if args.base_url is None else "lmms_eval_served"
    args.json = args.json or Path(__file__).parent / "results" / f"{name}.json"
    rules = compare_rules()
    print(f"made-up answers judged alike: {rules}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_dataset(work / "pope", args.num_scenes, args.seed)
        (work / "tasks").mkdir()
        for name, (_, _, added) in ARMS.items():
            write_task(work / "tasks", name, work / "pope", added)
        arguments = asked_by(args.model, args.base_url)
        theirs = run_lmms_eval(arguments, list(ARMS), work / "tasks", work / "lmms-eval", args.batch_size)
        compared = {
            title: compare(theirs[name], run_ours(args.model, protocol, work / "pope", work / name, args.batch_size))
            for name, (title, protocol, _) in ARMS.items()
        }
    report = {
        "model": args.model,
        "asked_by": "the plug-in" if args.base_url is None else "lmms-eval's own client of a server",
        "num_scenes": args.num_scenes,
        "seed": args.seed,
        **compared,
        "made_up_answers_judged_alike": rules,
        "versions": {name: version(name) for name in ("lmms_eval", "transformers", "torch", "agevlm")},
    }
    print(json.dumps(report, indent=2))
    with write_beside(args.json) as beside:
        beside.write_text(json.dumps(report, indent=2) + "\n")
    for name, found in compared.items():
        if found["num_different_answers"] or found["largest_difference"] > 1e-12:
            raise SystemExit(f"{name}: {found['num_different_answers']} answers differ")


if __name__ == "__main__":
    main()
