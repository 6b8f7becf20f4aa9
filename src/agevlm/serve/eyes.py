"""Pictures to what a model keeps of them, in a thread of its own: rows that are written do not wait for vision.

Pictures that wait together are encoded together; one that is remembered waits for nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from PIL.Image import Image

from agevlm.serve.limits import Limits
from agevlm.serve.memories import Lru, Seen, Shown
from agevlm.serve.metrics import Silent
from agevlm.serve.pictures import Encoded, decoded
from agevlm.vlms import Vlm

_MAX_AT_ONCE = 4  # pictures of one pass of the vision model: the first of them waits for the last
_MANY_PIXELS = 40_000_000  # decoded for one pass: once it has so many, it takes no further picture


@dataclass(frozen=True)
class _Wanted:
    """Pictures of one request, and the future of what is kept of them."""

    pictures: Sequence[Encoded]
    future: Future[list[Seen]] = field(default_factory=Future)


class Eyes:
    """What one model has seen. `remembers` says whether it can keep a memory of a picture; else pixels are kept."""

    def __init__(self, name: str, vlm: Vlm, limits: Limits, metrics: Silent, remembers: bool) -> None:
        self._name, self._vlm, self._limits, self._metrics, self._remembers = name, vlm, limits, metrics, remembers
        self.memories: Lru[Seen] = Lru(limits.memory_bytes, lambda seen: seen.num_bytes)
        self._waiting: deque[_Wanted] = deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"see {name}")

    def see(self, pictures: Sequence[Encoded]) -> Future[list[Seen]]:
        """What the model keeps of pictures; done at once where all are remembered."""
        found = [self.memories.get(picture.key) for picture in pictures]
        self._metrics.saw(self._name, found)
        wanted = _Wanted(pictures)
        if all(one is not None for one in found):
            wanted.future.set_result([one for one in found if one is not None])
            return wanted.future
        with self._lock:
            self._waiting.append(wanted)
        self._thread.submit(self._see_some)
        return wanted.future

    def close(self) -> None:
        """See nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for wanted in self._waiting:
                wanted.future.cancel()

    # The thread that sees.

    @torch.inference_mode()
    def _see_some(self) -> None:
        """Serve those who wait longest; nobody waits where an earlier call has seen to them."""
        served = self._taken()
        found: dict[str, Seen | Exception] = {}
        new: dict[str, Encoded] = {}
        for picture in (picture for wanted in served for picture in wanted.pictures):
            seen = self.memories.get(picture.key)
            if seen is None:
                new[picture.key] = picture
            else:
                found[picture.key] = seen
        found |= self._see_new(new)
        for wanted in served:
            kept = [found[picture.key] for picture in wanted.pictures]
            wrong = [one for one in kept if isinstance(one, Exception)]
            if wrong:
                wanted.future.set_exception(wrong[0])
            else:
                wanted.future.set_result([one for one in kept if isinstance(one, Seen)])

    def _taken(self) -> list[_Wanted]:
        """The next of those who still wait; whoever was late or went away has cancelled."""
        taken: list[_Wanted] = []
        with self._lock:
            room = _MAX_AT_ONCE
            while self._waiting and (not taken or len(self._waiting[0].pictures) <= room):
                wanted = self._waiting.popleft()
                if wanted.future.set_running_or_notify_cancel():
                    taken.append(wanted)
                    room -= len(wanted.pictures)
        return taken

    def _see_new(self, pictures: dict[str, Encoded]) -> dict[str, Seen | Exception]:
        """What is kept of each picture, or why nothing is; it is remembered."""
        found: dict[str, Seen | Exception] = {}
        upright: dict[str, Image] = {}
        for key, picture in pictures.items():
            try:
                upright[key] = decoded(picture, self._limits)
            except Exception as error:
                found[key] = error
            num_pixels = sum(one.width * one.height for one in upright.values())
            if len(upright) == _MAX_AT_ONCE or num_pixels >= _MANY_PIXELS:
                found |= self._see_together(upright)
                upright = {}
        if upright:
            found |= self._see_together(upright)
        for key, one in found.items():
            if isinstance(one, Seen):
                self.memories.put(key, one)
        return found

    def _see_together(self, upright: Mapping[str, Image]) -> dict[str, Seen | Exception]:
        try:
            return dict(zip(upright, self._look_at(list(upright.values())), strict=True))
        except Exception as error:
            if len(upright) == 1:
                return dict.fromkeys(upright, error)
            # what is wrong with one of them is not the others' fault
            return {name: one for key in upright for name, one in self._see_together({key: upright[key]}).items()}

    def _look_at(self, pictures: Sequence[Image]) -> list[Seen]:
        if not self._remembers:
            return [Seen(picture) for picture in pictures]
        return [
            Seen(Shown(*kept.picture.size), kept.memory if len(pictures) == 1 else kept.memory.select([kept.number]))
            for kept in self._vlm.keep(pictures)
        ]
