"""Is serving worth its machinery? Answers a second and times to the first token, against `generate`, in one run.

    python benchmarks/serve_load.py --model tiny
    python benchmarks/serve_load.py --model smollm2 --pictures 20 --rounds 3
    python benchmarks/serve_load.py --model tiny --soak 10000

Each of 16 clients asks 8 questions about each of 20 pictures, one after another. They begin at once and each with
another picture, so that 16 new pictures come in a burst. Beside it, in turns and in one run: `generate` one by one, and
`generate` in batches of 8, both of which see the picture with each question. All arms may use the same number of
threads; the server takes one for a model as small as `tiny`. The weights of `smollm2` are random, in the shape of
SmolLM2-135M on a ConvNeXt-T at 384 pixels; it writes 16 tokens an answer.

Last, conversations of six turns: the first token of the last turn where its beginning is new to the server, over that
where the server has heard the other turns.

`--soak N` measures no time: it asks N questions about ever new pictures, more than the server keeps, and watches its
memory. A status that is not 200 and an answer without an end stop it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import torch
import uvloop
from common import load, quiet, write_result

CLIENTS, BATCH, MAX_TOKENS = 16, 8, 16
COUNTED = (b"agevlm_requests_total", b"agevlm_answers_total", b"agevlm_memory")
TEXT = re.compile(rb'"content":"[^"]')
CHOICES = re.compile(rb'"choices":(\[.+?\])}')
TURNS = 6
QUESTIONS = (
    "what is in the picture?", "is there a fish?", "is there a tree?", "is there a car?", "where is the flag?",
    "how many books are there?", "what colour is the cup?", "is there a boat?",
)  # fmt: skip


def smollm2() -> tuple[Any, Any]:
    """A model in the shape of SmolLM2-135M on a ConvNeXt-T of 384 pixels, with random weights, and its processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import ConvNextBackbone, ConvNextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor

    torch.manual_seed(0)
    known = sorted({word for question in QUESTIONS for word in question.replace("?", " ?").split()})
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "user", "assistant", ":", *known]
    words += [f"w{number}" for number in range(49_151 - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    processor = AgeVlmProcessor.from_backbones(fast, 384)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=2048, eos_token_id=None,
        )
    )  # fmt: skip
    sizes = [96, 192, 384, 768]
    backbone = ConvNextBackbone(ConvNextConfig(image_size=384, hidden_sizes=sizes, out_features=["stage4"]))
    model = AgeVlmForConditionalGeneration.from_backbones(
        decoder,
        backbone,
        image_token_id=processor.image_token_id,
        null_token=True,
        attn_gate_init=0.5,
        mlp_gate_init=0.5,
    )
    return model, processor


def build(name: str, dtype: str) -> tuple[Any, Any]:
    """A model and its processor."""
    from agevlm.checkpoints import load_vlm

    quiet()
    model, processor = load_vlm("tiny") if name == "tiny" else smollm2()
    return model.to(getattr(torch, dtype)), processor


def pictures(number: int, side: int) -> list[bytes]:
    """PNG files of drawn scenes."""
    from agevlm.data.images import png_bytes
    from agevlm.data.scenes import WorldSpec, draw_scene

    return [png_bytes(draw_scene(WorldSpec(image_size=side), 7, index).image) for index in range(number)]


def generate(model: Any, processor: Any, files: list[bytes], batch: int, number: int) -> list[float]:
    """Seconds an answer of `generate`, for each of `number` batches."""
    from agevlm.data.images import open_image
    from agevlm.vlms import Vlm

    vlm, times = Vlm(model, processor), []
    pairs = [(file, question) for file in files for question in QUESTIONS]
    for start in range(number):
        chosen = [pairs[(start * 11 + place) % len(pairs)] for place in range(batch)]
        began = time.perf_counter()
        inputs = processor(
            text=[vlm.prompt(question) for _, question in chosen], images=[[open_image(file)] for file, _ in chosen]
        )
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False, disable_compile=True)
        times.append((time.perf_counter() - began) / batch)
    return times


