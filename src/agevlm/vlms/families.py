"""The families of vision-language models that are known: for each a few facts, in the table at the end.

What a family must say is `Family`. Most of it has a default; the one thing that differs from family to family is
`views`: which views of a picture its processor makes, in the order of their tokens. A function for it takes `Shown` and
is a few lines of arithmetic on sizes. A count that the facts get wrong is an error at the first picture, see `layout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agevlm.vlms.views import Size, View, canvas_of, padded, tiles, whole


@dataclass(frozen=True)
class Shown:
    """One picture and all that tells how it was shown: sizes are (height, width) in pixels.

    `tensors` are what the processor gave for the whole call; the picture is `number` among its pictures, `place` among
    the `num_in_row` of its row, and its row is `row`.
    """

    size: Size
    model: Any
    processor: Any
    tensors: Mapping[str, Any]
    number: int = 0
    row: int = 0
    place: int = 0
    num_in_row: int = 1

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    def setting(self, name: str) -> Any:
        """A setting of the image processor; what the processor class sets for its calls comes first."""
        of_class = getattr(self.processor, "images_kwargs", None)
        if of_class is None:  # transformers before 5.23
            of_class = getattr(self.processor.valid_processor_kwargs, "_defaults", {}).get("images_kwargs", {})
        value = of_class.get(name)
        return getattr(self.processor.image_processor, name, None) if value is None else value


def _decoder(model: Any) -> Any:
    return model.get_decoder()


def _decoder_layers(model: Any) -> list[Any]:
    return list(model.get_decoder().layers)


@dataclass(frozen=True)
class Family:
    """What is particular to a family of models; everything has the default of LLaVA's kin but the first two.

    Image tokens stand in the text, where `config.image_token_id` is; with `cross` they are the keys of the layers
    `looking`, and with `front` they stand in front of the text without being in it.
    """

    model_types: tuple[str, ...]
    views: Callable[[Shown], Sequence[View]]
    cross: bool = False
    front: bool = False
    layers: Callable[[Any], list[Any]] = _decoder_layers  # modules in the order that hidden states pass them
    looking: Callable[[Any], Sequence[int]] | None = None  # numbers of the layers that look; None: all with attention
    holder: Callable[[Any], Any] = _decoder  # whose configuration names the attention function of these layers
    image_states: str | None = None  # with `cross`: the module whose output the keys are made of
    null_token: Callable[[Any], bool] = lambda model: False  # whether one more key stands behind those of each picture
    answer_values: Mapping[str, int] = field(default_factory=dict)  # of tensors along the text, over an answer
    remember: Callable[[Any, Any, list[Any]], Any] | None = None  # pictures encoded once, as the argument image_memory
    same_num_pictures: bool = (
        False  # whether a batch is what its rows are alone only with equally many pictures in each
    )
    special_tokens: bool = True  # whether the tokenizer adds its own to a text without any
    plain_prompt: str | None = None  # of a family without a chat template, with {images} and {question}


def _squeezed(rows: int, columns: int, shown: Shown) -> list[View]:
    return [View((rows, columns), whole(shown.size))]


def _llava(shown: Shown) -> list[View]:
    """The whole picture, or its centre, at one size; with Pixtral's encoder each picture at a size of its own."""
    if "image_sizes" in shown.tensors:
        return _pixtral(shown)
    (height, width), box = canvas_of(shown.processor.image_processor, shown.size)
    patch = shown.config.vision_config.patch_size
    full = shown.config.vision_feature_select_strategy == "full"
    extra = getattr(shown.processor, "num_additional_image_tokens", 0) if full else 0
    return [View((height // patch, width // patch), box, before=extra)]


def _anyres(shown: Shown) -> list[View]:
    """The whole picture squeezed; then a canvas of tiles on which it lies centred, as one grid with row ends.

    Rows or columns of the canvas that are padding throughout are taken out. OneVision thins a grid that is too large,
    and shows several pictures of a row one by one, padded to squares.
    """
    from transformers.image_processing_utils import select_best_resolution

    vision, size = shown.config.vision_config, shown.size
    side, patches = vision.image_size, vision.image_size // vision.patch_size
    base = View((patches, patches), whole(size))
    max_tiles = str(getattr(shown.processor, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if max_tiles and shown.num_in_row > 1:
        square = max(size)
        box = padded(size, size, (square, square), ((square - size[0]) // 2, (square - size[1]) // 2))
        return [View((patches, patches), box, after=1)]
    canvas = select_best_resolution(list(size), shown.config.image_grid_pinpoints)
    inner = _fitted(size, canvas, math.ceil)
    box = padded(size, inner, canvas, ((canvas[0] - inner[0]) // 2, (canvas[1] - inner[1]) // 2))
    rows, columns = (length // side * patches for length in canvas)
    cell = (box[2] - box[0]) / rows, (box[3] - box[1]) / columns
    if size[1] / size[0] > columns / rows:
        cut = (rows - int(round(size[0] * columns / size[1], 7))) // 2, 0
    else:
        cut = 0, (columns - int(round(size[1] * rows / size[0], 7))) // 2
    rows, columns = rows - 2 * cut[0], columns - 2 * cut[1]
    y, x = cut[0] * cell[0], cut[1] * cell[1]
    if max_tiles and (ratio := math.sqrt(rows * columns / (int(max_tiles) * patches**2))) > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return [base, View((rows, columns), (box[0] + y, box[1] + x, box[2] - y, box[3] - x), row_ends=True)]


def _fitted(size: Size, canvas: Size, rounding: Callable[[float], int]) -> Size:
    """The size that a picture has when it is scaled to fit into a canvas."""
    y, x = canvas[0] / size[0], canvas[1] / size[1]
    if x < y:
        return min(rounding(size[0] * x) or 1, canvas[0]), canvas[1]
    return canvas[0], min(rounding(size[1] * y) or 1, canvas[1])


def _idefics(shown: Shown) -> list[View]:
    """Tiles of the picture squeezed to whole tiles, then the whole picture in one tile; a small picture is one tile."""
    side = round(math.sqrt(shown.processor.image_seq_len))
    global_view = View((side, side), whole(shown.size))
    if not shown.setting("do_image_splitting"):
        return [global_view]
    tile, longest = shown.setting("max_image_size")["longest_edge"], shown.setting("size")["longest_edge"]
    long, short = longest, max(1, int(longest / (max(shown.size) / min(shown.size))))
    short += short % 2
    long_tiles = math.ceil(long / tile)
    short_tiles = math.ceil(int(long_tiles * tile / (long / short)) / tile)
    rows, columns = (short_tiles, long_tiles) if shown.size[1] >= shown.size[0] else (long_tiles, short_tiles)
    if rows == columns == 1:
        return [global_view]
    return [*(View((side, side), box) for box in tiles(whole(shown.size), rows, columns)), global_view]


def _qwen(shown: Shown) -> list[View]:
    """The whole picture at a size of its own; patches are merged in squares."""
    _, rows, columns = shown.tensors["image_grid_thw"][shown.number].tolist()
    merge = shown.config.vision_config.spatial_merge_size
    return _squeezed(rows // merge, columns // merge, shown)


def _pixtral(shown: Shown) -> list[View]:
    """The whole picture at a size of its own; rows end with tokens that are no image tokens."""
    height, width = (int(side) for side in shown.tensors["image_sizes"][shown.number])
    patch = shown.config.vision_config.patch_size * getattr(shown.config, "spatial_merge_size", 1)
    return _squeezed(height // patch, width // patch, shown)


def _paligemma(shown: Shown) -> list[View]:
    """The whole picture squeezed to a square."""
    side = round(math.sqrt(shown.processor.image_seq_length))
    return _squeezed(side, side, shown)


def _gemma3(shown: Shown) -> list[View]:
    """The whole picture squeezed to a square; with pan and scan then crops along its longer side."""
    side = round(math.sqrt(shown.config.mm_tokens_per_image))
    views, (height, width) = _squeezed(side, side, shown), shown.size
    ratio, smallest = max(shown.size) / min(shown.size), shown.setting("pan_and_scan_min_crop_size")
    if not shown.setting("do_pan_and_scan") or ratio < shown.setting("pan_and_scan_min_ratio_to_activate"):
        return views
    num = max(2, min(max(shown.size) // smallest, math.floor(ratio + 0.5)))
    num = min(shown.setting("pan_and_scan_max_num_crops"), num)
    length = math.ceil(max(shown.size) / num)
    if min(length, *shown.size) < smallest:
        return views
    starts = range(0, length * num, length)
    if width >= height:
        crops = [(0, start, height, min(start + length, width)) for start in starts]
    else:
        crops = [(start, 0, min(start + length, height), width) for start in starts]
    return views + [View((side, side), crop) for crop in crops]


def _internvl(shown: Shown) -> list[View]:
    """Tiles of the picture squeezed to the canvas of the nearest shape, then the whole picture in one tile."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    side = round(math.sqrt(shown.processor.image_seq_length))
    size, most = shown.setting("size"), shown.setting("max_patches")
    thumbnail = View((side, side), whole(shown.size))
    if not shown.setting("crop_to_patches") or most <= 1:
        return [thumbnail]
    tile = (size["height"], size["width"])
    columns, rows = get_optimal_tiled_canvas(shown.size, tile, shown.setting("min_patches"), most)
    if rows * columns == 1:
        return [thumbnail]
    return [*(View((side, side), box) for box in tiles(whole(shown.size), rows, columns)), thumbnail]


def _lfm2(shown: Shown) -> list[View]:
    """A large picture as tiles of a squeezed canvas and, if so set, whole; a smaller one whole at a size of its own."""
    processor, merge = shown.processor.image_processor, shown.config.downsample_factor
    names = ("encoder_patch_size", "downsample_factor", "min_image_tokens", "max_image_tokens")
    patch, factor, fewest, most = (shown.setting(name) for name in names)
    height, width = shown.size
    new_width, new_height = processor.smart_resize(height, width, factor, fewest, most, patch)
    thumbnail = View(_grid((new_height, new_width), patch, merge), whole(shown.size))
    splits = shown.setting("do_image_splitting") and not shown.setting("min_tiles") == shown.setting("max_tiles") == 1
    tolerance = shown.setting("max_pixels_tolerance")
    if not splits or not processor._is_image_too_large(height, width, most, patch, factor, tolerance):
        return [thumbnail]
    tile = shown.setting("tile_size")
    layout = processor._get_grid_layout(height, width, shown.setting("min_tiles"), shown.setting("max_tiles"), tile)
    columns, rows = layout[:2]
    parts = [View(_grid((tile, tile), patch, merge), box) for box in tiles(whole(shown.size), rows, columns)]
    return parts if len(parts) == 1 or not shown.setting("use_thumbnail") else [*parts, thumbnail]


def _grid(canvas: Size, patch: int, merge: int) -> Size:
    return math.ceil(canvas[0] // patch / merge), math.ceil(canvas[1] // patch / merge)


def _mllama(shown: Shown) -> list[View]:
    """Tiles of a canvas on which the picture lies top left, each behind a class token; fillers up to the most tiles."""
    vision = shown.config.vision_config
    patches = vision.image_size // vision.patch_size
    ratio = int(shown.tensors["aspect_ratio_ids"][shown.row, shown.place]) - 1
    rows, columns = vision.supported_aspect_ratios[ratio]
    canvas = (rows * vision.image_size, columns * vision.image_size)
    within = tuple(min(max(side, vision.image_size), most) for side, most in zip(shown.size, canvas, strict=True))
    inner = _fitted(shown.size, (within[0], within[1]), math.floor)
    boxes: list[Any] = list(tiles(padded(shown.size, inner, canvas), rows, columns))
    boxes += [None] * (vision.max_num_tiles - len(boxes))
    return [View((patches, patches), box, before=1) for box in boxes]


def _ours(shown: Shown) -> list[View]:
    """The whole picture squeezed to a square; the grid is that of the backbone."""
    memory = shown.tensors.get("image_memory")
    rows, columns = memory.grid if memory is not None else _grid_of_ours(shown.model, shown.tensors["pixel_values"])
    return _squeezed(rows, columns, shown)


def _grid_of_ours(model: Any, pixel_values: Any) -> Size:
    """The grid that a backbone makes, from one blank picture of this size."""
    import torch

    with torch.inference_mode():
        blank = torch.zeros_like(pixel_values[:1], device=model.device)
        return tuple(model.encode_images(blank).grid)


def _remember(model: Any, processor: Any, pictures: list[Any]) -> Any:
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return model.encode_images(pixels.to(model.device, model.dtype))


def _remember_in_front(model: Any, processor: Any, pictures: list[Any]) -> Any:
    return model.prefill_images(_remember(model, processor, pictures))


def _layers_of_ours(model: Any) -> list[Any]:
    """The decoder's layers with the cross-attention layers where they come between."""
    decoder = iter(model.get_decoder().layers)
    between = dict(zip(model.config.cross_attention_layers, model.cross_attention, strict=True))
    total = len(model.get_decoder().layers) + len(between)
    return [between[place] if place in between else next(decoder) for place in range(total)]


FAMILIES: tuple[Family, ...] = (
    Family(("llava",), _llava),
    Family(("llava_next", "llava_onevision"), _anyres),
    Family(("idefics3", "smolvlm"), _idefics),
    Family(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _qwen),
    Family(
        ("paligemma",), _paligemma, answer_values={"token_type_ids": 1}, plain_prompt="{images}answer en {question}"
    ),
    Family(("gemma3",), _gemma3),
    Family(("internvl",), _internvl),
    Family(("mistral3",), _pixtral),
    Family(("lfm2_vl",), _lfm2),
    Family(
        ("mllama",),
        _mllama,
        cross=True,
        same_num_pictures=True,  # transformers lets text of a row with fewer look at the fillers
        looking=lambda model: model.config.text_config.cross_attention_layers,
        image_states="model.multi_modal_projector",
    ),
    Family(
        ("agevlm",),
        _ours,
        cross=True,
        layers=_layers_of_ours,
        looking=lambda model: model.config.cross_attention_layers,
        holder=lambda model: model,
        image_states="projector",
        null_token=lambda model: bool(model.config.null_token),
        remember=_remember,
        special_tokens=False,
    ),
    Family(
        ("agevlm_concat",),
        _ours,
        front=True,
        remember=_remember_in_front,
        same_num_pictures=True,  # the text of each row begins behind the front of the row with the most
        special_tokens=False,
    ),
)


def family_of(model: Any) -> Family | None:
    """The facts about a model's family, or None where it is not in the table."""
    return next((family for family in FAMILIES if model.config.model_type in family.model_types), None)


def known_types() -> Iterator[str]:
    """The model types in the table."""
    for family in FAMILIES:
        yield from family.model_types
