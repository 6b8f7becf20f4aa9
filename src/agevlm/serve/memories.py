"""Pictures that the model has seen, kept by their content for further questions, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Lru(Generic[Value]):
    """What was used last stays, as long as all of it has at most `max_bytes`. Safe to use from several threads.

    A value that alone is larger than the bound is not kept.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        self.max_bytes, self._size_of = max_bytes, size_of
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = self.num_hits = self.num_misses = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Value | None:
        """The value of a key, now the one used last; None where it is not kept (any more)."""
        with self._lock:
            if key not in self._values:
                self.num_misses += 1
                return None
            self.num_hits += 1
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: str, value: Value) -> None:
        """Keep a value, and let go of those that were used longest ago until all fit."""
        with self._lock:
            if key in self._values:
                self.num_bytes -= self._size_of(self._values.pop(key))
            if self._size_of(value) > self.max_bytes:
                return
            self._values[key] = value
            self.num_bytes += self._size_of(value)
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._size_of(self._values.popitem(last=False)[1])


@dataclass(frozen=True)
class Shown:
    """A picture that stands for itself where only its size counts: its pixels are not kept. (PIL's names.)"""

    width: int
    height: int


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture: the model's memory of it, or, of models without memories, its pixels."""

    picture: Any  # a PIL image, or `Shown`
    memory: Any = None

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        if self.memory is None:
            return int(3 * self.picture.width * self.picture.height)
        tensors = getattr(self.memory, "keys", ()), getattr(self.memory, "values", ())
        flat = [tensor for group in tensors for tensor in group] or [self.memory.tokens]
        return sum(tensor.numel() * tensor.element_size() for tensor in flat)
