"""What `/metrics` tells, in Prometheus' text: requests, answers, tokens, pictures remembered, times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_TIMES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Silent:
    """Metrics that nobody reads: what an engine without a server has."""

    def saw(self, model: str, found: Sequence[Any]) -> None:
        """Pictures were shown; None for those that are not remembered."""

    def read(self, model: str, tokens: int, cached: int) -> None:
        """A prompt was read, of which so many tokens had been read before."""

    def stepped(self, model: str, rows: int) -> None:
        """The decoder made a step for so many rows."""

    def wrote(self, model: str, tokens: int) -> None:
        """An answer is complete."""


class Metrics(Silent):
    """Counters of one server; models are told apart by the label `model`. Needs the package prometheus-client."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()  # when each was made: twice the text
        self.registry = CollectorRegistry()
        self._new_gauge = Gauge
        self._gauges: dict[str, Any] = {}
        named: dict[str, Any] = {"namespace": "agevlm", "registry": self.registry}
        self._requests = Counter("requests", "Requests answered.", ["route", "status"], **named)
        self._answers = Counter("answers", "Answers written.", ["model"], **named)
        self._tokens = Counter("tokens", "Tokens written.", ["model"], **named)
        self._steps = Counter("steps", "Steps of the decoder.", ["model"], **named)
        self._rows = Counter("rows", "Rows of all steps; over the steps, the mean batch.", ["model"], **named)
        self._prompts = Counter(
            "prompt_tokens", "Tokens of prompts, and whether they were read before.", ["model", "cached"], **named
        )
        self._pictures = Counter(
            "pictures", "Pictures shown, readable or not, and whether they were remembered.", ["model", "warm"], **named
        )
        self._first = Histogram(
            "first_token_seconds", "From a streamed request to its first text.", ["model"], buckets=_TIMES_S, **named
        )
        self._whole = Histogram("request_seconds", "From a request to its end.", ["route"], buckets=_TIMES_S, **named)

    def follow(self, name: str, what: str, label: str, value: Callable[[], float]) -> None:
        """A gauge that asks for its value when it is read."""
        if name not in self._gauges:
            self._gauges[name] = self._new_gauge(name, what, ["model"], namespace="agevlm", registry=self.registry)
        self._gauges[name].labels(label).set_function(value)

    def saw(self, model: str, found: Sequence[Any]) -> None:
        """Pictures were shown; None for those that are not remembered."""
        for one in found:
            self._pictures.labels(model, str(one is not None).lower()).inc()

    def read(self, model: str, tokens: int, cached: int) -> None:
        """A prompt was read, of which so many tokens had been read before."""
        self._prompts.labels(model, "true").inc(cached)
        self._prompts.labels(model, "false").inc(tokens - cached)

    def stepped(self, model: str, rows: int) -> None:
        """The decoder made a step for so many rows."""
        self._steps.labels(model).inc()
        self._rows.labels(model).inc(rows)

    def wrote(self, model: str, tokens: int) -> None:
        """An answer is complete."""
        self._answers.labels(model).inc()
        self._tokens.labels(model).inc(tokens)

    def first_token(self, model: str, seconds: float) -> None:
        """The first text of a streamed request went out."""
        self._first.labels(model).observe(seconds)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has its answer."""
        self._requests.labels(route, str(status)).inc()
        self._whole.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
