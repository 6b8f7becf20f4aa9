"""Pictures that wait together are encoded together, each once; what is wrong with one is not the others' fault."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from tiny_models import make_model, make_processor
from tiny_served import data_url, scene

from agevlm.serve.errors import ApiError
from agevlm.serve.eyes import Eyes
from agevlm.serve.limits import Limits
from agevlm.serve.metrics import Silent
from agevlm.serve.pictures import Encoded, from_data_url
from agevlm.vlms import Vlm


def picture(number: int) -> Encoded:
    return from_data_url(data_url(scene(number)), Limits())


@pytest.fixture
def eyes() -> Any:
    """Eyes of a tiny model, and how many pictures each pass of it saw."""
    vlm, passes = Vlm(make_model(), make_processor()), []
    found = Eyes("tiny", vlm, Limits(), Silent(), remembers=True)
    keep, begin = vlm.keep, threading.Event()

    def counted(pictures: Any) -> Any:
        passes.append(len(pictures))
        assert begin.wait(20)
        return keep(pictures)

    vlm.keep = counted  # type: ignore[method-assign]
    yield found, passes, begin, keep
    begin.set()
    found.close()


def ask_for(eyes: Eyes, passes: list[int], wanted: list[list[Encoded]]) -> list[Any]:
    """Futures of what is seen of these pictures: the first pass has begun when the others are asked for."""
    futures = [eyes.see(wanted[0])]
    while not passes:
        time.sleep(0.001)
    return futures + [eyes.see(pictures) for pictures in wanted[1:]]


def test_those_who_wait_are_served_together_and_as_if_alone(eyes: Any) -> None:
    found, passes, begin, keep = eyes
    wanted = ask_for(found, passes, [*([picture(number)] for number in (0, 1, 2, 1, 3)), [picture(4), picture(0)]])
    begin.set()
    seen = [future.result(20) for future in wanted]
    assert passes == [1, 3, 1]  # the first alone; of the four after it one is asked for twice; then the last
    for number, (one, *_) in zip((0, 1, 2, 1, 3, 4), seen, strict=True):
        alone = keep([scene(number)])[0].memory
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.memory.keys, alone.keys, strict=True))
        assert len(one.memory) == 1
    assert seen[5][1] is seen[0][0]
    assert found.see([picture(3)]).done()


def test_a_picture_that_cannot_be_seen_fails_alone(eyes: Any) -> None:
    found, passes, begin, _ = eyes
    broken = Encoded(picture(1).data[:200], "broken")
    wanted = ask_for(found, passes, [[one] for one in (picture(0), picture(1), broken, picture(2))])
    begin.set()
    with pytest.raises(ApiError, match="truncated or damaged"):
        wanted[2].result(20)
    assert all(len(wanted[number].result(20)) == 1 for number in (0, 1, 3))


def test_a_pass_that_fails_is_tried_picture_by_picture(eyes: Any) -> None:
    found, passes, begin, _ = eyes
    keep = found._vlm.keep

    def refuse(pictures: Any) -> Any:
        if any(one.size == (7, 7) for one in pictures):
            raise RuntimeError("refused")
        return keep(pictures)

    found._vlm.keep = refuse
    small = from_data_url(data_url(scene(9).resize((7, 7))), Limits())
    wanted = ask_for(found, passes, [[one] for one in (picture(0), picture(1), small, picture(2))])
    begin.set()
    with pytest.raises(RuntimeError, match="refused"):
        wanted[2].result(20)
    assert all(len(wanted[number].result(20)) == 1 for number in (0, 1, 3))
    assert passes == [1, 1, 1]


def test_those_who_are_gone_are_not_seen_and_take_no_room(eyes: Any) -> None:
    found, passes, begin, _ = eyes
    wanted = ask_for(found, passes, [[picture(number)] for number in range(6)])
    assert wanted[1].cancel()
    begin.set()
    assert all(len(wanted[number].result(20)) == 1 for number in (0, 2, 3, 4, 5))
    assert passes == [1, 4]
    assert picture(1).key not in found.memories


def test_many_pictures_of_one_request_are_seen_in_several_passes(eyes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, passes, begin, _ = eyes
    begin.set()
    assert len(found.see([picture(number) for number in range(6)]).result(20)) == 6
    assert passes == [4, 2]
    monkeypatch.setattr("agevlm.serve.eyes._MANY_PIXELS", 2 * scene().width * scene().height)
    assert len(found.see([picture(number) for number in range(6, 9)]).result(20)) == 3
    assert passes == [4, 2, 2, 1]
