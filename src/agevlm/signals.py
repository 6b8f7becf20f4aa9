"""Being asked to stop, by Ctrl-C (SIGINT) or by a scheduler (SIGTERM), while work is under way that should not be lost.

Nothing here ends a process: what was set up before, Python's own or the command line's, decides what a signal means.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def put_off() -> Iterator[Callable[[], bool]]:
    """Within, a first signal waits until the end, and the function that this gives says whether there was one.

    A second one no longer waits. Outside of the main thread, where Python hears no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def remember(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            restore()
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield lambda: bool(asked)
    finally:
        restore()
        if asked:  # also where the work failed: of a process whose helpers were told to stop, too
            signal.raise_signal(asked[0])
