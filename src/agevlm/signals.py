"""Being asked to stop, by Ctrl-C (SIGINT) or by a scheduler (SIGTERM), while work is under way that should not be lost.

What was set up before, Python's own or the command line's, decides what a signal means. A process that another one
started for its own work can end with it, however that ends.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ENDS_WITH_STDIN = "AGEVLM_ENDS_WITH_STDIN"  # in the environment of a process whose stdin its starter holds open


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


def end_with_starter() -> None:
    """Let this process end, at once, when the one that started it is gone, if that asked for it: `ENDS_WITH_STDIN`.

    Else the work of a killed process would go on without it, and be in the way of the next one.
    """
    if os.environ.pop(ENDS_WITH_STDIN, None) is None:
        return

    def watch() -> None:
        os.read(0, 1)  # comes back when nobody holds the other end any more
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
