"""Between the wire and the engines: a checked request becomes an ask, and what the engine tells becomes replies.

Speaks asyncio; knows neither FastAPI nor tensors.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from agevlm.analysis.learned import fitting_questions, learned_by, unlearned_notice
from agevlm.data.chat import RenderedChat
from agevlm.data.schema import Message
from agevlm.serve import replies
from agevlm.serve.asks import Ask, Begun, Done, Event, Failed, Piece
from agevlm.serve.conversations import Conversation, context_of, gather, too_long, written
from agevlm.serve.engine import Engine
from agevlm.serve.errors import REQUEST_ID, ApiError, FailedError, LateError, StoppingError, bad_request, shortened
from agevlm.serve.limits import Limits
from agevlm.serve.looking import (
    Chosen,
    SeenWord,
    answer_row,
    in_batches,
    log_probs_of,
    overlay_png,
    shared_out,
    strange_question,
    words_seen,
)
from agevlm.serve.memories import Seen
from agevlm.serve.metrics import Metrics
from agevlm.serve.pictures import Encoded, decoded, from_data_url
from agevlm.serve.protocol import MAX_STOPS, AnswersRequest, Asking, Attention, ChatRequest, LookRequest
from agevlm.serve.sampling import Sampling

_SHORT_TEXT_LEN = 4000  # characters that are tokenised in passing; more go to a thread
_NUM_TEXTS = 256  # short conversations whose text and tokens are remembered: the same is asked of many pictures
_log = logging.getLogger("agevlm.serve")


@dataclass
class Choice:
    """One choice of a completion while it comes."""

    text: str = ""
    log_probs: list[Any] = field(default_factory=list)
    done: Done | None = None


class Service:
    """All models of a server. `fetch` gets a picture from a URL that is no data URL."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        limits: Limits,
        metrics: Metrics,
        fetch: Callable[[str], Awaitable[bytes]] | None = None,
    ) -> None:
        self.engines, self.limits, self.metrics, self._fetch = dict(engines), limits, metrics, fetch
        self.started = int(time.time())
        # A tokenizer of its own for the requests' side: the engine's thread uses the other one.
        self._tokenizers = {name: copy.deepcopy(e.vlm.processor.tokenizer) for name, e in self.engines.items()}
        self._chats = {name: functools.lru_cache(_NUM_TEXTS)(e.vlm.chat) for name, e in self.engines.items()}
        self._ids = {name: functools.lru_cache(_NUM_TEXTS)(_ids_by(one)) for name, one in self._tokenizers.items()}
        self._longest = {name: max(map(len, tokenizer.get_vocab())) for name, tokenizer in self._tokenizers.items()}
        self._contexts = {name: context_of(engine.vlm) for name, engine in self.engines.items()}
        self._tokenizing = asyncio.Lock()
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="draw")  # one at a time: each takes hundreds of MB
        for engine in self.engines.values():
            self._follow(engine)

    def _follow(self, engine: Engine) -> None:
        follow, name = self.metrics.follow, engine.name
        follow("running", "Answers being written.", name, lambda: engine.num_running)
        follow("waiting", "Requests that have no place yet.", name, lambda: engine.num_waiting)
        follow("memory_bytes", "Bytes kept of pictures.", name, lambda: engine.memories.num_bytes)
        follow("prefix_bytes", "Bytes kept of text.", name, lambda: engine.prefixes.num_bytes)
        follow("memory_pictures", "Pictures kept.", name, lambda: len(engine.memories))

    def engine(self, name: str) -> Engine:
        """The engine of a model. ApiError 404 where there is none of that name."""
        if name not in self.engines:
            known = ", ".join(self.engines)
            raise ApiError(
                404,
                f"there is no model {shortened(name)!r} here: choose from {known}",
                param="model",
                code="model_not_found",
            )
        return self.engines[name]

    def described(self, name: str) -> dict[str, Any]:
        """A model as `/v1/models` lists it; with what the page needs to know beside OpenAI's fields."""
        vlm = self.engines[name].vlm
        about = {
            "context": self._contexts[name],
            "questions": fitting_questions(*learned_by(vlm.model)),
            "lists_words": learned_by(vlm.model).words is not None,
            "layers": list(vlm.looking) if vlm.note is None else [],
            "num_heads": _num_heads(vlm),
            "made_up": vlm.family is not None and bool(vlm.family.null_token(vlm.model)),
        }
        return {"id": name, "object": "model", "created": self.started, "owned_by": "agevlm", "looks": about}

    def knows(self, things: Collection[str]) -> bool:
        """Whether there is a model that may know all these; one that does not tell what it learned may."""
        words = [learned_by(engine.vlm.model).words for engine in self.engines.values()]
        return any(known is None or set(things) <= set(known) for known in words)

    def check_health(self) -> None:
        """ApiError 503 while the server stops."""
        if any(engine.stopping for engine in self.engines.values()):
            raise StoppingError

    # A completion.

    async def chat(self, request: ChatRequest, arrived: float) -> dict[str, Any]:
        """A whole completion."""
        engine = self._engine_for(request)
        with engine.place(request.num_choices):
            reply = await self._begin(engine, request, arrived)
            choices = [Choice() for _ in range(request.num_choices)]
            begun = Begun(0)
            async with reply:
                async for event in reply.events():
                    if isinstance(event, Begun):
                        begun = event
                    elif isinstance(event, Piece):
                        choices[event.choice].text += event.text
                        choices[event.choice].log_probs += event.log_probs
                    elif isinstance(event, Done):
                        choices[event.choice].done = event
        head = replies.Head(request.model, self._tokenizers[request.model])
        total = sum(len(choice.done.ids) for choice in choices if choice.done)
        return head.completion(
            [self._choice(request, head, number, choice) for number, choice in enumerate(choices)],
            replies.usage(begun, total),
        )

    def _choice(self, request: ChatRequest, head: replies.Head, number: int, choice: Choice) -> dict[str, Any]:
        assert choice.done is not None
        shown: dict[str, Any] = {
            "index": number,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": head.log_probs(choice.log_probs) if request.logprobs else None,
            "finish_reason": choice.done.finish,
        }
        return {**shown, **replies.looked(choice.done)}

    async def stream(self, request: ChatRequest, arrived: float) -> Stream:
        """The chunks of a streamed completion, as server-sent events. Errors before the first token are raised."""
        engine = self._engine_for(request)
        with ExitStack() as held:
            held.enter_context(engine.place(request.num_choices))
            reply = await self._begin(engine, request, arrived)
            held.callback(reply.cancel)
            events = reply.events()
            first = await anext(events)
            assert isinstance(first, Begun)
            chunks = self._chunks(request, events, first, arrived)
            return Stream(chunks, held.pop_all())

    async def _chunks(
        self, request: ChatRequest, events: AsyncIterator[Event], begun: Begun, arrived: float
    ) -> AsyncIterator[bytes]:
        head = replies.Head(request.model, self._tokenizers[request.model])
        total, said_something = 0, False
        try:
            for number in range(request.num_choices):
                yield _sse(head.chunk([_delta(number, {"role": "assistant", "content": ""})]))
            async for event in events:
                if isinstance(event, Piece):
                    if not said_something:
                        self.metrics.first_token(request.model, time.monotonic() - arrived)
                        said_something = True
                    said = head.log_probs(event.log_probs) if request.logprobs else None
                    yield _sse(head.chunk([_delta(event.choice, {"content": event.text}, said)]))
                elif isinstance(event, Done):
                    total += len(event.ids)
                    yield _sse(head.chunk([_last(event)]))
            if request.stream_options is not None and request.stream_options.include_usage:
                yield _sse(head.chunk([], replies.usage(begun, total)))
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield _sse(error.body)

    async def _begin(self, engine: Engine, request: ChatRequest, arrived: float) -> _Reply:
        """See the pictures, and hand the ask over."""
        looks = self._chosen(request.attention)
        async with self._in_time(arrived):
            conversation, ids, max_tokens = await self._prompt(engine, request, *request.longest)
            if looks is not None and not conversation.pictures:
                raise bad_request("attention is asked for, and there is no picture to look at", "attention")
            seen = await _seen(engine, conversation.pictures)
        reply = _Reply(request.num_choices, self.limits, arrived)
        num_top = (request.top_logprobs or 0) if request.logprobs else None
        reply.ask = Ask(
            conversation,
            ids,
            seen,
            reply.tell,
            max_tokens,
            Sampling(request.temperature or 0.0, request.top_p or 1.0, request.seed, num_top),
            request.num_choices,
            _stops(request),
            bool(request.stream),
            looks,
            reply.deadline,
        )
        engine.submit(reply.ask)
        return reply

    def _engine_for(self, request: ChatRequest) -> Engine:
        """The engine that is asked. ApiError for what no engine here does."""
        engine = self.engine(request.model)
        most = min(self.limits.max_choices, self.limits.max_running)
        if request.num_choices > most:
            raise bad_request(f"n is {request.n}; the limit here is {most}", "n")
        self._check_tokens(*request.longest)
        if request.stream_options is not None and not request.stream:
            raise bad_request("stream_options needs stream to be true", "stream_options")
        if request.top_logprobs is not None and not request.logprobs:
            raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
        return engine

    def _check_tokens(self, name: str, number: int | None) -> None:
        if number is not None and number > self.limits.max_tokens:
            raise bad_request(f"{name} is {number}; the limit here is {self.limits.max_tokens}", name)

    @staticmethod
    def _chosen(attention: bool | Attention | None) -> Chosen | None:
        if not attention:
            return None
        return Chosen() if attention is True else _numbers(attention.layers, attention.heads)

    # The extensions.

    async def look(self, request: LookRequest, arrived: float) -> bytes | dict[str, Any]:
        """Where the model looks: the PNG of one word over the picture, or all maps."""
        engine = self.engine(request.model)
        with engine.place():
            async with self._in_time(arrived):
                answer = request.answer
                self._check_tokens("max_tokens", request.max_tokens)
                self._check_length(engine, len(answer or ""), "answer")
                conversation, prompt, max_tokens = await self._prompt(engine, request, "max_tokens", request.max_tokens)
                seen = await _seen(engine, conversation.pictures)
                ids: Sequence[int] = ()
                if answer is None:
                    answer, ids = await self._own_answer(conversation, prompt, seen, engine, max_tokens, arrived)
                elif answer.strip():
                    ids = await self._call(engine, engine.vlm.answer_ids, conversation.chat.text, answer)
                chosen = _numbers(request.layers, request.heads)
                words = await self._call(engine, words_seen, engine.vlm, conversation, seen, ids, chosen)
                if request.format == "json":
                    notice = strange_question(engine.vlm, request.model, conversation)
                    return replies.looks(request.model, answer, words, notice)
                word = _the_word(words, request.word, request.model, engine.vlm.model.config)
                loop, picture = asyncio.get_running_loop(), conversation.pictures[-1]
                return await loop.run_in_executor(self._drawing, self._drawn, picture, word)

    def _drawn(self, picture: Encoded, word: SeenWord) -> bytes:
        return overlay_png(decoded(picture, self.limits), word.maps[-1])

    async def _own_answer(
        self,
        conversation: Conversation,
        prompt: Sequence[int],
        seen: Sequence[Seen],
        engine: Engine,
        max_tokens: int,
        arrived: float,
    ) -> tuple[str, tuple[int, ...]]:
        reply, text = _Reply(1, self.limits, arrived), ""
        ids: tuple[int, ...] = ()
        reply.ask = Ask(conversation, prompt, seen, reply.tell, max_tokens, deadline=reply.deadline)
        engine.submit(reply.ask)
        async with reply:
            async for event in reply.events():
                if isinstance(event, Piece):
                    text += event.text
                elif isinstance(event, Done):
                    ids = event.ids
        return text, ids

    async def answers(self, request: AnswersRequest, arrived: float) -> dict[str, Any]:
        """How probable each given answer is. They are read some at a time; what else is asked goes on in between."""
        engine, answers = self.engine(request.model), request.answers
        if len(answers) > self.limits.max_answers:
            raise bad_request(f"{len(answers)} answers are given, the limit is {self.limits.max_answers}", "answers")
        self._check_length(engine, max(map(len, answers)), "answers")
        with engine.place():
            async with self._in_time(arrived):
                conversation, ids, _ = await self._prompt(engine, request, "answers", 1)
                seen = await _seen(engine, conversation.pictures)
                vlm = engine.vlm
                rows = [await self._call(engine, answer_row, vlm, conversation, answer) for answer in answers]
                log_probs: list[float] = []
                for batch in in_batches(rows, len(ids)):
                    log_probs += await self._call(engine, log_probs_of, vlm, conversation, seen, rows[batch])
        return replies.scores(request.model, shared_out(answers, rows, log_probs))

    @contextlib.asynccontextmanager
    async def _in_time(self, arrived: float) -> AsyncIterator[None]:
        """LateError once a request has taken as long as it may."""
        try:
            async with asyncio.timeout(arrived + self.limits.max_request_s - time.monotonic()):
                yield
        except TimeoutError as error:
            raise LateError(self.limits.max_request_s) from error

    @staticmethod
    async def _call(engine: Engine, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in the engine's thread; what is wrong with the request is the client's error."""
        try:
            return await asyncio.wrap_future(engine.call(functools.partial(function, *arguments)))
        except ValueError as error:
            raise bad_request(str(error)) from error

    # The prompt.

    async def _prompt(
        self, engine: Engine, request: Asking, limited_by: str, max_tokens: int | None
    ) -> tuple[Conversation, list[int], int]:
        """The conversation, its tokens (none for a model that counts them itself), and the longest answer.

        `limited_by` is the field that says how many tokens an answer may have.
        """
        messages, pictures = await gather(request.messages, self.limits, self._get)
        num_characters = sum(len(message.content) for message in messages)
        self._check_length(engine, num_characters, "messages")
        chat, ids_of = self._chats[engine.name], self._ids[engine.name]
        if num_characters <= _SHORT_TEXT_LEN:
            return self._tokenised(engine, messages, pictures, limited_by, max_tokens, chat, ids_of)
        whole = (engine, messages, pictures, limited_by, max_tokens, chat.__wrapped__, ids_of.__wrapped__)
        async with self._tokenizing:
            return await asyncio.to_thread(self._tokenised, *whole)

    def _tokenised(
        self,
        engine: Engine,
        messages: tuple[Message, ...],
        pictures: tuple[Encoded, ...],
        limited_by: str,
        max_tokens: int | None,
        chat: Callable[[tuple[Message, ...]], RenderedChat],
        ids_of: Callable[[str], tuple[int, ...]],
    ) -> tuple[Conversation, list[int], int]:
        conversation = written(engine.vlm, messages, pictures, chat)
        wanted = max_tokens or self.limits.default_tokens
        ids = list(ids_of(conversation.chat.text)) if engine.remembers else []
        context = self._contexts[engine.name]
        if context is not None and ids:
            room = context - len(ids)
            if room < 1:
                raise too_long(f"the conversation has {len(ids)} tokens", context, "messages")
            if room < (max_tokens or 1):
                advice = f"ask for at most {room} tokens, not {max_tokens}"
                raise too_long(f"the conversation has {len(ids)} tokens", context, limited_by, advice)
            wanted = min(wanted, room)
        return conversation, ids, wanted

    def _check_length(self, engine: Engine, num_characters: int, param: str) -> None:
        """What cannot fit however it is split into tokens is not split: that takes a second for each megabyte."""
        context = self._contexts[engine.name]
        if context is not None and num_characters > context * self._longest[engine.name]:
            raise too_long(f"a text of {num_characters:,} characters is too many tokens", context, param)

    async def _get(self, url: str) -> Encoded:
        if url[:5].lower() == "data:" or self._fetch is None:
            return from_data_url(url, self.limits)
        from agevlm.serve.pictures import encoded

        return encoded(await self._fetch(url), self.limits)


class Stream:
    """Pieces of bytes, and what is given back when it is closed, whether they were all taken or none."""

    def __init__(self, pieces: AsyncIterator[bytes], held: ExitStack) -> None:
        self._pieces, self._held = pieces, held

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    def close(self) -> None:
        """Give the place back and let the answer be given up; twice does no harm."""
        self._held.close()


class _Reply:
    """The events of one ask, brought from the engine's thread to the event loop."""

    ask: Ask

    def __init__(self, num_choices: int, limits: Limits, arrived: float) -> None:
        self._left, self._most_s = num_choices, limits.max_request_s
        self.deadline = arrived + limits.max_request_s
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody waits
            self.ask.cancelled = True

    async def events(self) -> AsyncIterator[Event]:
        """All events up to the last choice's end; a failure is raised, ours as status 500. LateError past its time."""
        while self._left:
            event = await self._next()
            if isinstance(event, Failed):
                if isinstance(event.error, ApiError):
                    raise event.error
                _log.error("request %s failed", REQUEST_ID.get(), exc_info=event.error)
                raise FailedError from event.error
            self._left -= isinstance(event, Done)
            yield event

    async def _next(self) -> Event:
        """The engine drops what is late by itself; where it hangs, nobody hangs with it."""
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                return await self._events.get()
        except TimeoutError as error:
            raise LateError(self._most_s) from error

    def cancel(self) -> None:
        """Nobody waits for what may still come."""
        self.ask.cancelled = True

    async def __aenter__(self) -> _Reply:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


async def _seen(engine: Engine, pictures: Sequence[Encoded]) -> list[Seen]:
    """What a model keeps of pictures; without a turn of the event loop where all are remembered."""
    seen = engine.see(pictures)
    return seen.result() if seen.done() else await asyncio.wrap_future(seen)


def _ids_by(tokenizer: Any) -> Callable[[str], tuple[int, ...]]:
    """What gives the tokens of a text that a chat template has written."""
    return lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _num_heads(vlm: Any) -> int:
    config = vlm.model.config
    own = getattr(config, "cross_attention_heads", None)
    return int(own if own is not None else config.get_text_config().num_attention_heads)


def _stops(request: ChatRequest) -> list[str]:
    stops = [request.stop] if isinstance(request.stop, str) else list(request.stop or [])
    if any(not stop or len(stop) > 1000 for stop in stops):
        raise bad_request(f"stop is one to {MAX_STOPS} texts of up to 1000 characters, none empty", "stop")
    return stops


def _numbers(layers: Sequence[int] | None, heads: Sequence[int] | None) -> Chosen:
    return Chosen(None if layers is None else tuple(layers), None if heads is None else tuple(heads))


def _the_word(words: Sequence[SeenWord], wanted: str | None, model: str, config: Any) -> SeenWord:
    """The wanted word, or the first, that has a map. ApiError 400 where there is none such."""
    if not words:
        raise bad_request("neither the question nor the answer has an object word to show", "messages")
    found = [word for word in words if wanted is None or word.word == wanted.lower()]
    if not found:
        known = ", ".join(dict.fromkeys(word.word for word in words))
        raise bad_request(
            f"there is no word {shortened(wanted or '')!r} in question or answer: choose from {known}", "word"
        )
    learned = [word for word in found if word.learned is not False]
    if not learned:
        raise bad_request(unlearned_notice(found[0].word, model, config.known_words), "word")
    return learned[0]


def _delta(number: int, delta: dict[str, Any], log_probs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": log_probs, "finish_reason": None}


def _last(done: Done) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": done.choice, "delta": {}, "logprobs": None, "finish_reason": done.finish}
    return {**choice, **replies.looked(done)}


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
