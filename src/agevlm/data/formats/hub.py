"""Rows of a dataset of the Hugging Face hub, streamed by `datasets`: nothing of it is kept but what is converted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PREFIX = "hub:"


@dataclass(frozen=True)
class HubDataset:
    """A split of a dataset: `name` is user/name, or a directory that `datasets` can load."""

    name: str
    config: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        if not self.name.strip("/"):
            raise ValueError(f"{PREFIX} names no dataset: write {PREFIX}user/name")

    def __str__(self) -> str:
        return PREFIX + ":".join(part for part in (self.name, self.config, self.split) if part)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows in order, pictures as `{bytes, path}`. ValueError where it is not to be had or the stream breaks."""
        try:
            import datasets
        except ImportError as error:
            raise ValueError("datasets of the hub need the extra `hub`: pip install 'agevlm[hub]'") from error
        datasets.disable_progress_bars()
        number = 0
        try:
            stream = datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
            for row in stream.decode(False):
                yield row
                number += 1
        except Exception as error:  # of the network, of fsspec, of builders: there is no end of kinds
            line = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(f"{self}: cannot be read after {number} rows ({line})") from error
