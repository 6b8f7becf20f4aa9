"""A tiny random model and processor of every family, built in memory, offline.

The vision towers have no layers (or give what goes into their only one), so nothing mixes: a token of the decoder
depends on the pixels of its own box and on nothing else. Decoders have grouped keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tiny_models import WORDS, make_model, make_processor, make_text_config, make_vision_config
from transformers.utils import is_torchvision_available

WIDTH, PATCH, TILE = 32, 8, 32
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "patch_size": PATCH}
SPECIAL = {
    "image_token": "<image>",
    "video_token": "<video>",
    "context_image_token": "<image>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "start_image_token": "<boi>",
    "end_image_token": "<eoi>",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
    "fake": "<fake_token_around_image>",
    "global": "<global-img>",
    "utterance": "<end_of_utterance>",
    "thumbnail": "<|img_thumbnail|>",
    "image_start": "<|image_start|>",
    "image_stop": "<|image_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' : ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ IMAGE }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def make_words(**roles: str) -> Any:
    """A tokenizer of whole words with the special tokens of all families; `roles` change which token has a role."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = SPECIAL | roles
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "\n", *WORDS, "answer", "en", "Yes", "No"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=names,
    )


def text_config(tokenizer: Any, kind: str = "llama", **more: Any) -> Any:
    """A tiny decoder's configuration with room for the tokens of `tokenizer`."""
    return transformers.AutoConfig.for_model(kind, **TEXT | {"vocab_size": len(tokenizer) + 8} | more)


def build(config: Any, **options: Any) -> Any:
    """A random model in evaluation mode."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, **options).eval()
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:  # Mllama's gates are 0
            parameter.data.fill_(0.7)
    return model


def template(image: str = "<image>") -> str:
    """A chat template with this placeholder."""
    return TEMPLATE.replace("IMAGE", repr(image))


def with_template(processor: Any, image: str = "<image>") -> Any:
    """The processor with that template."""
    processor.chat_template = template(image)
    return processor


def needs_torchvision(name: str) -> None:
    """Skip where torchvision is not installed."""
    if not is_torchvision_available():
        pytest.skip(f"the processor of {name} needs torchvision")


def pixels_class(name: str) -> Any:
    """An image processor's class: with torchvision the one on torchvision, which users get then, else on Pillow."""
    return getattr(transformers, name if is_torchvision_available() else f"{name}Pil")


def no_videos(processor_class: Any, *args: Any, **kwargs: Any) -> Any:
    """A processor with a stand-in for its video processor, which would need torchvision."""

    class Checked(processor_class):
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)

    Checked.__name__ = processor_class.__name__
    return Checked(*args, video_processor=SimpleNamespace(num_frames=1, fps=1), **kwargs)


