"""The embedded world: drawn scenes of named, coloured, overlapping things with exact masks."""

from agevlm.data.scenes.drawing import Scene, draw_scene, scene_png
from agevlm.data.scenes.splits import split_seed
from agevlm.data.scenes.world import CATEGORIES, COLOURS, GROUPS, PARTNERS, Placement, WorldSpec, sample_layout

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "GROUPS",
    "PARTNERS",
    "Placement",
    "Scene",
    "WorldSpec",
    "draw_scene",
    "sample_layout",
    "scene_png",
    "split_seed",
]
