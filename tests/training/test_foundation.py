"""The foundation of the embedded world: what cells are called, and models that load where real ones would."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from agevlm.data.masks import decode_mask, mask_to_grid
from agevlm.data.scenes import CATEGORIES, COLOURS, WorldSpec, draw_scene
from agevlm.data.schema import IGNORE_INDEX
from agevlm.training.foundation import (
    BACKGROUND,
    MIDDLE,
    WORDS,
    FoundationSpec,
    WordContrast,
    cell_words,
    draw_pool,
    image_processor,
    middle_cell,
    train_foundation,
)
from agevlm.training.tokenizer import build_tokenizer

GRID = (12, 12)
NAMES = ("zero", "one", "two", "three", "four", "five", "six")
SMALL: dict[str, Any] = {
    "num_scenes": 24,
    "num_workers": 0,
    "vision": {"hidden_sizes": (8, 16), "depths": (1, 1), "steps": 3, "batch_size": 4},
    "language": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "steps": 3,
        "batch_size": 4,
    },
}


def test_every_thing_names_a_cell_and_clear_cells_are_background() -> None:
    for index in range(15):
        annotation = draw_scene(WorldSpec(), 6, index).annotation
        categories, colours, numbers, parts = cell_words(annotation, GRID)
        shares = [mask_to_grid(decode_mask(instance.mask), GRID) for instance in annotation.instances]
        covered = np.sum(shares, axis=0)
        for instance, share in zip(annotation.instances, shares, strict=True):
            most = share == share.max()
            assert CATEGORIES.index(instance.category) in categories[most]
            assert list(COLOURS).index(str(instance.colour)) in colours[most]
            alike = sum(other.category == instance.category for other in annotation.instances)
            assert WORDS["number"].index(NAMES[alike]) in numbers[most]
            assert parts[middle_cell(share)] == MIDDLE
        assert (categories[covered == 0] == BACKGROUND).all()
        assert (colours[covered == 0] == IGNORE_INDEX).all()
        unnamed = (categories == BACKGROUND) | (categories == IGNORE_INDEX)
        assert (unnamed == (colours == IGNORE_INDEX)).all()
        assert (unnamed == (numbers == IGNORE_INDEX)).all()
        assert 1 <= (parts == MIDDLE).sum() <= len(annotation.instances)
        assert (parts[~unnamed] != IGNORE_INDEX).all()


def test_the_middle_of_a_thing_is_the_cell_of_its_centroid() -> None:
    share = np.zeros((5, 6))
    share[1:4, 2:5] = 1  # around (2, 3)
    assert middle_cell(share) == (2, 3)
    share[2, 3] = 0  # a ring has its middle in its hole
    assert middle_cell(share) == (2, 3)
    share[3, :] = 1
    assert middle_cell(share) == (2, 3)


def test_the_last_scenes_of_a_pool_are_crowded() -> None:
    spec = FoundationSpec(num_scenes=40, num_workers=0)
    _, _, annotations = draw_pool(spec)
    plain = [draw_scene(spec.world, spec.seed, index).annotation for index in range(30)]
    assert annotations[:30] == plain == draw_pool(spec, 30)[2]
    repeats = [len(a.instances) - len({i.category for i in a.instances}) for a in annotations]
    assert np.mean(repeats[30:]) > 2 * np.mean(repeats[:30])


def test_contrast_falls_when_cells_say_their_words() -> None:
    torch.manual_seed(0)
    annotations = [draw_scene(WorldSpec(), 6, index).annotation for index in range(4)]
    targets = torch.from_numpy(np.stack([cell_words(annotation, GRID) for annotation in annotations]))
    contrast = WordContrast(16)
    features = torch.randn(4, 16, *GRID, requires_grad=True)
    optimizer = torch.optim.Adam([features, *contrast.parameters()], lr=0.05)
    losses = []
    for _ in range(40):
        loss = contrast.loss(features, targets, picture_weight=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_cells_that_may_say_anything_do_not_put_the_first_word_into_a_picture() -> None:
    targets = torch.full((1, len(WORDS), 2, 2), IGNORE_INDEX)
    targets[0, :, 0, 0] = torch.tensor([3, 1, 0, 0])
    contrast = WordContrast(4)
    features = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    categories = contrast(features)[0]
    said = categories[0, :, :BACKGROUND].amax(dim=0).exp()
    with_, without = (float(contrast.loss(features, targets, weight).detach()) for weight in (1.0, 0.0))
    absent = torch.arange(BACKGROUND) != 3
    expected = -torch.where(absent, (1 - said).log(), said.log()).mean() * 4
    assert with_ - without == pytest.approx(float(expected.detach()), rel=1e-4)


def test_a_pool_is_drawn_the_same_by_any_number_of_workers() -> None:
    alone, helped = (draw_pool(FoundationSpec(num_scenes=9, num_workers=number)) for number in (0, 2))
    assert torch.equal(alone[0], helped[0])
    assert torch.equal(alone[1], helped[1])
    assert alone[2] == helped[2]
    assert alone[0].shape == (9, 3, 96, 96)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    steps: list[tuple[str, int]] = []
    train_foundation(out, FoundationSpec(**SMALL), lambda name, step, total, loss: steps.append((name, step)))
    assert steps == [(name, step) for name in ("tiny-llama", "tiny-convnext") for step in (1, 2, 3)]
    return out


def test_foundations_load_as_any_checkpoint_does(made: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer

    from agevlm.modeling.vision import load_backbone

    language = AutoModelForCausalLM.from_pretrained(made / "tiny-llama")
    tokenizer = AutoTokenizer.from_pretrained(made / "tiny-llama")
    vision = load_backbone(made / "tiny-convnext")
    processor = AutoImageProcessor.from_pretrained(made / "tiny-convnext")
    assert language.config.vocab_size == len(tokenizer)
    assert language.config.eos_token_id == tokenizer.eos_token_id
    pixels = processor(draw_scene(WorldSpec(), 0, 0).image, return_tensors="pt")["pixel_values"]
    assert vision(pixels).feature_maps[-1].shape == (1, 16, 12, 12)
    assert pixels.min() >= -1 and pixels.max() <= 1
    said = language.generate(**tokenizer("<|begin|><|user|> is there a fish?<|assistant|>", return_tensors="pt"))
    assert said.shape[0] == 1


def test_foundations_carry_their_recipe_and_are_made_again_from_it(made: Path, tmp_path: Path) -> None:
    spec = FoundationSpec(**yaml.safe_load((made / "tiny-llama" / "foundation.yaml").read_text()))
    assert spec == FoundationSpec(**SMALL)
    train_foundation(tmp_path, spec)
    for name in ("tiny-llama", "tiny-convnext"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == (made / name / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path)


def test_a_stopped_foundation_keeps_the_model_that_is_there(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "tiny-convnext")
    trained: list[str] = []

    def note(name: str, step: int, total: int, loss: float) -> None:
        trained.append(name)

    train_foundation(tmp_path, FoundationSpec(**SMALL), note)
    assert set(trained) == {"tiny-convnext"}
    weights = Path("tiny-convnext", "model.safetensors")
    assert (tmp_path / weights).read_bytes() == (made / weights).read_bytes()
    trained.clear()
    train_foundation(tmp_path, FoundationSpec(**SMALL), note)
    assert not trained
    train_foundation(tmp_path, FoundationSpec(**SMALL, seed=1), note)  # of another recipe: none of its models
    assert set(trained) == {"tiny-llama", "tiny-convnext"}


def test_foundations_can_be_joined_and_answer(made: Path) -> None:
    from agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor

    processor = AgeVlmProcessor.from_backbones(str(made / "tiny-llama"), str(made / "tiny-convnext"))
    model = AgeVlmForConditionalGeneration.from_backbones(
        made / "tiny-llama", made / "tiny-convnext", image_token_id=processor.image_token_id
    )
    inputs = processor(draw_scene(WorldSpec(), 0, 0).image, "<image> is there a fish?")
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1


def test_a_wrong_setting_of_a_foundation_is_refused() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="step"):
        FoundationSpec(vision={"step": 3})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- tokenizer


def test_the_tokenizer_codes_any_text_and_gives_it_back_in_small_letters() -> None:
    tokenizer = build_tokenizer(["is there a fish in the picture?"] * 3, vocab_size=400)
    for text in ("is there a fish in the picture?", "ein Fisch über 3 Häusern: 魚 🐟", " \n\t x"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids).strip() == text.strip().lower()
    for word in (" fish", " Fish", " FISH"):
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1


def test_the_tokenizer_is_the_same_for_the_same_texts() -> None:
    texts = ["two red fish and an orange boat.", "is the fish left of the boat?"] * 2
    assert build_tokenizer(texts).get_vocab() == build_tokenizer(list(texts)).get_vocab()


def test_the_tokenizer_survives_being_saved(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer(["is there a fish?"] * 2)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "is there a fish?"}, {"role": "assistant", "content": "yes"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|begin|><|user|>is there a fish?<|assistant|>yes<|end|>"
    assert again.apply_chat_template(chat, tokenize=False) == text
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.padding_side, again.pad_token, again.eos_token) == ("left", "<|pad|>", "<|end|>")


def test_the_image_processor_squeezes_without_cutting() -> None:
    processor = image_processor(96)
    left_red = np.zeros((50, 200, 3), dtype=np.uint8)
    left_red[:, :100] = 255
    pixels = processor(left_red, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 96, 96)
    assert pixels[:, :, :46].min() > 0.9 and pixels[:, :, 50:].max() < -0.9
