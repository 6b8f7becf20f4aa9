"""The runner of all official benchmarks: asks a model what is not answered yet, and scores. It knows none by name.

Under `accelerate launch` every process asks about its own share of the pictures; the main one gathers and scores.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agevlm.data.images import ImageError, open_image
from agevlm.data.schema import Message
from agevlm.evaluation.answering import PLAIN
from agevlm.evaluation.official.benchmark import Benchmark, Marked, Protocol, Question
from agevlm.evaluation.official.files import open_source
from agevlm.evaluation.official.measures import records
from agevlm.evaluation.official.outcome import Metrics, missing_record, write_outcome
from agevlm.evaluation.official.store import AnswerStore
from agevlm.evaluation.official.table import BENCHMARKS, find_benchmark
from agevlm.evaluation.results import provenance

if TYPE_CHECKING:
    from agevlm.vlms import Kept, Vlm, Way

IMAGES_AT_ONCE = 16
DEFAULT_BATCH_SIZE = 16

Progress = Callable[[str, int, int], None]  # what is asked, prompts done, prompts in all


@dataclass(frozen=True)
class Settings:
    """How to measure. `protocol` None: the first of the benchmark. `images`: where picture files lie, if not under the
    data. `num_images` asks about the first so many pictures only. `answering` is a way to answer, see
    `agevlm.vlms.ways`; no benchmark has masks for that of masks.
    """

    protocol: str | None = None
    images: str | Path | None = None
    num_images: int | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    answering: str = PLAIN
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Ask:
    """A prompt about a picture, once for all questions that share both.

    `key` stays the same from run to run, and is another where the picture is.
    """

    key: str
    prompt: str
    question: Question


@dataclass
class Plan:
    """What is to be asked, by picture, and which ask answers which question."""

    asks: dict[str, list[Ask]] = field(default_factory=dict)
    key_of: dict[str, str] = field(default_factory=dict)
    missing: list[Question] = field(default_factory=list)

    @property
    def num_asks(self) -> int:
        """Prompts in all."""
        return sum(map(len, self.asks.values()))


def evaluate_official(
    model: str | Path,
    benchmark: str,
    data: str | Path,
    out: str | Path,
    settings: Settings = Settings(),
    *,
    progress: Progress | None = None,
) -> Metrics | None:
    """Ask the model called `model` a benchmark's questions, write answers and figures to `out`; None but in the main
    process.

    A call that was killed goes on where it stopped. Questions whose picture is missing or damaged, and those that the
    model does not take, are not asked, and counted. Errors, as ValueErrors: an unknown benchmark or protocol, data of
    another schema or that cannot be had, no picture at all, an `out` of another run, and those of
    `checkpoints.load_vlm`.
    """
    from accelerate import PartialState

    found = find_benchmark(benchmark)
    protocol = found.protocol(settings.protocol)
    if settings.batch_size < 1:
        raise ValueError(f"batch_size is the number of prompts asked at once, got {settings.batch_size}")
    if settings.answering == "mask":
        raise ValueError("answering by mask needs masks of what is asked, and no benchmark by name has any")
    source = open_source(data, settings.images)
    reading = found.read(source)
    questions = [question for question in reading.questions if protocol.keep(question)]
    plan = _checked_plan(found, protocol, questions, settings.num_images)
    state = PartialState(cpu=settings.device == "cpu")
    store = AnswerStore(out)
    if state.is_main_process:
        store.begin(_identity(model, found, protocol, settings), set(plan.key_of.values()))
    state.wait_for_everyone()
    done = store.answers()
    state.wait_for_everyone()  # all have read what is answered before any answers more
    own = list(plan.asks.values())[state.process_index :: state.num_processes]
    todo = [left for asks in own if (left := [ask for ask in asks if ask.key not in done])]
    if todo:
        device = str(state.device) if settings.device == "auto" and state.num_processes > 1 else settings.device
        vlm = _load(model, device, settings.dtype)
        answered = _answer(vlm, todo, protocol, settings, found.yes_no)
        total, count = sum(map(len, todo)), 0
        for batch in answered:
            store.append(state.process_index, batch)
            count += len(batch)
            if progress:
                progress(found.name, count, total)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    facts = {
        "model": str(model),
        "answering": settings.answering,
        "data": str(data),
        "data_revision": source.revision,
        "left_out": list(reading.left_out),
        "damaged_files": source.damaged,
    }
    return _finish(found, protocol, plan, questions, store, facts)


def check_needs_data(benchmark: str) -> None:
    """A benchmark of this room that is asked for without data, and is no directory either, is a ValueError."""
    if benchmark.lower() in BENCHMARKS and not Path(benchmark).is_dir():
        known = find_benchmark(benchmark)
        named = f", such as {known.hub[0]}" if known.hub else ""
        raise ValueError(f"{benchmark} needs --data: a directory with {known.data}, or a hub id to fetch{named}")


def _checked_plan(
    benchmark: Benchmark, protocol: Protocol, questions: Sequence[Question], num_images: int | None
) -> Plan:
    """`plan_of`; ValueError where the protocol needs other questions, or no picture is at hand."""
    if not questions:
        raise ValueError(
            f"the data has no question of {benchmark.title} that the protocol {protocol.name} is about: give all of "
            "its files, or choose another protocol"
        )
    protocol.check(questions)
    plan = plan_of(questions, protocol, num_images)
    if not plan.asks:
        raise ValueError(
            f"no picture of the {len(questions)} questions of {benchmark.title} is at hand: {plan.missing[0].unit} and "
            f"{len({q.unit for q in plan.missing}) - 1} more are missing: name their directory with --images"
        )
    return plan


def plan_of(questions: Sequence[Question], protocol: Protocol, num_images: int | None = None) -> Plan:
    """Group questions by picture and prompt; with `num_images` only those about the first pictures that are there."""
    plan = Plan()
    keys: set[str] = set()
    fingerprints: dict[str, str] = {}
    for question in questions:
        picture = question.picture
        if picture is not None and picture.read is None:
            plan.missing.append(question)
            continue
        name = "" if picture is None else picture.name
        if name not in plan.asks and num_images is not None and len(plan.asks) >= num_images:
            continue
        prompt = protocol.prompt(question)
        if name not in fingerprints:
            fingerprints[name] = picture.fingerprint() if picture is not None else ""
        key = hashlib.sha256(json.dumps([name, prompt, fingerprints[name]]).encode()).hexdigest()[:20]
        plan.key_of[question.id] = key
        asks = plan.asks.setdefault(name, [])
        if key not in keys:
            keys.add(key)
            asks.append(Ask(key, prompt, question))
    return plan


def _load(model: str | Path, device: str, dtype: str) -> Vlm:
    from agevlm.checkpoints import load_vlm
    from agevlm.vlms import Vlm

    return Vlm(*load_vlm(model, device, dtype))


def _answer(
    vlm: Vlm, todo: Sequence[Sequence[Ask]], protocol: Protocol, settings: Settings, yes_no: bool
) -> Iterator[list[dict[str, Any]]]:
    """Records of answers, a batch at a time; what cannot be read or asked has a record that says why."""
    from agevlm.vlms import way_named

    way = way_named(settings.answering, vlm)
    for start in range(0, len(todo), IMAGES_AT_ONCE):
        asks, kept, damaged = _opened(vlm, todo[start : start + IMAGES_AT_ONCE])
        if damaged:
            yield damaged
        order = sorted(asks, key=lambda ask: (ask.question.picture is None, len(ask.prompt)))
        for batch in _batches(order, settings.batch_size):
            yield _ask_batch(vlm, batch, kept, protocol, yes_no, way)


def _opened(vlm: Vlm, block: Sequence[Sequence[Ask]]) -> tuple[list[Ask], dict[str, Kept], list[dict[str, Any]]]:
    """The asks whose pictures can be read, these pictures kept by name, and a record for each ask of the others."""
    pictures: dict[str, Any] = {}
    asks: list[Ask] = []
    damaged: list[dict[str, Any]] = []
    for group in block:
        picture = group[0].question.picture
        try:
            if picture is not None:
                assert picture.read is not None
                pictures[picture.name] = open_image(picture.read())
            asks += group
        except (ValueError, OSError) as error:
            damaged += [_left_out(ask, error) for ask in group]
    return asks, dict(zip(pictures, vlm.keep(list(pictures.values())), strict=True)), damaged


def _left_out(ask: Ask, error: Exception) -> dict[str, Any]:
    problem = error.kind if isinstance(error, ImageError) else f"{' '.join(str(error).split()):.200}"
    return {"key": ask.key, "answer": None, "problem": problem}


def _batches(asks: Sequence[Ask], batch_size: int) -> Iterator[list[Ask]]:
    """Asks that go together: all with a picture, or all without one."""
    for pictured in (True, False):
        chosen = [ask for ask in asks if (ask.question.picture is not None) == pictured]
        for start in range(0, len(chosen), batch_size):
            yield chosen[start : start + batch_size]


def _ask_batch(
    vlm: Vlm, asks: Sequence[Ask], kept: Mapping[str, Kept], protocol: Protocol, yes_no: bool, way: Way
) -> list[dict[str, Any]]:
    """A record for each. Where the model does not take one (a picture too narrow, a text too long) each goes alone."""
    from agevlm.vlms import AttentionUnreadableError

    try:
        return _answers(vlm, asks, kept, protocol, yes_no, way)
    except AttentionUnreadableError:
        raise  # no question can be asked in this way
    except ValueError as error:
        if len(asks) == 1:
            return [_left_out(asks[0], error)]
        return [record for ask in asks for record in _ask_batch(vlm, [ask], kept, protocol, yes_no, way)]


def _answers(
    vlm: Vlm, asks: Sequence[Ask], kept: Mapping[str, Kept], protocol: Protocol, yes_no: bool, way: Way
) -> list[dict[str, Any]]:
    from agevlm.vlms import WAYS, Row

    rows = []
    for ask in asks:
        shown = (kept[ask.question.picture.name],) if ask.question.picture else ()
        rows.append(Row(vlm.prompt(ask.prompt, len(shown)), (Message("user", ask.prompt, len(shown)),), shown))
    asking = (way if rows[0].pictures else WAYS[PLAIN])(vlm, rows)
    with asking.steer():
        answers, reading = vlm.ask(asking.inputs, max_new_tokens=protocol.max_new_tokens, change=asking.change)
    found: list[dict[str, Any]] = []
    for ask, answer in zip(asks, answers, strict=True):
        found.append({"key": ask.key, "answer": _until(answer.text, protocol.stop)})
    if yes_no:
        for record, shares in zip(found, vlm.yes_no(asking.inputs, reading.logits[:, -1]), strict=True):
            record["p_yes"] = shares.p_yes
    return found


def _until(text: str, stop: Sequence[str]) -> str:
    """The text before the first of `stop`."""
    for end in stop:
        text = text.split(end)[0]
    return text.strip()


def _identity(model: str | Path, benchmark: Benchmark, protocol: Protocol, settings: Settings) -> dict[str, Any]:
    """What must be the same for answers to be gone on with, beside the questions and pictures that they are about."""
    return {
        "model": _fingerprint(model),
        "benchmark": benchmark.name,
        "protocol": protocol.name,
        "dtype": settings.dtype,
        "answering": settings.answering,
    }


def _fingerprint(model: str | Path) -> str:
    """A model's name; of a directory its configuration and the size and age of its weights, of a hub id its commit."""
    from agevlm.checkpoints import resolve_model

    directory = Path(resolve_model(model))
    if not directory.is_dir():
        commit = _commit(str(model))
        return f"{model} ({commit})" if commit else str(model)
    weights = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(directory.glob("*.safetensors"))]
    config = directory / "config.json"
    facts = repr((config.read_text(encoding="utf-8") if config.is_file() else "", weights))
    return f"{model} ({hashlib.sha256(facts.encode()).hexdigest()[:12]})"