class Load:
    """Clients of a server: what they ask, and how long they waited for the first and for the last token.

    They share the machine with the server, so they do as little as they can: requests are bytes before the clock
    starts, and replies are not parsed further than to find their first text and their end.
    """

    def __init__(self, url: str, model: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.host, self.port, self.model = host, int(port), model
        self.first: list[float] = []
        self.burst: list[bool] = []  # the first question of a client, when all begin
        self.cold: list[bool] = []  # about a new picture, where there is one client
        self.said = ""  # the last answer

    def request(self, file: bytes, question: str, *later: tuple[str, str]) -> bytes:
        """A request for a streamed answer; `later` are an answer and the next question for each turn more."""
        url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        for answer, asked in later:
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": asked}]
        body = json.dumps({"model": self.model, "messages": messages, "max_tokens": MAX_TOKENS, "stream": True})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> float:
        """Seconds until the first text of an answer, which is read to its end."""
        began, first, reply = time.perf_counter(), 0.0, b""
        writer.write(request)
        while not reply.endswith(b"\r\n0\r\n\r\n"):
            piece = await reader.read(65536)
            reply += piece
            assert piece, reply
            assert reply.startswith(b"HTTP/1.1 200 "), reply
            if not first and TEXT.search(reply):
                first = time.perf_counter() - began
        assert first, reply
        assert b"data: [DONE]" in reply, reply
        self.said = "".join(json.loads(piece)[0]["delta"].get("content", "") for piece in CHOICES.findall(reply))
        return first

    async def converse(self, file: bytes, turns: int) -> tuple[float, float]:
        """Seconds to the first text of the last turn: where all turns were asked in order, and where only it is."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        later: list[tuple[str, str]] = []
        for turn in range(turns):
            heard = await self.ask(reader, writer, self.request(file, QUESTIONS[0], *later))
            later.append((self.said, QUESTIONS[(turn + 1) % len(QUESTIONS)]))
        other = self.request(file, QUESTIONS[1], *later[: turns - 1])
        new = await self.ask(reader, writer, other)
        writer.close()
        return heard, new

    async def run(self, files: list[bytes], clients: int, shared: bool = True) -> float:
        """Each client asks all questions about all pictures, or of pictures that are not shared about its own.

        Seconds an answer.
        """
        requests = [[self.request(file, question) for question in QUESTIONS] for file in files]

        async def one(place: int) -> None:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            mine = requests[place:] + requests[:place] if shared else requests[place::clients]
            for turn, questions in enumerate(mine):
                for number, request in enumerate(questions):
                    self.first.append(await self.ask(reader, writer, request))
                    self.burst.append(turn == number == 0)
                    self.cold.append(number == 0)
            writer.close()

        began, answered = time.perf_counter(), len(self.first)
        await asyncio.gather(*(one(place) for place in range(clients)))
        return (time.perf_counter() - began) / (len(self.first) - answered)


def run_clients(work: Coroutine[Any, Any, Any]) -> Any:
    """What clients do, in the quickest event loop there is: they take a core from the server."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[int(0.95 * (len(values) - 1))]


def served(options: argparse.Namespace, *more: str) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its URL."""
    settings = ["--model", options.model, "--dtype", options.dtype, "--threads", str(options.threads)]
    command = [sys.executable, __file__, *settings, "--serve", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def serve(name: str, dtype: str, memory_mb: int, prefix_mb: int) -> None:
    """Be that server. Nothing is refused for the time it takes: that is what is measured."""
    from agevlm.serve.limits import Limits
    from agevlm.serve.server import Settings, listen, run

    limits = Limits(max_request_s=3600, memory_bytes=1_000_000 * memory_mb, prefix_bytes=1_000_000 * prefix_mb)
    listening = listen("127.0.0.1", 0)
    model = (name, *build(name, dtype))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    run([model], Settings(port=0, limits=limits), listening)


def rss_mb(pid: int) -> float:
    """The memory of a process that is its own, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All arms, `rounds` times in turns."""
    model, processor = build(options.model, options.dtype)
    side = 96 if options.model == "tiny" else 384
    process, url = served(options)
    arms: dict[str, list[Any]] = {"one": [], "batch": [], "served": [], "turns": []}
    loaded, idle = Load(url, options.model), Load(url, options.model)
    try:
        run_clients(Load(url, options.model).run(pictures(2, side)[:1], 1))
        generate(model, processor, pictures(1, side), 1, 2)
        for number in range(options.rounds):
            files = [file + bytes(number + 1) for file in pictures(options.pictures, side)]  # other bytes: cold again
            arms["one"].append(statistics.median(generate(model, processor, files, 1, options.answers)))
            arms["served"].append(run_clients(loaded.run(files, CLIENTS)))
            arms["batch"].append(statistics.median(generate(model, processor, files, BATCH, options.answers // 4)))
            run_clients(idle.run([file + b"idle" for file in files[: options.idle]], 1))
            arms["turns"] += [run_clients(idle.converse(file + b"turns", TURNS)) for file in files[: options.idle]]
    finally:
        process.terminate()
        process.wait(timeout=60)
    return summary(arms, loaded, idle)


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """The memory of a server after each tenth of `soak` requests, and what it counted itself."""
    side = 96 if options.model == "tiny" else 384
    process, url = served(options, "--memory-mb", "10", "--prefix-mb", "10")
    drawn, found, number = pictures(20, side), [], max(1, options.soak // 10 // len(QUESTIONS))
    began = time.perf_counter()
    try:
        for tenth in range(10):
            files = [drawn[i % 20] + f"soak {tenth} {i}".encode() for i in range(number)]
            run_clients(Load(url, options.model).run(files, CLIENTS, shared=False))
            found.append(round(rss_mb(process.pid), 1))
            print(f"{(tenth + 1) * number * len(QUESTIONS)} requests: {found[-1]} MB", flush=True)
        with urllib.request.urlopen(f"{url}/metrics") as reply:
            lines = [
                line.decode().split()
                for line in reply
                if line.startswith((b"agevlm_req", b"agevlm_ans", b"agevlm_mem"))
            ]
    finally:
        process.terminate()
        process.wait(timeout=60)
    return {
        "num_requests": 10 * number * len(QUESTIONS),
        "seconds": time.perf_counter() - began,
        "memory_mb": found,
        "growth_ratio": found[-1] / found[1] - 1,
        "counted": {name: float(value) for name, value in lines},
    }


def summary(arms: dict[str, list[Any]], loaded: Load, idle: Load) -> dict[str, Any]:
    """Figures and bars: what was asked for, what came, whether it holds."""
    burst = [first for first, begins in zip(loaded.first, loaded.burst, strict=True) if begins]
    cold, warm = (
        [first for first, new in zip(idle.first, idle.cold, strict=True) if new is wanted] for wanted in (True, False)
    )
    turns = arms.pop("turns")
    ratios = {
        "served_over_one_by_one": statistics.median(a / b for a, b in zip(arms["one"], arms["served"], strict=True)),
        "served_over_batches": statistics.median(a / b for a, b in zip(arms["batch"], arms["served"], strict=True)),
        "first_token_p95_loaded_over_idle": p95(loaded.first) / p95(idle.first),
        "first_token_cold_over_warm": statistics.median(cold) / statistics.median(warm),
        "first_token_burst_over_idle": statistics.median(burst) / p95(idle.first),
        "first_token_new_over_heard": statistics.median(new / heard for heard, new in turns),
    }
    bars = {
        "served_over_one_by_one": ratios["served_over_one_by_one"] >= 4,
        "served_over_batches": ratios["served_over_batches"] >= 2,
        "first_token_p95_loaded_over_idle": ratios["first_token_p95_loaded_over_idle"] <= 3,
        "first_token_cold_over_warm": ratios["first_token_cold_over_warm"] >= 3,
    }
    first = {
        "loaded_p50_s": statistics.median(loaded.first), "loaded_p95_s": p95(loaded.first),
        "burst_p50_s": statistics.median(burst), "burst_worst_s": max(burst), "idle_p95_s": p95(idle.first),
        "warm_p50_s": statistics.median(warm), "cold_p50_s": statistics.median(cold),
        "heard_p50_s": statistics.median(heard for heard, _ in turns),
        "new_p50_s": statistics.median(new for _, new in turns),
    }  # fmt: skip
    return {"seconds_an_answer": arms, "ratios": ratios, "bars": bars, "first_token": first}


def main() -> None:
    """Measure one model and write a result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of all arms")
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=24, help="of generate one by one, a round")
    parser.add_argument("--idle", type=int, default=5, help="pictures asked about by one client alone, a round")
    parser.add_argument("--soak", type=int, default=0, help="only watch the memory, over so many requests")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory-mb", type=int, default=1000, help=argparse.SUPPRESS)
    parser.add_argument("--prefix-mb", type=int, default=250, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(options.threads)
    if options.serve:
        serve(options.model, options.dtype, options.memory_mb, options.prefix_mb)
        return
    before = load()
    result = soak(options) if options.soak else measure(options)
    settings = {
        name: value for name, value in vars(options).items() if name not in ("out", "serve", "memory_mb", "prefix_mb")
    }
    model = options.model if options.dtype == "float32" else f"{options.model}_{options.dtype}"
    name = f"serve_soak_{model}" if options.soak else f"serve_load_{model}"
    path = write_result(name, {"settings": settings, **result, "load_before": before}, options.out)
    print(json.dumps(result, indent=2))
    print(path)


if __name__ == "__main__":
    main()
