"""`generate`: cache, sampling, beams, streamer, maps, and that images are encoded once and never repeated."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_models import DECODERS, VOCABULARY_SIZE, make_model, make_pixels, make_tokenizer
from torch import Tensor
from transformers import TextStreamer

from agevlm import AgeVlmModel

IMAGE = VOCABULARY_SIZE
PIXELS = make_pixels(3)
IDS = torch.tensor(  # two images, none and one; padded on the left
    [[IMAGE, 7, 8, IMAGE, 9, 10], [0, 0, 11, 12, 13, 14], [0, 15, 16, IMAGE, 17, 18]]
)
MASK = (IDS != 0).long()
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "pixel_values": PIXELS, "min_new_tokens": 6, "max_new_tokens": 6}


def greedy_without_cache(model: Any, ids: Tensor, mask: Tensor, pixels: Tensor, num_steps: int) -> Tensor:
    """Greedy decoding spelt out: the whole text through `forward` for each new token."""
    for _ in range(num_steps):
        logits = model(ids, mask, pixel_values=pixels, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_greedy_decoding_equals_the_forward_spelt_out(decoder: str, options: dict[str, Any]) -> None:
    model = make_model(decoder, null_token=True)
    expected = greedy_without_cache(model, IDS, MASK, PIXELS, 6)
    assert torch.equal(model.generate(**INPUTS, **options), expected)
    assert len(set(expected[:, 6:].flatten().tolist())) > 2


def test_a_batch_generates_what_its_members_do() -> None:
    model = make_model()
    together = model.generate(**INPUTS)
    images = [PIXELS[:2], None, PIXELS[2:]]
    for row, pixels in enumerate(images):
        ids = IDS[row][MASK[row] == 1][None]
        alone = model.generate(ids, pixel_values=pixels, min_new_tokens=6, max_new_tokens=6)
        assert torch.equal(together[row, 6:], alone[0, ids.shape[1] :])


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True, "num_beams": 2}]
)
def test_images_are_encoded_once_and_shared_by_beams(options: dict[str, Any]) -> None:
    model = make_model()
    encode = AgeVlmModel.encode_images
    with patch.object(AgeVlmModel, "encode_images", autospec=True, side_effect=encode) as counted:
        torch.manual_seed(0)
        beams = model.generate(**INPUTS, **options)
    assert counted.call_count == 1
    assert counted.call_args.args[1].shape == PIXELS.shape
    torch.manual_seed(0)
    memory = model.encode_images(PIXELS)
    told = {key: value for key, value in INPUTS.items() if key != "pixel_values"}
    assert torch.equal(model.generate(**told, image_memory=memory, **options), beams)


def test_one_beam_search_finds_what_greedy_scores_no_better() -> None:
    model = make_model()
    beams = model.generate(**INPUTS, num_beams=6)
    greedy = model.generate(**INPUTS)

    def score(sequences: Tensor) -> Tensor:
        mask = torch.cat([MASK, torch.ones(3, 6, dtype=torch.long)], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(sequences, mask, pixel_values=PIXELS, position_ids=positions).logits[:, 5:-1].clone()
        logits[..., model.generation_config.eos_token_id] = -torch.inf
        return logits.log_softmax(-1).gather(-1, sequences[:, 6:, None]).sum((1, 2))

    assert (score(beams) >= score(greedy) - 1e-4).all()


def test_sampling_follows_its_seed() -> None:
    model = make_model()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(model.generate(**INPUTS, do_sample=True, num_return_sequences=3))
    assert draws[0].shape == (9, 12)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_streamer_hears_every_word() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    heard: list[str] = []

    class Listener(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            heard.append(text)

    ids = torch.tensor([[IMAGE, 7, 8]])
    output = model.generate(
        ids, pixel_values=PIXELS[:1], max_new_tokens=5, streamer=Listener(tokenizer, skip_prompt=True)
    )
    assert "".join(heard).split() == tokenizer.decode(output[0, 3:]).split()


def test_one_image_with_many_questions() -> None:
    model = make_model()
    memory = model.encode_images(PIXELS[:2])
    ids = torch.tensor([[IMAGE, 7, 8], [IMAGE, 9, 10], [IMAGE, 11, 12], [IMAGE, 13, 14]])
    index = torch.tensor([[0], [0], [1], [1]])
    options = {"min_new_tokens": 4, "max_new_tokens": 4}
    together = model.generate(ids, image_memory=memory, image_index=index, **options)
    for row in range(4):
        alone = model.generate(ids[row : row + 1], pixel_values=PIXELS[row // 2 : row // 2 + 1], **options)
        assert torch.equal(together[row], alone[0])
    assert not torch.equal(together, model.generate(ids, image_memory=memory, image_index=1 - index, **options))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True}])
@pytest.mark.parametrize("null_token", [False, True])
def test_maps_of_prompt_and_answer(options: dict[str, Any], null_token: bool) -> None:
    model = make_model(null_token=null_token)
    torch.manual_seed(0)
    plain = model.generate(**INPUTS, **options)
    torch.manual_seed(0)
    output = model.generate(**INPUTS, **options, return_dict_in_generate=True, output_attention_maps=True)
    assert torch.equal(output.sequences, plain)
    each = len(plain) // 3
    for row, sequence in enumerate(output.sequences):
        prompt = row // each
        if prompt == 1:
            assert output.attention_maps[0][row].abs().sum() == 0
            continue
        kept = torch.cat([MASK[prompt], torch.ones(6, dtype=torch.long)]) == 1
        pixels = PIXELS[:2] if prompt == 0 else PIXELS[2:]
        alone = model(sequence[kept][None], pixel_values=pixels, output_attention_maps=True)
        for layer, maps in enumerate(output.attention_maps):
            expected = alone.attention_maps[layer][0]
            torch.testing.assert_close(maps[row][:, kept][:, :, : len(pixels)], expected, atol=1e-5, rtol=1e-4)
            if null_token:
                null = output.null_attention[layer][row][:, kept]
                torch.testing.assert_close(null, alone.null_attention[layer][0], atol=1e-5, rtol=1e-4)


def test_text_alone_generates_as_the_decoder_does() -> None:
    model = make_model()
    ids = torch.tensor([[7, 8, 9]])
    alone = model.language_model.generate(ids, max_new_tokens=5)
    assert torch.equal(model.generate(ids, max_new_tokens=5), alone)
    told = model.generate(ids, max_new_tokens=5, return_dict_in_generate=True, output_attention_maps=True)
    assert told.attention_maps is None


def test_a_placeholder_that_the_model_says_is_no_image() -> None:
    model = make_model(image_token_id=20)  # inside the decoder's table, so that it can be said
    ids = torch.tensor([[20, 7, 8]])
    options = {"pixel_values": PIXELS[:1], "max_new_tokens": 4, "min_new_tokens": 4}
    said = model.generate(ids, **options, sequence_bias={(20,): 100.0}, return_dict_in_generate=True)
    assert (said.sequences[0, 3:] == 20).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": PIXELS[:2]}, "3 image placeholders, but 2 images"),
        ({"pixel_values": None}, "3 image placeholders, but 0 images"),
        ({"output_attention_maps": True}, "return_dict_in_generate=True"),
        ({"input_ids": None, "attention_mask": None}, "needs a prompt"),
    ],
)
def test_what_generate_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model().generate(**INPUTS | changes)
