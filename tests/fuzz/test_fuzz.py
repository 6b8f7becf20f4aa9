"""A seeded share of the fuzzing: every input ends accepted, or in a line that names it. `make fuzz` runs more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_corpus import make_corpus
from fuzz_harness import Runner, fuzz
from fuzz_targets import TARGETS

NUM = 20  # inputs of each class


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    corpus = tmp_path_factory.mktemp("corpus")
    make_corpus(corpus)
    made = Runner(corpus)
    yield made
    made.close()


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_ends_unclean(name: str, runner: Runner) -> None:
    before = len(runner.found)
    fuzz(runner, name, NUM, seed=2026)
    assert [(outcome.detail, plan) for _, outcome, plan in runner.found[before:]] == []
    assert runner.outcomes[name].counts.total() == NUM


def test_every_class_is_reached_beyond_its_parser(runner: Runner) -> None:
    """Of a harness whose inputs are all refused at once nothing is learned."""
    if set(runner.outcomes) == set(TARGETS):
        assert all(tally.counts["accepted"] for tally in runner.outcomes.values()), runner.table()


@pytest.mark.parametrize(("name", "fault"), [("hang", "took more than"), ("die", "died")])
def test_the_harness_notices(name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGEVLM_FUZZ_SELFTEST", name)
    made = Runner(tmp_path, longest_s=1.0)
    assert fault in made.run("selftest", None).detail
    made.close()