def _commit(hub_id: str) -> str | None:
    """The commit of a model of the hub, where transformers says it."""
    from transformers import AutoConfig

    from agevlm.modeling import register
    from agevlm.modeling.loading import reading

    register()
    with reading(hub_id, "configuration"):
        return getattr(AutoConfig.from_pretrained(hub_id, trust_remote_code=False), "_commit_hash", None)


def _finish(
    benchmark: Benchmark,
    protocol: Protocol,
    plan: Plan,
    questions: Sequence[Question],
    store: AnswerStore,
    facts: Mapping[str, Any],
) -> Metrics:
    """Score what was answered and write predictions and figures."""
    answers = store.gather()
    marks: list[Marked] = []
    left: list[tuple[Question, str]] = [(question, "missing picture") for question in plan.missing]
    for question in questions:
        if question.id in plan.key_of:
            record = answers[plan.key_of[question.id]]
            if record["answer"] is None:
                left.append((question, record["problem"]))
            else:
                marks.append(protocol.mark(question, record["answer"]))
    if not marks:
        asked = [problem for _, problem in left[len(plan.missing) :]]
        reason = Counter(asked).most_common(1)[0][0]
        raise ValueError(f"none of the questions of {benchmark.title} can be asked ({reason}): see {store.out}")
    metrics: Metrics = {
        **records(protocol.figures(marks)),
        "missing": missing_record(left, len(questions)),
        "provenance": provenance(
            benchmark=benchmark.name,
            protocol=protocol.name,
            rule=protocol.rule,
            headline=list(protocol.headline),
            source=benchmark.source,
            paper=benchmark.paper,
            licence=benchmark.licence,
            num_questions=len(marks),
            num_images=len({mark.question.unit for mark in marks}),
            num_prompts=plan.num_asks,
            **facts,
        ),
    }
    write_outcome(
        store.out, metrics, marks, left, {q.id: answers[key] for q in questions if (key := plan.key_of.get(q.id))}
    )
    return metrics
