"""How much one client, and all of them together, may ask for. Numbers only; `guard.py` and `engine.py` hold to them."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Every limit of a server; each is a positive number, and beyond it a request gets an error that names it."""

    max_body_bytes: int = 32_000_000
    max_images: int = 8  # of one conversation
    max_image_bytes: int = 16_000_000  # of one picture, encoded
    max_image_pixels: int = 40_000_000
    max_tokens: int = 1024  # of one answer
    default_tokens: int = 256  # of an answer whose request names no number
    max_choices: int = 8
    max_answers: int = 64  # that one request may have scored
    max_running: int = 32  # answers that are written at the same time, each choice by itself
    max_waiting: int = 128  # requests that wait for a place
    max_request_s: float = 120.0  # from the last byte of a request to the last of its answer
    max_upload_s: float = 30.0  # for the body of a request
    max_stall_s: float = 30.0  # that a client may leave what is sent to it unread
    memory_bytes: int = 1_000_000_000  # of pictures kept for further questions, a model
    prefix_bytes: int = 250_000_000  # of text kept for conversations that begin alike, a model

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} is {value}: a limit is a number above 0")