def llava(**size: Any) -> tuple[Any, Any]:
    """LLaVA: CLIP's square, the class token dropped."""
    tokenizer = make_words()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(
        text_config=text_config(tokenizer),
        vision_config=transformers.CLIPVisionConfig(**TOWER, num_hidden_layers=1, image_size=64),
        image_token_index=image_id,
        vision_feature_layer=-2,
    )
    pixels = pixels_class("CLIPImageProcessor")(
        **{"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}} | size
    )
    processor = transformers.LlavaProcessor(
        pixels, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return build(config), with_template(processor)


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: the whole picture, then tiles as one grid with row ends."""
    tokenizer = make_words()
    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    config = transformers.LlavaNextConfig(
        text_config=text_config(tokenizer),
        vision_config=transformers.CLIPVisionConfig(**TOWER, num_hidden_layers=1, image_size=TILE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_grid_pinpoints=pinpoints,
    )
    pixels = pixels_class("LlavaNextImageProcessor")(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=pinpoints
    )
    processor = transformers.LlavaNextProcessor(
        pixels, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return build(config), with_template(processor)


def llava_onevision(max_tiles: int = 9) -> tuple[Any, Any]:
    """LLaVA-OneVision: as LLaVA-NeXT, with a tower without a class token and a limit on the grid."""
    tokenizer = make_words()
    pinpoints = [[rows * TILE, columns * TILE] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    config = transformers.LlavaOnevisionConfig(
        text_config=text_config(tokenizer, "qwen2"),
        vision_config=transformers.SiglipVisionConfig(**TOWER, num_hidden_layers=1, image_size=TILE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-2,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=f"anyres_max_{max_tiles}",
    )
    pixels = pixels_class("LlavaOnevisionImageProcessor")(
        size={"height": TILE, "width": TILE}, image_grid_pinpoints=pinpoints
    )
    processor = no_videos(
        transformers.LlavaOnevisionProcessor,
        pixels,
        tokenizer,
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{max_tiles}",
    )
    return build(config), with_template(processor)


def _idefics_like(tokenizer: Any, config_class: Any, make_pixels: Any) -> tuple[Any, Any]:
    config = config_class(
        text_config=text_config(tokenizer),
        vision_config={**TOWER, "num_hidden_layers": 0, "image_size": TILE},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    pixels = make_pixels(size={"longest_edge": 3 * TILE}, max_image_size={"longest_edge": TILE})
    return config, pixels


def idefics3() -> tuple[Any, Any]:
    """Idefics3: tiles and the whole picture, pixel shuffle."""
    tokenizer = make_words()
    config, pixels = _idefics_like(tokenizer, transformers.Idefics3Config, pixels_class("Idefics3ImageProcessor"))
    processor = transformers.Idefics3Processor(pixels, tokenizer, image_seq_len=4)
    return build(config), with_template(processor)


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM: Idefics3's way."""
    from transformers.models.smolvlm import processing_smolvlm

    processing_smolvlm.num2words = processing_smolvlm.num2words or str  # it numbers the frames of videos
    tokenizer = make_words()
    config, pixels = _idefics_like(tokenizer, transformers.SmolVLMConfig, pixels_class("SmolVLMImageProcessor"))
    processor = no_videos(transformers.SmolVLMProcessor, pixels, tokenizer, image_seq_len=4)
    return build(config), with_template(processor)


def _qwen(name: str, patch: int, vision: dict[str, Any], text_kind: str, processor_class: Any) -> tuple[Any, Any]:
    tokenizer = make_words()
    ids = tokenizer.convert_tokens_to_ids
    sections = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = transformers.AutoConfig.for_model(
        name,
        text_config=text_config(tokenizer, text_kind, rope_parameters=sections).to_dict(),
        vision_config={"patch_size": patch, "spatial_merge_size": 2, "depth": 0, "num_heads": 2} | vision,
        image_token_id=ids("<image>"),
        video_token_id=ids("<video>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    pixels = pixels_class("Qwen2VLImageProcessor")(
        patch_size=patch, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    )
    processor = no_videos(processor_class, pixels, tokenizer)
    return build(config), with_template(processor, "<|vision_start|><image><|vision_end|>")


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL: a size of its own for each picture, patches merged two by two, positions in three dimensions."""
    vision = {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    return _qwen("qwen2_vl", PATCH, vision, "qwen2_vl_text", transformers.Qwen2VLProcessor)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL: as Qwen2-VL, with windows in the tower."""
    vision = {"hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 16, "window_size": 32}
    vision |= {"fullatt_block_indexes": []}
    return _qwen("qwen2_5_vl", PATCH, vision, "qwen2_5_vl_text", transformers.Qwen2_5_VLProcessor)


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: as Qwen2-VL, with learned places of patches."""
    vision = {"hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 16, "num_position_embeddings": 16}
    vision |= {"deepstack_visual_indexes": []}
    return _qwen("qwen3_vl", PATCH, vision, "qwen3_vl_text", transformers.Qwen3VLProcessor)


def video_llama_3() -> tuple[Any, Any]:
    """VideoLLaMA 3, a family that is not in the table: it gives the logits of all tokens, whatever is asked for."""
    tokenizer = make_words()
    ids = tokenizer.convert_tokens_to_ids
    config = transformers.VideoLlama3Config(
        text_config=text_config(tokenizer, "qwen2").to_dict(),
        vision_config={**TOWER, "num_hidden_layers": 1},
        image_token_id=ids("<image>"),
        video_token_id=ids("<video>"),
    )
    pixels = pixels_class("VideoLlama3ImageProcessor")(
        patch_size=PATCH, merge_size=1, min_pixels=32 * 32, max_pixels=96 * 96
    )
    processor = no_videos(transformers.VideoLlama3Processor, pixels, tokenizer)
    return build(config), with_template(processor)


def _paligemma(kind: str, **more: Any) -> tuple[Any, Any]:
    tokenizer = make_words()
    tokenizer.add_tokens([f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)])
    config = transformers.PaliGemmaConfig(
        text_config=text_config(tokenizer, kind, **more),
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, num_hidden_layers=0, image_size=64, vision_use_head=False, projection_dim=WIDTH
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=WIDTH,
    )
    pixels = pixels_class("SiglipImageProcessor")(size={"height": 64, "width": 64})
    pixels.image_seq_length = (64 // PATCH) ** 2
    options = {"attn_implementation": "eager"} if kind == "gemma2" else {}  # older sdpa drops the soft-capping
    return build(config, **options), transformers.PaliGemmaProcessor(pixels, tokenizer)


def paligemma() -> tuple[Any, Any]:
    """PaliGemma: a square; the prompt sees itself in both directions."""
    return _paligemma("gemma")


def paligemma2() -> tuple[Any, Any]:
    """PaliGemma 2: Gemma 2's soft-capped logits and sliding windows."""
    return _paligemma("gemma2", sliding_window=16, attn_logit_softcapping=2.0, query_pre_attn_scalar=8)


def gemma3(pan_and_scan: bool = False) -> tuple[Any, Any]:
    """Gemma 3: a square, pooled; the tokens of a picture see each other; sliding windows."""
    tokenizer = make_words()
    ids = tokenizer.convert_tokens_to_ids
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Gemma3Config(
        text_config=text_config(tokenizer, "gemma3_text", sliding_window=16, layer_types=layers),
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, num_hidden_layers=0, image_size=64, vision_use_head=False
        ),
        image_token_index=ids("<image>"),
        boi_token_index=ids("<boi>"),
        eoi_token_index=ids("<eoi>"),
        mm_tokens_per_image=16,
    )
    pixels = pixels_class("Gemma3ImageProcessor")(size={"height": 64, "width": 64})
    processor = transformers.Gemma3Processor(pixels, tokenizer, image_seq_length=16)
    if pan_and_scan:
        scan = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 32, "pan_and_scan_max_num_crops": 4}
        processor.images_kwargs = processor.images_kwargs | scan
    model = build(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # 0 in a new model
    return model, with_template(processor, "<boi>")


def internvl() -> tuple[Any, Any]:
    """InternVL: tiles and the whole picture, pixel shuffle."""
    tokenizer = make_words()
    config = transformers.InternVLConfig(
        text_config=text_config(tokenizer, "qwen2"),
        vision_config=transformers.InternVLVisionConfig(
            **TOWER | {"patch_size": [PATCH, PATCH]}, num_hidden_layers=0, image_size=[TILE, TILE]
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    pixels = pixels_class("GotOcr2ImageProcessor")(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=6
    )
    processor = no_videos(transformers.InternVLProcessor, pixels, tokenizer, image_seq_length=4)
    return build(config), with_template(processor)


def _pixtral_vision() -> Any:
    return transformers.PixtralVisionConfig(**TOWER, num_hidden_layers=1, head_dim=8, image_size=96)


def mistral3() -> tuple[Any, Any]:
    """Mistral 3: a size of its own for each picture, patches merged two by two, rows that end with other tokens."""
    needs_torchvision("Mistral 3 (PixtralProcessor)")
    tokenizer = make_words()
    config = transformers.Mistral3Config(
        text_config=text_config(tokenizer, "mistral", sliding_window=None),
        vision_config=_pixtral_vision(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        spatial_merge_size=2,
        vision_feature_layer=-2,
    )
    pixels = pixels_class("PixtralImageProcessor")(size={"longest_edge": 96}, patch_size={"height": 8, "width": 8})
    processor = transformers.PixtralProcessor(
        pixels, tokenizer, patch_size=PATCH, spatial_merge_size=2, image_token="<image>"
    )
    return build(config), with_template(processor)


def pixtral() -> tuple[Any, Any]:
    """Pixtral: LLaVA's class around a tower that takes pictures of any size."""
    needs_torchvision("Pixtral (PixtralProcessor)")
    tokenizer = make_words()
    config = transformers.LlavaConfig(
        text_config=text_config(tokenizer, "mistral", sliding_window=None),
        vision_config=_pixtral_vision(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )
    pixels = pixels_class("PixtralImageProcessor")(size={"longest_edge": 96}, patch_size={"height": 8, "width": 8})
    processor = transformers.PixtralProcessor(pixels, tokenizer, patch_size=PATCH, image_token="<image>")
    return build(config), with_template(processor)


def mllama() -> tuple[Any, Any]:
    """Llama 3.2 Vision: cross-attention to tiles of a padded canvas."""
    tokenizer = make_words()
    tokenizer.add_tokens(["<|python_tag|>"])
    config = transformers.MllamaConfig(
        text_config={
            **{k: v for k, v in TEXT.items() if k != "head_dim"},
            "vocab_size": tokenizer.convert_tokens_to_ids("<image>"),
            "cross_attention_layers": [1, 3],
            "num_hidden_layers": 5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "attention_heads": 2,
            "num_hidden_layers": 1,
            "num_global_layers": 0,
            "image_size": TILE,
            "patch_size": PATCH,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0],
            "vision_output_dim": WIDTH,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    pixels = pixels_class("MllamaImageProcessor")(size={"height": TILE, "width": TILE}, max_image_tiles=4)
    model = build(config)
    for layer in model.model.vision_model.transformer.layers:  # at least one must be, and it is not to mix
        layer.self_attn.o_proj.weight.data.zero_()
    return model, with_template(transformers.MllamaProcessor(pixels, tokenizer))


def lfm2_vl() -> tuple[Any, Any]:
    """LFM2-VL: a size of its own or tiles; layers of convolution between those of attention."""
    needs_torchvision("LFM2-VL")
    tokenizer = make_words()
    config = transformers.Lfm2VlConfig(
        text_config=text_config(
            tokenizer, "lfm2", layer_types=["conv", "full_attention", "conv", "full_attention"], num_hidden_layers=4
        ),
        vision_config=transformers.Siglip2VisionConfig(
            **TOWER, num_hidden_layers=0, num_patches=16, vision_use_head=False
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        downsample_factor=2,
        projector_hidden_size=16,
    )
    pixels = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=PATCH, tile_size=TILE, min_image_tokens=4, max_image_tokens=12, max_pixels_tolerance=1.0
    )
    return build(config), with_template(transformers.Lfm2VlProcessor(pixels, tokenizer))


def agevlm() -> tuple[Any, Any]:
    """Ours: cross-attention with a null token."""
    return patchwise(make_model(decoder="llama", null_token=True)), make_processor()


def agevlm_concat() -> tuple[Any, Any]:
    """Our concatenation baseline."""
    from agevlm import ConcatVlmConfig, ConcatVlmForConditionalGeneration

    torch.manual_seed(0)
    config = ConcatVlmConfig(text_config=make_text_config(), vision_config=make_vision_config())
    return patchwise(ConcatVlmForConditionalGeneration(config).eval()), make_processor()


def patchwise(model: Any) -> Any:
    """The model with the layers of its ConvNeXt at 0: what is left of them are patches that do not overlap."""
    for name, parameter in model.vision_model.named_parameters():
        if "layer_scale" in name:
            parameter.data.zero_()
    return model


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (
        llava,
        llava_next,
        llava_onevision,
        idefics3,
        smolvlm,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        paligemma,
        paligemma2,
        gemma3,
        internvl,
        mistral3,
        pixtral,
        mllama,
        lfm2_vl,
        agevlm,
        agevlm_concat,
    )
}


@cache
def made(name: str) -> tuple[Any, Any]:
    """The model and processor of a family, made once."""
    return MAKERS[name]()
