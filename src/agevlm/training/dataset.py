"""The order of training data: which samples and which questions each step sees, as a pure function of the seed.

Item `i` of a stage is always the same sample with the same questions, so a resumed run goes on where it stopped, and
every arm of a comparison can be shown the same data in the same order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from agevlm.data.balance import PresenceBalance, asked_categories
from agevlm.data.chat import TEXT
from agevlm.data.language import DEFAULT_KINDS, LONG_KINDS, Chooser, family
from agevlm.data.parquet import CACHED_GROUPS
from agevlm.data.schema import Conversation, Message, Sample
from agevlm.training.features import FeatureCache
from agevlm.training.recipe import StageRecipe
from agevlm.training.sources import Source

LEAST_SHARE = 0.1  # of a stage's conversations: kinds that are asked less often teach little


@dataclass(frozen=True)
class SourceData:
    """A source and, where its vision model is frozen, the cached features of its pictures.

    `runs` are sizes of runs of samples that are read together, in order; they are shuffled so that each is read once.
    """

    source: Source
    features: FeatureCache | None = None
    runs: Sequence[int] | None = None


class StageDataset(Dataset[tuple[Sample, NDArray[np.float16] | None]]):
    """Samples of a stage with their conversations drawn, and cached features where there are any."""

    def __init__(self, stage: StageRecipe, sources: Mapping[str, SourceData], seed: int) -> None:
        """`sources` holds, by name, at least those that the stage reads: of a weight above 0."""
        self.stage, self.seed = stage, seed
        used = [(number, name) for number, (name, weight) in enumerate(stage.data.items()) if weight]
        self.sources = {number: sources[name] for number, name in used}
        self.length = stage.steps * stage.images_per_batch * stage.gradient_accumulation_steps
        weights = np.array(list(stage.data.values()), dtype=float)
        numbers = self._rng(1 << 29).choice(len(weights), size=self.length, p=weights / weights.sum())
        self._choices = numbers.astype(np.int16)  # of each item, the number of its source
        self._ranks = _ranks(self._choices)
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._balances = {number: self._balance(name, sources[name].source) for number, name in used}

    @property
    def notes(self) -> list[str]:
        """What people should know about the questions of the stage, a line each."""
        names = list(self.stage.data)
        found = ((names[number], balance) for number, balance in self._balances.items() if balance is not None)
        return [f"data {name}: {note}" for name, balance in found for note in balance.notes()]

    def _balance(self, name: str, source: Source) -> PresenceBalance | None:
        """How presence is asked of a source that the stage reads; None: naturally."""
        settings = self.stage.presence
        if settings is None:
            return None
        try:
            return PresenceBalance.of(
                source.categories(), source.vocabulary, **settings.model_dump(exclude={"wordings"})
            )
        except ValueError as error:
            raise ValueError(f"stage {self.stage.name!r}, data {name}: {error}") from error

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Sample, NDArray[np.float16] | None]:
        rng = self._rng(index)
        number = int(self._choices[index])
        data = self.sources[number]
        position = self._position(number, int(self._ranks[index]))
        sample = self._draw(number, position, rng, index)
        if self.stage.text_ratio:
            sample = replace(sample, conversations=tuple(self._maybe_blind(c, rng) for c in sample.conversations))
        return sample, None if data.features is None else data.features[position]

    def _draw(self, number: int, position: int, rng: np.random.Generator, index: int) -> Sample:
        source, num = self.sources[number].source, self.stage.questions_per_image
        balance, presence = self._balances[number], self.stage.presence
        choose = Chooser(balance.choose, presence.wordings) if balance is not None and presence is not None else None
        sample = source.sample(position, rng, self._kinds(index), num, choose)
        if not sample.conversations:  # nothing of the batch's length: anything that the stage asks for
            sample = source.sample(position, rng, self.stage.kinds, num, choose)
        if not sample.conversations:
            asked = "any kind" if self.stage.kinds is None else ", ".join(self.stage.kinds)
            raise ValueError(f"stage {self.stage.name!r}: sample {sample.id} has no conversation of {asked}")
        return sample

    def _kinds(self, index: int) -> dict[str, float]:
        """The kinds of conversation of the batch that an item lies in: long ones or short ones, as often as weighed."""
        kinds = dict(DEFAULT_KINDS if self.stage.kinds is None else self.stage.kinds)
        long = {kind: weight for kind, weight in kinds.items() if kind in LONG_KINDS}
        short = {kind: weight for kind, weight in kinds.items() if kind not in LONG_KINDS}
        if not self.stage.group_by_length or not long or not short:
            return kinds
        batch = index // self.stage.images_per_batch
        point = self._rng(1 << 30, batch).random() * sum(kinds.values())
        return long if point < sum(long.values()) else short

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *key])))

    def _position(self, number: int, rank: int) -> int:
        """Every source is gone through in a shuffled order of its own, shuffled anew for each pass."""
        size = len(self.sources[number].source)
        key = (number, rank // size)
        if key not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old[0] != number}
            rng, runs = self._rng(1 << 31, *key), self.sources[number].runs
            self._orders[key] = rng.permutation(size) if runs is None else near_order(runs, rng)
        return int(self._orders[key][rank % size])

    def _maybe_blind(self, conversation: Conversation, rng: np.random.Generator) -> Conversation:
        if rng.random() >= self.stage.text_ratio:
            return conversation
        return without_pictures(conversation)


def taught_words(stages: Sequence[StageRecipe], name: str, source: Source) -> Sequence[str] | None:
    """What the pictures of a source show and the stages that read it may tell; None where it is not known."""
    words = source.words()
    if words is None or not all(_asks_chosen_alone(stage) for stage in stages if stage.data.get(name)):
        return words
    asked = set(asked_categories(source.categories(), source.vocabulary))
    return [word for word in words if word in asked]


def asked_questions(stages: Sequence[StageRecipe], before: Sequence[str] | None) -> list[str] | None:
    """The families of kinds that a stage asks often enough to teach, and those `before`; None where that is not known.

    A stage that names no kinds takes what its sources hold.
    """
    found = set(before or ())
    for stage in stages:
        if before is None or stage.kinds is None:
            return None
        shares: defaultdict[str, float] = defaultdict(float)
        for kind, weight in stage.kinds.items():
            shares[family(kind)] += weight / sum(stage.kinds.values())
        found |= {kind for kind, share in shares.items() if share >= LEAST_SHARE}
    return sorted(found)


def _asks_chosen_alone(stage: StageRecipe) -> bool:
    """Whether a stage asks for the categories of its balance and tells nothing else, as a conversation may."""
    kinds = DEFAULT_KINDS if stage.kinds is None else stage.kinds
    return stage.presence is not None and {kind for kind, weight in kinds.items() if weight} == {"presence"}


def near_order(runs: Sequence[int], rng: np.random.Generator, together: int = CACHED_GROUPS) -> NDArray[np.int64]:
    """All samples in a shuffled order in which runs of them stay near: those of `together` runs are shuffled at a time.

    `runs` are the sizes of the runs, in order; they come in a shuffled order themselves.
    """
    starts = np.cumsum(runs) - np.asarray(runs)
    chosen = rng.permutation(len(runs))
    windows = []
    for first in range(0, len(chosen), together):
        members = [np.arange(starts[run], starts[run] + runs[run]) for run in chosen[first : first + together]]
        windows.append(rng.permutation(np.concatenate(members)))
    return np.concatenate(windows)


def _ranks(choices: NDArray[np.int16]) -> NDArray[np.int64]:
    """For each item, how many items before it fell to the same source."""
    ranks = np.zeros(len(choices), dtype=np.int64)
    for number in np.unique(choices):
        mine = choices == number
        ranks[mine] = np.arange(mine.sum())
    return ranks


def without_pictures(conversation: Conversation) -> Conversation:
    """The same words with no picture shown, to be read as plain text: what a text-only model learns from."""
    messages = tuple(Message(message.role, message.content) for message in conversation.messages)
    return Conversation(conversation.id, TEXT, messages)
