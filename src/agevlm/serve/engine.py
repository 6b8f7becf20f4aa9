"""The scheduler: which request runs when. One thread a model does all that the model does, but to see pictures.

Between two steps the engine lets finished rows go, lets newcomers in, and does one job (a look, a scoring). To read the
prompt of one newcomer holds up all rows that run nearly as long as to read many, so newcomers wait for company: until
they are as many as those rows, for a few steps at most.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from agevlm.serve.asks import Ask, Begun, Failed, Writing
from agevlm.serve.decoding import Decoder, Rows
from agevlm.serve.errors import ApiError, LateError, StoppingError, TooBusyError
from agevlm.serve.eyes import Eyes
from agevlm.serve.limits import Limits
from agevlm.serve.looking import MAX_READ_TOKENS, strange_question, words_seen
from agevlm.serve.memories import Seen
from agevlm.serve.metrics import Silent
from agevlm.serve.pictures import Encoded
from agevlm.serve.prefixes import Prefixes, least_tokens
from agevlm.serve.whole import write_whole
from agevlm.vlms import Vlm

_PATIENCE_STEPS = 4  # that a newcomer waits for company
_SMALL = 30_000_000  # weights
_log = logging.getLogger("agevlm.serve")


def settle_threads(models: Sequence[tuple[str, Any, Any]]) -> None:
    """One thread an operation where all models are small: their operations are too short to be shared out.

    Pictures are seen while answers are written, so that two cores are busy all the same.
    """
    if all(sum(weight.numel() for weight in model.parameters()) < _SMALL for _, model, _ in models):
        torch.set_num_threads(1)


class Engine:
    """One model, asked by many. `close` ends it; until then its threads wait for work."""

    def __init__(self, name: str, model: Any, processor: Any, limits: Limits, metrics: Silent | None = None) -> None:
        self.name, self.limits, self.vlm = name, limits, Vlm(model, processor)
        self.metrics = metrics or Silent()
        family = self.vlm.family
        self.remembers = family is not None and family.cross and family.remember is not None  # keys and values
        self._eyes = Eyes(name, self.vlm, limits, self.metrics, self.remembers)
        self.memories = self._eyes.memories
        pad = processor.tokenizer.pad_token_id
        self._decoder = Decoder(model, 0 if pad is None else pad) if self.remembers else None
        self.prefixes = Prefixes(limits.prefix_bytes, self.vlm.image_token_id, least_tokens(model))
        self._work: queue.SimpleQueue[Ask | _Job | None] = queue.SimpleQueue()
        self._asks: deque[Ask] = deque()
        self._jobs: deque[_Job] = deque()
        self._rows: Rows | None = None
        self._writing: list[Writing] = []
        self._next: list[int] = []
        self._whole: Ask | None = None  # what a model without memories answers
        self._num_places = limits.max_running if self.remembers else 1
        self._open: dict[object, int] = {}  # requests in the order they came, and the places each takes
        self._num_waited = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._stopping = self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"write {name}", daemon=True)
        self._thread.start()

    # What other threads call.

    @property
    def num_running(self) -> int:
        """The answers that are being written."""
        return len(self._writing) + (self._whole is not None)

    @property
    def num_waiting(self) -> int:
        """The requests that are taken and have no place yet."""
        running = {id(writing.ask) for writing in self._writing}
        return max(0, len(self._open) - len(running) - (self._whole is not None))

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken."""
        return self._stopping

    @contextmanager
    def place(self, num_choices: int = 1) -> Iterator[None]:
        """Count as a request while the body runs. TooBusyError (429) or StoppingError (503) where none is taken.

        A request takes a place for each choice. Those that came when the places were taken wait for one.
        """
        request, num_places = object(), num_choices if self.remembers else 1
        with self._lock:
            if self._stopping:
                raise StoppingError
            taken = accumulate([*self._open.values(), num_places])
            if sum(number > self._num_places for number in taken) > self.limits.max_waiting:
                raise TooBusyError(self.limits.max_waiting)
            self._open[request] = num_places
        try:
            yield
        finally:
            with self._idle:
                del self._open[request]
                self._idle.notify_all()

    def see(self, pictures: Sequence[Encoded]) -> Future[list[Seen]]:
        """What the model keeps of pictures; done at once where all are remembered."""
        return self._eyes.see(pictures)

    def submit(self, ask: Ask) -> None:
        """Have an ask answered; all that comes of it goes to `ask.tell`."""
        self._work.put(ask)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function that uses the model, between two steps."""
        job = _Job(function)
        self._work.put(job)
        return job.future

    def stop(self) -> None:
        """Take nothing new from now on."""
        self._stopping = True

    def close(self, grace_s: float = 0.0) -> bool:
        """Take nothing new, let what runs finish for at most `grace_s`, and end. Whether all has finished."""
        with self._idle:
            self._stopping = True
            finished = self._idle.wait_for(lambda: not self._open, timeout=grace_s)
        self._ended = True
        self._work.put(None)
        self._thread.join(timeout=10)
        self._eyes.close()
        return finished

    # The thread that writes.

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._ended:
            self._collect()
            try:
                self._do_one_job()
                self._let_in()
                self._step()
            except Exception as error:
                _log.exception("%s: a step failed; the answers in it are given up", self.name)
                self._give_up(error)
        self._give_up(StoppingError())

    def _collect(self) -> None:
        """Take over what has come; wait for something where there is nothing to do."""
        wait = not (self._writing or self._asks or self._jobs)
        while not self._ended:
            try:
                item = self._work.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if isinstance(item, Ask):
                self._asks.append(item)
            elif item is not None:
                self._jobs.append(item)

    def _do_one_job(self) -> None:
        if self._jobs:
            self._jobs.popleft().run()

    def _let_in(self) -> None:
        """Read the prompts of as many newcomers as there are places, and let them begin."""
        if self._wait_for_company():
            return
        newcomers: list[Ask] = []
        places, longest = self.limits.max_running - len(self._writing), 0
        while self._asks:
            ask = self._asks[0]
            if self._dropped(ask):
                self._asks.popleft()
                continue
            longest = max(longest, len(ask.ids))
            if ask.num_choices > places or (newcomers and longest * (len(newcomers) + 1) > MAX_READ_TOKENS):
                break
            places -= ask.num_choices
            newcomers.append(self._asks.popleft())
            if self._decoder is None:
                break
        if newcomers and self._decoder is None:
            self._write_whole(newcomers[0])
        elif newcomers:
            self._begin(newcomers)

    def _wait_for_company(self) -> bool:
        waits = 0 < len(self._asks) < len(self._writing) and self._num_waited < _PATIENCE_STEPS
        self._num_waited = self._num_waited + 1 if waits else 0
        return waits

    def _dropped(self, ask: Ask) -> bool:
        """Whether nobody waits for an ask any more; one that is late is told so."""
        if ask.late and not ask.cancelled:
            ask.cancelled = True
            ask.tell(Failed(LateError(self.limits.max_request_s)))
        return ask.cancelled

    def _begin(self, asks: Sequence[Ask]) -> None:
        """Newcomers join the rows that are written. Where that fails, they alone are told: no row has been touched."""
        try:
            self._join(asks)
        except Exception as error:
            for ask in asks:
                ask.tell(Failed(error))

    def _join(self, asks: Sequence[Ask]) -> None:
        assert self._decoder is not None
        prefixes = [self.prefixes.find(ask.ids, ask.picture_keys) for ask in asks]
        memories = [[one.memory for one in ask.seen] for ask in asks]
        rows, logits = self._decoder.read([ask.ids for ask in asks], memories, prefixes)
        numbers, writing = [], []
        for number, ask in enumerate(asks):
            for choice in range(ask.num_choices):
                numbers.append(number)
                writing.append(Writing(ask, choice, self.vlm.processor.tokenizer, self.vlm.end_ids))
        likeliest = self._likeliest(logits := logits[numbers])
        for ask, prefix in zip(asks, prefixes, strict=True):  # late: whoever is told takes the interpreter to tell on
            begun = Begun(len(ask.ids), 0 if prefix is None else prefix.shape[3])
            self.metrics.read(self.name, begun.num_tokens, begun.num_cached)
            ask.tell(begun)
        going, tokens = self._take(writing, logits, likeliest, rows, numbers)
        if going:
            fresh = rows.select([numbers[place] for place in going])
            self._rows = fresh if self._rows is None else self._rows.joined(fresh)
            self._writing += [writing[place] for place in going]
            self._next += tokens

    def _step(self) -> None:
        """One token more for each row; rows that are finished or no longer wanted leave."""
        wanted = [place for place, writing in enumerate(self._writing) if not self._dropped(writing.ask)]
        self._keep(wanted)
        if not self._writing:
            return
        assert self._decoder is not None
        assert self._rows is not None
        self._rows, logits = self._decoder.step(self._rows, self._next)
        likeliest = self._likeliest(logits)
        going, self._next = self._take(self._writing, logits, likeliest, self._rows, range(len(self._writing)))
        self.metrics.stepped(self.name, len(self._writing))
        self._keep(going, tokens_too=False)

    def _keep(self, places: Sequence[int], tokens_too: bool = True) -> None:
        if len(places) == len(self._writing):
            return
        self._writing = [self._writing[place] for place in places]
        if tokens_too:
            self._next = [self._next[place] for place in places]
        self._rows = self._rows.select(places) if places and self._rows is not None else None

    def _likeliest(self, logits_RV: Any) -> list[int]:
        """The likeliest token of each row; a picture's placeholder is never written."""
        if self.vlm.image_token_id < logits_RV.shape[-1]:
            logits_RV[:, self.vlm.image_token_id] = -float("inf")
        return list(logits_RV.argmax(-1).tolist())

    def _take(
        self, writing: Sequence[Writing], logits_RV: Any, likeliest: Sequence[int], rows: Rows, numbers: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Give each its next token: the places of those that go on, and their tokens.

        `numbers` say which row of `rows` each has. What was read for those that are complete is kept.
        """
        going, tokens = [], []
        for place, one in enumerate(writing):
            token = likeliest[place] if one.plain else one.choose(logits_RV[place])
            if one.take(token):
                going.append(place)
                tokens.append(token)
            else:
                self._complete(one)
                read = [*one.ask.ids, *one.ids][: rows.num_tokens(numbers[place])]
                self.prefixes.keep(read, one.ask.picture_keys, partial(rows.states, numbers[place]))
        return going, tokens

    def _complete(self, writing: Writing) -> None:
        ask = writing.ask
        self.metrics.wrote(self.name, len(writing.ids))
        try:
            words = notice = None
            if ask.looks is not None:
                words = words_seen(self.vlm, ask.conversation, ask.seen, writing.ids, ask.looks, writing.text)
                notice = strange_question(self.vlm, self.name, ask.conversation)
            writing.complete(words, notice)
        except ApiError as error:
            ask.cancelled = True
            ask.tell(Failed(error))

    def _write_whole(self, ask: Ask) -> None:
        """An answer of a model without memories: all of it before anything else runs."""
        self._whole = ask
        try:
            for writing in write_whole(self.vlm, ask, lambda: self._dropped(ask)):
                self._complete(writing)
        except ValueError as error:  # too long a row, pictures that a processor refuses
            ask.tell(Failed(ApiError(400, str(error), param="messages")))
        except Exception as error:
            ask.tell(Failed(error))
        finally:
            self._whole = None

    def _give_up(self, error: Exception) -> None:
        for ask in {id(writing.ask): writing.ask for writing in self._writing}.values():
            ask.tell(Failed(error))
        self._writing, self._next, self._rows = [], [], None
        if self._ended:
            for ask in self._asks:
                ask.tell(Failed(error))
            for job in self._jobs:
                job.future.cancel()


class _Job:
    """A function to be run by the engine's thread, and the future of what it gives."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.future: Future[Any] = Future()

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._function())
        except Exception as error:
            self.future.set_exception(error)
