"""Outlines of the sixteen categories, as polygons, ellipses and lines in a square from -1 to 1 (x right, y down).

A shape is drawn part after part. The tone of a part says how: "main" in the object's colour, "dark" and "light" in
shades of it, "hole" takes away what was drawn before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Tone = Literal["main", "dark", "light", "hole"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A polygon of at least three points, in unit coordinates."""

    points: tuple[Point, ...]
    tone: Tone = "main"


def _polygon(*points: Point, tone: Tone = "main") -> Part:
    return Part(points, tone)


def _box(left: float, top: float, right: float, bottom: float, tone: Tone = "main") -> Part:
    return Part(((left, top), (right, top), (right, bottom), (left, bottom)), tone)


def _ellipse(x: float, y: float, rx: float, ry: float, tone: Tone = "main", start: float = 0, end: float = 360) -> Part:
    """An ellipse, or the part of it from angle `start` to `end` in degrees, clockwise from the right."""
    steps = 20
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    return Part(tuple((x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles), tone)


def _line(x0: float, y0: float, x1: float, y1: float, width: float, tone: Tone = "main") -> Part:
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (y1 - y0) / length * width / 2, (x0 - x1) / length * width / 2
    return Part(((x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)), tone)


def _ring(x: float, y: float, outer: float, inner: float) -> tuple[Part, Part]:
    return _ellipse(x, y, outer, outer), _ellipse(x, y, inner, inner, "hole")


SHAPES: dict[str, tuple[Part, ...]] = {
    "fish": (
        _polygon((0.35, 0.0), (1.0, -0.6), (0.85, 0.0), (1.0, 0.6)),
        _ellipse(-0.2, 0, 0.8, 0.5),
        _polygon((-0.2, -0.4), (0.1, -0.8), (0.3, -0.35), tone="dark"),
        _ellipse(-0.6, -0.12, 0.12, 0.12, "dark"),
    ),
    "boat": (
        _polygon((-1, 0.3), (1, 0.3), (0.6, 0.85), (-0.6, 0.85)),
        _line(0, 0.35, 0, -1, 0.12, "dark"),
        _polygon((0.1, -0.95), (0.85, 0.15), (0.1, 0.15), tone="light"),
        _polygon((-0.1, -0.7), (-0.1, 0.15), (-0.7, 0.15)),
    ),
    "anchor": (
        *_ring(0, -0.75, 0.27, 0.12),
        _line(0, -0.55, 0, 0.9, 0.24),
        _line(-0.5, -0.3, 0.5, -0.3, 0.2),
        _polygon(
            (-0.95, 0.1),
            (-0.65, 0.25),
            (-0.5, 0.5),
            (0, 0.65),
            (0.5, 0.5),
            (0.65, 0.25),
            (0.95, 0.1),
            (0.85, 0.55),
            (0.5, 0.9),
            (0, 1),
            (-0.5, 0.9),
            (-0.85, 0.55),
        ),
    ),
    "umbrella": (
        _ellipse(0, 0.1, 1, 1, start=180, end=360),
        _polygon((-0.35, 0.1), (0, -0.9), (0.35, 0.1), tone="light"),
        _line(0, 0.1, 0, 0.85, 0.13, "dark"),
        _line(0.02, 0.82, 0.38, 0.82, 0.13, "dark"),
        _line(0.34, 0.85, 0.34, 0.55, 0.12, "dark"),
    ),
    "house": (
        _box(-0.7, -0.1, 0.7, 0.9),
        _polygon((-1, -0.05), (0, -0.95), (1, -0.05), tone="dark"),
        _box(-0.12, 0.35, 0.25, 0.9, "dark"),
        _box(-0.55, 0.1, -0.25, 0.4, "light"),
    ),
    "tree": (
        _box(-0.15, 0.3, 0.15, 1, "dark"),
        _ellipse(-0.4, -0.05, 0.5, 0.45),
        _ellipse(0.4, -0.05, 0.5, 0.45),
        _ellipse(0, -0.5, 0.55, 0.5),
        _ellipse(0.1, -0.45, 0.2, 0.18, "light"),
    ),
    "car": (
        _polygon((-1, 0.1), (-0.6, 0), (-0.35, -0.5), (0.4, -0.5), (0.65, 0), (1, 0.1), (1, 0.45), (-1, 0.45)),
        _polygon((-0.45, 0), (-0.27, -0.37), (0, -0.37), (0, 0), tone="light"),
        _polygon((0.1, 0), (0.1, -0.37), (0.33, -0.37), (0.48, 0), tone="light"),
        _ellipse(-0.52, 0.45, 0.26, 0.26, "dark"),
        _ellipse(0.52, 0.45, 0.26, 0.26, "dark"),
    ),
    "flag": (
        _line(-0.7, -1, -0.7, 1, 0.16, "dark"),
        _polygon((-0.62, -0.9), (0, -0.75), (0.45, -0.9), (0.95, -0.8), (0.95, 0.1), (0.45, 0), (0, 0.15), (-0.62, 0)),
        _polygon(
            (-0.62, -0.6),
            (0, -0.45),
            (0.45, -0.6),
            (0.95, -0.5),
            (0.95, -0.2),
            (0.45, -0.3),
            (0, -0.15),
            (-0.62, -0.3),
            tone="light",
        ),
    ),
    "table": (
        _box(-1, -0.5, 1, -0.2),
        _box(-0.85, -0.2, -0.6, 0.8),
        _box(0.6, -0.2, 0.85, 0.8),
        _box(-1, -0.26, 1, -0.2, "dark"),
    ),
    "cup": (
        _ellipse(0.5, 0.05, 0.45, 0.42),
        _ellipse(0.5, 0.05, 0.24, 0.2, "hole"),
        _polygon((-0.85, -0.65), (0.5, -0.65), (0.35, 0.8), (-0.7, 0.8)),
        _ellipse(-0.175, -0.62, 0.67, 0.16, "dark"),
    ),
    "bottle": (
        _polygon(
            (-0.16, -1), (0.16, -1), (0.16, -0.45), (0.45, -0.1), (0.45, 1), (-0.45, 1), (-0.45, -0.1), (-0.16, -0.45)
        ),
        _box(-0.2, -1, 0.2, -0.8, "dark"),
        _box(-0.45, 0.2, 0.45, 0.65, "light"),
    ),
    "mushroom": (
        _polygon((-0.22, 0), (0.22, 0), (0.32, 0.95), (-0.32, 0.95), tone="light"),
        _ellipse(0, 0.1, 0.95, 0.95, start=180, end=360),
        _ellipse(-0.4, -0.25, 0.17, 0.15, "light"),
        _ellipse(0.3, -0.4, 0.2, 0.17, "light"),
    ),
    "key": (
        *_ring(-0.58, 0, 0.42, 0.18),
        _line(-0.2, 0, 1, 0, 0.22),
        _box(0.5, 0.05, 0.66, 0.42),
        _box(0.82, 0.05, 0.98, 0.42),
    ),
    "book": (
        _polygon(
            (-1, -0.6),
            (-0.5, -0.72),
            (0, -0.55),
            (0.5, -0.72),
            (1, -0.6),
            (1, 0.65),
            (0.5, 0.53),
            (0, 0.7),
            (-0.5, 0.53),
            (-1, 0.65),
        ),
        _polygon((-0.85, -0.45), (-0.5, -0.55), (-0.08, -0.4), (-0.08, 0.5), (-0.5, 0.37), (-0.85, 0.45), tone="light"),
        _polygon((0.85, -0.45), (0.5, -0.55), (0.08, -0.4), (0.08, 0.5), (0.5, 0.37), (0.85, 0.45), tone="light"),
        _line(0, -0.55, 0, 0.7, 0.1, "dark"),
    ),
    "lamp": (
        _polygon((-0.4, -0.95), (0.4, -0.95), (0.8, 0.0), (-0.8, 0.0)),
        _line(0, 0, 0, 0.8, 0.16, "dark"),
        _ellipse(0, 0.95, 0.55, 0.22, start=180, end=360),
        _polygon((-0.25, -0.85), (0.05, -0.85), (0.15, -0.1), (-0.35, -0.1), tone="light"),
    ),
    "clock": (
        _ellipse(-0.5, -0.75, 0.28, 0.22, "dark"),
        _ellipse(0.5, -0.75, 0.28, 0.22, "dark"),
        _ellipse(0, 0.08, 0.9, 0.9),
        _ellipse(0, 0.08, 0.66, 0.66, "light"),
        _line(0, 0.12, 0, -0.42, 0.14, "dark"),
        _line(-0.05, 0.08, 0.42, 0.3, 0.14, "dark"),
    ),
}
