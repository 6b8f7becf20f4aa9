"""Which samples and which questions a step sees: a pure function of the seed, and fair to every source."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import make_recipe, run

from agevlm.data.chat import TEXT
from agevlm.data.images import png_bytes
from agevlm.data.language import LONG_KINDS
from agevlm.data.parquet import Record, read_parquet, write_parquet
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene
from agevlm.data.scenes.export import export_parquet
from agevlm.data.schema import Conversation, Grounding, Message, Sample
from agevlm.training import recipe
from agevlm.training.dataset import (
    SourceData,
    StageDataset,
    asked_questions,
    near_order,
    taught_words,
    without_pictures,
)
from agevlm.training.recipe import StageRecipe
from agevlm.training.run import open_source
from agevlm.training.sources import DrawnPictures, ParquetSource, SceneSource, read_annotations, write_annotations


class Named:
    """A source of `size` samples that say their own position and nothing else."""

    def __init__(self, name: str, size: int, kinds: tuple[str, ...] = ("presence", "caption")) -> None:
        self.name, self.size, self.kinds = name, size, kinds

    def __len__(self) -> int:
        return self.size

    def key(self) -> dict[str, Any]:
        return {"name": self.name}

    def sample(self, index: int, rng: np.random.Generator, kinds: Any, num: int, choose: Any = None) -> Sample:
        offered = [kind for kind in self.kinds if kinds is None or kinds.get(kind)]
        messages = (Message("user", f"{rng.random()}", 1), Message("assistant", "yes"))
        made = [Conversation(f"{self.name}/{index}/{i}", offered[0], messages) for i in range(num if offered else 0)]
        return Sample(f"{self.name}/{index}", (), tuple(made))


def make_dataset(seed: int = 0, sources: dict[str, Any] | None = None, **settings: Any) -> StageDataset:
    stage = {"name": "s", "trainable": ["projector"], "steps": 50, "images_per_batch": 4, "questions_per_image": 2}
    sources = sources or {"scenes": Named("scenes", 10)}
    return StageDataset(StageRecipe(**stage | settings), {k: SourceData(v) for k, v in sources.items()}, seed)


def words(dataset: StageDataset, index: int) -> list[str]:
    return [message.content for c in dataset[index][0].conversations for message in c.messages]


def test_an_item_depends_on_seed_and_number_alone() -> None:
    first, second, other = make_dataset(), make_dataset(), make_dataset(seed=1)
    backwards = [words(second, index) for index in reversed(range(40))][::-1]
    assert [words(first, index) for index in range(40)] == backwards
    assert [words(first, index) for index in range(40)] != [words(other, index) for index in range(40)]
    assert len({tuple(words(first, index)) for index in range(40)}) == 40


def test_the_length_is_that_of_all_steps() -> None:
    assert len(make_dataset()) == 200
    assert len(make_dataset(gradient_accumulation_steps=3)) == 600


def test_every_pass_goes_through_the_source_in_an_order_of_its_own() -> None:
    dataset = make_dataset()
    passes = [[dataset[10 * number + i][0].id for i in range(10)] for number in range(20)]
    assert all(len(set(ids)) == 10 for ids in passes)
    assert len({tuple(ids) for ids in passes}) > 15


def test_a_mixture_draws_by_weight_and_passes_through_each_source() -> None:
    sources = {"large": Named("large", 100), "small": Named("small", 7), "none": Named("none", 3)}
    dataset = make_dataset(sources=sources, data={"large": 3.0, "small": 1.0, "none": 0.0}, steps=500)
    ids = [dataset[index][0].id for index in range(2000)]
    shares = Counter(name.split("/")[0] for name in ids)
    assert shares["large"] / 2000 == pytest.approx(0.75, abs=0.03)
    assert shares["none"] == 0
    for name, size in (("large", 100), ("small", 7)):
        mine = [identity for identity in ids if identity.startswith(name)]
        whole = len(mine) // size * size
        assert set(Counter(mine[:whole]).values()) == {whole // size}


def test_a_batch_holds_long_kinds_or_short_ones_as_often_as_they_weigh() -> None:
    dataset = make_dataset(kinds={"presence": 3.0, "caption": 1.0}, steps=400)
    batches = [{c.kind for i in range(4) for c in dataset[4 * b + i][0].conversations} for b in range(400)]
    assert all(len(kinds) == 1 for kinds in batches)
    assert sum(kinds == {"caption"} for kinds in batches) / 400 == pytest.approx(0.25, abs=0.06)
    assert "caption" in LONG_KINDS
    short = {"scenes": Named("scenes", 5, ("presence",))}
    only_short = make_dataset(sources=short, kinds={"presence": 1, "caption": 1})
    assert {c.kind for i in range(40) for c in only_short[i][0].conversations} == {"presence"}


def test_a_sample_that_offers_nothing_is_named() -> None:
    dataset = make_dataset(kinds={"counting": 1.0})
    with pytest.raises(ValueError, match=r"stage 's': sample scenes/\d has no conversation of counting"):
        dataset[0]


def write_chats(directory: Path, annotated: bool = False) -> str:
    """Two scenes with a conversation each, as a chat dataset has them; `annotated`, the first shows what is there."""
    records = []
    for index in range(2):
        scene = draw_scene(WorldSpec(), 0, index).annotation
        image = replace(scene.image, data=png_bytes(draw_scene(WorldSpec(), 0, index).image))
        messages = (Message("user", "what is it?", 1), Message("assistant", "a scene"))
        sample = Sample(image.id, (image,), (Conversation(f"{index}", "conversation", messages),))
        records.append(Record(sample, replace(scene, image=image) if annotated and index == 0 else None))
    write_parquet(directory, records, vocabulary=CATEGORIES)
    return str(directory)


def test_a_source_that_offers_nothing_of_a_stage_is_named_before_anything_trains(
    foundation: Path, tmp_path: Path
) -> None:
    chats = {"parquet": write_chats(tmp_path / "chats")}
    stage = {"name": "later", "trainable": ["projector"], "data": {"scenes": 1.0, "chats": 0.5}}
    content = make_recipe(foundation, "align", stage, data={"scenes": {"num_scenes": 12}, "chats": chats})

    def of(**kinds: float) -> Any:
        return content | {"stages": [content["stages"][0], content["stages"][1] | {"kinds": kinds or None}]}

    for options in ({"dry_run": True}, {}):
        with pytest.raises(ValueError, match=r"^stage 'later', data chats: .*chats has no conversation of ") as caught:
            run(of(presence=1.0, conversation=0.0), tmp_path / "run", **options)
        assert "of presence, only of conversation (2), and no annotated picture" in str(caught.value)
    assert not (tmp_path / "run").exists()
    run(of(presence=1.0, conversation=1.0), tmp_path / "run")
    run(of(), tmp_path / "any", dry_run=True)
    write_chats(tmp_path / "chats", annotated=True)
    run(of(presence=1.0), tmp_path / "made", dry_run=True)


def test_text_ratio_takes_pictures_away() -> None:
    def shown(ratio: float) -> float:
        dataset = make_dataset(text_ratio=ratio)
        made = [c for index in range(200) for c in dataset[index][0].conversations]
        return sum(c.messages[0].num_images for c in made) / len(made)

    assert (shown(0.0), shown(1.0)) == (1.0, 0.0)
    assert shown(0.3) == pytest.approx(0.7, abs=0.07)


def test_without_pictures_keeps_the_words_and_drops_the_groundings() -> None:
    messages = (Message("user", "a fish", 1), Message("assistant", "yes"))
    blind = without_pictures(Conversation("c", "presence", messages, (Grounding(0, 2, 6, "fish", False),)))
    assert blind == Conversation("c", TEXT, (replace(messages[0], num_images=0), messages[1]))


# --------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("num_workers", [0, 2])
def test_worker_processes_draw_the_same_scenes(num_workers: int) -> None:
    source = SceneSource(WorldSpec(), 4, 10)
    drawn = [scene for batch in DrawnPictures(source).batches(4, num_workers) for scene in batch]
    assert len(drawn) == 10
    for index, (pixels, annotation, _) in enumerate(drawn):
        scene = draw_scene(WorldSpec(), 4, index)
        assert np.array_equal(pixels, scene.image)
        assert annotation == scene.annotation


def test_annotations_survive_being_written(tmp_path: Path) -> None:
    annotations = [draw_scene(WorldSpec(), 4, index).annotation for index in range(5)]
    write_annotations(tmp_path / "a.jsonl", annotations)
    assert read_annotations(tmp_path / "a.jsonl") == annotations


def test_kept_annotations_give_the_same_conversations_as_drawing() -> None:
    bare = SceneSource(WorldSpec(), 4, 3)
    kept = SceneSource(WorldSpec(), 4, 3, [draw_scene(WorldSpec(), 4, index).annotation for index in range(3)])
    first, second = (s.sample(2, np.random.default_rng(0), None, 5) for s in (bare, kept))
    assert first.conversations == second.conversations
    assert first.images[0].data is not None and second.images[0].data is None


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ParquetSource:
    directory = tmp_path_factory.mktemp("stored") / "scenes"
    export_parquet(directory, WorldSpec(min_objects=2), 3, 4, num_per_image=5)
    return ParquetSource(read_parquet(directory))


def test_a_stored_dataset_keeps_its_test_questions_back(stored: ParquetSource) -> None:
    rng = np.random.default_rng(0)
    kinds = {c.kind for index in range(4) for _ in range(10) for c in stored.sample(index, rng, None, 5).conversations}
    assert kinds and not any(kind.startswith("pope.") for kind in kinds)


def test_a_stored_sample_repeats_itself_only_where_it_must(stored: ParquetSource) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = [c.id for c in stored.sample(0, rng, None, 5).conversations]
        assert len(set(ids)) == 5
    assert len(stored.sample(0, rng, None, 9).conversations) == 9
    assert stored.sample(0, rng, {"nothing": 1.0}, 3).conversations == ()


def test_the_key_of_a_source_tells_what_its_pictures_are(stored: ParquetSource) -> None:
    assert SceneSource(WorldSpec(), 1, 5).key() == SceneSource(WorldSpec(), 1, 5).key()
    for other in ((WorldSpec(), 2, 5), (WorldSpec(), 1, 6), (WorldSpec(num_strokes=0), 1, 5)):
        assert SceneSource(*other).key() != SceneSource(WorldSpec(), 1, 5).key()
    assert stored.key()["size"] == 4


# -------------------------------------------------------------------------------------------------------- presence


def asked_of(dataset: StageDataset) -> dict[str, list[int]]:
    """Category → how often a stage asks for it with the answer yes, and with no."""
    counts: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        for conversation in dataset[index][0].conversations:
            (grounding,) = conversation.groundings
            counts.setdefault(grounding.phrase, [0, 0])[not grounding.present] += 1
    return counts


def uneven(counts: dict[str, list[int]]) -> float:
    """How far off one half the share of yes lies, on average over what is asked."""
    shares = [(yes + no, abs(yes / (yes + no) - 0.5)) for yes, no in counts.values()]
    return sum(number * off for number, off in shares) / sum(number for number, _ in shares)


@pytest.mark.parametrize("kept", [False, True])
def test_a_stage_balances_presence_over_scenes(kept: bool) -> None:
    drawn = [draw_scene(WorldSpec(), 4, index).annotation for index in range(40)] if kept else None
    sources = {"scenes": SceneSource(WorldSpec(num_strokes=0), 4, 40, drawn)}
    settings: dict[str, Any] = {"sources": sources, "kinds": {"presence": 1.0}, "questions_per_image": 16}
    natural = make_dataset(**settings)
    balanced = make_dataset(**settings, presence={})
    assert natural.notes == balanced.notes == []
    assert uneven(asked_of(balanced)) < 0.05 < uneven(asked_of(natural))


def test_a_stage_balances_a_stored_dataset_and_says_what_it_does_not_ask(tmp_path: Path) -> None:
    export_parquet(tmp_path / "few", WorldSpec(), 3, 12, num_per_image=2)
    source = ParquetSource(read_parquet(tmp_path / "few"))
    assert [set(c or ()) for c in source.dataset.categories()] == [
        set(record.annotated.categories) for record in source.dataset
    ]
    dataset = make_dataset(sources={"few": source}, data={"few": 1.0}, kinds={"presence": 1.0}, presence={})
    assert uneven(asked_of(dataset)) < 0.12
    assert len(dataset.notes) == 1 and dataset.notes[0].startswith("data few: never asked: ")


def test_a_stage_that_balances_makes_the_default_kinds_too(stored: ParquetSource) -> None:
    dataset = make_dataset(sources={"stored": stored}, data={"stored": 1.0}, presence={"hard_ratio": 0.5})
    kinds = {c.kind for index in range(len(dataset)) for c in dataset[index][0].conversations}
    assert {"presence", "caption", "counting"} <= kinds


ALONE: dict[str, Any] = {"kinds": {"presence": 1.0, "caption": 0.0}, "presence": {}}


@pytest.mark.parametrize(
    ("uses", "all_told"),
    [
        ([ALONE], False),
        ([ALONE, ALONE | {"presence": {"balanced": False}}], False),
        ([ALONE, {"data": {"other": 1.0}}], False),
        ([ALONE, {"data": {"scenes": 0.0, "other": 1.0}}], False),
        ([ALONE, {"kinds": {"presence": 1.0}}], True),
        ([ALONE, {"kinds": {"caption": 1.0}}], True),
        ([{"kinds": {"presence": 1.0, "caption": 0.1}, "presence": {}}], True),
        ([{"kinds": {"presence": 1.0, "conversation": 0.1}, "presence": {}}], True),
        ([{"presence": {}}], True),
    ],
)
def test_what_no_stage_asks_is_not_taught(uses: list[dict[str, Any]], all_told: bool) -> None:
    drawn = [draw_scene(WorldSpec(), 4, index).annotation for index in range(40)]
    always = drawn[0].categories[0]
    drawn = [annotated for annotated in drawn if always in annotated.categories][:3]
    source = SceneSource(WorldSpec(), 4, len(drawn), drawn)
    asked = make_dataset(sources={"scenes": source}, **ALONE)._balances[0].categories  # type: ignore[union-attr]
    assert always not in asked and len(asked) > 1
    stages = [StageRecipe(**{"name": "s", "trainable": ["projector"], "steps": 1} | use) for use in uses]
    assert set(taught_words(stages, "scenes", source) or ()) == set(source.words() if all_told else asked)


@pytest.mark.parametrize(
    ("kinds", "before", "known"),
    [
        ([{"presence": 1.0}], [], ["presence"]),
        ([{"presence": 0.95, "caption": 0.05}], [], ["presence"]),  # captions are too few to be learned
        ([{"relation.yes_no": 0.06, "relation.choice": 0.06, "colour": 0.88}], [], ["colour", "relation"]),
        ([{"presence": 1.0}, {"counting": 2.0, "caption": 0.0}], ["location"], ["counting", "location", "presence"]),
        ([{"presence": 1.0}, None], [], None),
        ([{"presence": 1.0}], None, None),
    ],
)
def test_a_run_knows_what_kinds_of_question_it_asked(
    kinds: list[dict[str, float] | None], before: list[str] | None, known: list[str] | None
) -> None:
    stages = [StageRecipe(name="s", trainable=("projector",), steps=1, kinds=asked) for asked in kinds]
    assert asked_questions(stages, before) == known


def test_the_known_words_of_a_run_are_those_of_any_of_its_sources(foundation: Path, tmp_path: Path) -> None:
    export_parquet(tmp_path / "mixed", WorldSpec(), 4, 40, num_per_image=1)
    records = list(ParquetSource(read_parquet(tmp_path / "mixed")).dataset)
    held = [record.annotated.categories for record in records if record.annotated]
    always = held[0][0]
    alike = [record for record, categories in zip(records, held, strict=True) if always in categories]
    write_parquet(tmp_path / "alike", alike, vocabulary=CATEGORIES)
    data = {name: {"parquet": str(tmp_path / name)} for name in ("alike", "mixed")}
    known = {}
    for names in (("alike",), ("alike", "mixed")):
        stage = {"name": "s", "data": dict.fromkeys(names, 1.0), "trainable": ["projector", "gates"], **ALONE}
        out = run(make_recipe(foundation, stage, data=data), tmp_path / "runs" / "-".join(names))
        known[names] = json.loads((out / "config.json").read_text())["known_words"]
    assert known["alike",] and always not in known["alike",]
    assert always in known["alike", "mixed"]


def test_presence_that_cannot_be_balanced_is_named(tmp_path: Path, stored: ParquetSource) -> None:
    bare = [replace(record, annotated=None) for record in stored.dataset]
    write_parquet(tmp_path / "bare", bare)
    settings: dict[str, Any] = {"data": {"bare": 1.0}, "presence": {}}
    with pytest.raises(ValueError, match=r"stage 's', data bare: .*bare: 4 of 4 samples are not annotated, the first"):
        make_dataset(sources={"bare": ParquetSource(read_parquet(tmp_path / "bare"))}, **settings)
    with pytest.raises(ValueError, match="asks none: give kinds a presence"):
        make_dataset(kinds={"caption": 1.0}, presence={})


def test_a_source_of_no_weight_is_not_needed_and_changes_no_order() -> None:
    read = {"b": Named("b", 7), "c": Named("c", 5)}
    weights = {"a": 0.0, "b": 1.0, "c": 2.0}
    whole = make_dataset(sources={"a": Named("a", 3), **read}, data=weights)
    bare = make_dataset(sources=read, data=weights)
    assert [words(bare, index) for index in range(60)] == [words(whole, index) for index in range(60)]


@pytest.mark.parametrize("views", [None, {"views": 2, "seed": 0}])
def test_a_share_of_a_dataset_is_drawn_by_the_seed(tmp_path: Path, views: Any) -> None:
    export_parquet(tmp_path / "data", WorldSpec(), 0, 20)
    settings = recipe.ParquetSource(parquet=tmp_path / "data", share=0.4, augment=views)
    first, again, other = (open_source(settings, seed) for seed in (0, 0, 1))
    assert len(first) == (8 if views is None else 16)
    rng = np.random.default_rng(0)
    shown, differ = ({source.sample(i, rng, {"presence": 1.0}, 1).id for i in range(8)} for source in (first, other))
    assert len(shown) == len(differ) == 8 and shown != differ
    assert first.key() == again.key() != other.key()
    fixed = settings.model_copy(update={"seed": 0})
    assert [open_source(fixed, seed).key() for seed in (1, 2)] == [open_source(fixed, 0).key()] * 2
    with pytest.raises(ValueError, match="seed says which samples a share takes"):
        recipe.ParquetSource(parquet=tmp_path / "data", seed=3)


def test_groups_are_read_once_in_a_pass_and_shuffled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agevlm.data.parquet._GROUP_ROWS", 4)
    monkeypatch.setattr("agevlm.data.parquet.CACHED_GROUPS", 3)
    export_parquet(tmp_path / "data", WorldSpec(), 0, 40)
    source = ParquetSource(read_parquet(tmp_path / "data"))
    runs = source.dataset.group_sizes()
    assert runs == [4] * 10
    read: list[int] = []
    original = type(source.dataset)._read
    monkeypatch.setattr(
        type(source.dataset), "_read", lambda self, group: (read.append(group), original(self, group))[1]
    )
    first, second = (near_order(runs, np.random.default_rng(seed), together=3) for seed in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert list(first) != list(second) and list(first) != sorted(first)
    for index in first:
        source.dataset[int(index)]
    assert sorted(read) == list(range(10))
    stage = StageRecipe(name="s", trainable=("projector",), steps=20, images_per_batch=4)
    data = StageDataset(stage, {"scenes": SourceData(source, runs=runs)}, seed=0)
    seen = [data[index][0].id for index in range(80)]
    assert len(set(seen[:40])) == len(set(seen[40:])) == 40
    assert data[57][0].id == seen[57]  # by position, whatever was read before
    with pytest.raises(ValueError, match="shuffle groups without augment"):
        recipe.ParquetSource(parquet=tmp_path, augment={"views": 2}, shuffle="groups")
