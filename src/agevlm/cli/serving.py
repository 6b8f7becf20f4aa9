"""`agevlm serve` and `agevlm chat`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agevlm.cli.options import Device, DType, Model
from agevlm.cli.show import quiet_transformers

if TYPE_CHECKING:
    from socket import socket

    from agevlm.serve.replicas import Replicas
    from agevlm.serve.server import Settings

_LIMITS = "Limits"

ApiKey = Annotated[
    str | None, typer.Option(envvar="AGEVLM_API_KEY", help="A key that clients must send; none by default.")
]
AllowRemote = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="Fetch pictures from this host by https; may be repeated."),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A further name that this server is called by; may be repeated."),
]
NumReplicas = Annotated[
    str | None,
    typer.Option(metavar="N", help="So many servers behind one address, on Ray; 1:4 for as many as are needed."),
]
MaxRunning = Annotated[int, typer.Option(min=1, help="Answers written at the same time.", rich_help_panel=_LIMITS)]
MaxWaiting = Annotated[
    int, typer.Option(min=1, help="Requests that may wait; more get status 429.", rich_help_panel=_LIMITS)
]
MaxTokens = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.", rich_help_panel=_LIMITS)]
MaxSeconds = Annotated[float, typer.Option(min=1, help="The longest that a request may take.", rich_help_panel=_LIMITS)]
MemoryMb = Annotated[
    int, typer.Option(min=1, help="What is kept of pictures for further questions.", rich_help_panel=_LIMITS)
]
PrefixMb = Annotated[
    int,
    typer.Option(min=1, help="What is kept of text for conversations that begin alike.", rich_help_panel=_LIMITS),
]


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="tiny, directories, hub ids; several stand side by side."),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")] = 8000,
    api_key: ApiKey = None,
    allow_remote: AllowRemote = None,
    allow_host: AllowHost = None,
    replicas: NumReplicas = None,
    max_running: MaxRunning = 32,
    max_waiting: MaxWaiting = 128,
    max_tokens: MaxTokens = 1024,
    max_seconds: MaxSeconds = 120.0,
    memory_mb: MemoryMb = 1000,
    prefix_mb: PrefixMb = 250,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running answers have to finish at the end.")] = 30.0,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Serve models by OpenAI's API, and a page.

    The API of OpenAI for chat under /v1, and at / a page to ask about pictures and see the heat map of each word. Needs
    the extra `serve`: pip install 'agevlm[serve]'.
    """
    if api_key is not None and not api_key.strip():
        raise ValueError("--api-key is empty: give a key, or leave the option out (is a variable of a script not set?)")
    if len(set(models)) != len(models):
        raise ValueError(f"a model is named twice in {' '.join(models)}: name each once")
    quiet_transformers()
    try:
        from agevlm.serve import server
    except ImportError as error:
        raise ValueError(f"serving needs the extra `serve` ({error}): pip install 'agevlm[serve]'") from error
    from agevlm.checkpoints.memory import check_memory
    from agevlm.serve.limits import Limits
    from agevlm.serve.replicas import Replicas, check_ray

    limits = Limits(
        max_running=max_running,
        max_waiting=max_waiting,
        max_tokens=max_tokens,
        default_tokens=min(max_tokens, Limits.default_tokens),
        max_request_s=max_seconds,
        memory_bytes=1_000_000 * memory_mb,
        prefix_bytes=1_000_000 * prefix_mb,
    )
    settings = server.Settings(host, port, api_key, tuple(allow_remote or ()), tuple(allow_host or ()), limits, grace)
    several = None if replicas is None else Replicas.parse(replicas, models, device, dtype)
    if several:
        check_ray()
    listening = server.listen(host, port)
    check_memory(models, device)
    if host not in ("127.0.0.1", "localhost", "::1") and api_key is None:
        typer.echo("everybody who reaches this address can use it: set --api-key", err=True)
    if several:
        cut_off = _serve_replicas(several, settings, listening)
    else:
        cut_off = _serve_here(models, device, dtype, settings, listening)
    if cut_off:
        typer.echo(f"stopped; requests that were cut off: {cut_off}", err=True)
        raise typer.Exit(1)
    typer.echo("stopped", err=True)


def _serve_here(models: Sequence[str], device: str, dtype: str, settings: Settings, listening: socket) -> int:
    from agevlm.checkpoints import load_vlm
    from agevlm.serve import server

    loaded = [(name, *load_vlm(name, device, dtype)) for name in models]
    typer.echo(_address(models, settings, listening))
    return server.run(loaded, settings, listening)


def _serve_replicas(replicas: Replicas, settings: Settings, listening: socket) -> int:
    from agevlm.checkpoints import load_vlm
    from agevlm.serve import server

    for name in replicas.models:
        load_vlm(name, "cpu", replicas.dtype)  # what is wrong with it is told here and now, not by Ray
    typer.echo("Ray starts the replicas; this takes some seconds", err=True)
    at = _address(replicas.models, settings, listening)
    return server.run_replicas(replicas, settings, listening, ready=lambda: typer.echo(at))


def _address(models: Sequence[str], settings: Settings, listening: socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{', '.join(models)} at http://{host}:{listening.getsockname()[1]} (API under /v1); Ctrl-C ends it"


def chat(
    model: Model,
    picture: Annotated[Path | None, typer.Argument(help="A picture file to talk about.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    maps: Annotated[bool, typer.Option(help="Draw where the model looked at each object word.")] = True,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Talk with a model about a picture, in the terminal.

    Answers come word by word; then the words that are things, each with its heat map. A line that begins with a slash
    is a command: /look WORD, /picture FILE, /help, /quit.
    """
    from agevlm.api import load_model
    from agevlm.serve.terminal import talk

    quiet_transformers()
    talk(*load_model(model, device, dtype), name=model, picture=picture, max_tokens=max_tokens, maps=maps)
