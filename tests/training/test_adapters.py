"""Adapters of a stage: DoRA as LoRA, folded into the decoder's weights, and kept in files that peft reads."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from tiny_runs import STAGES, make_recipe, run

from agevlm.checkpoints import load_model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # what peft asks transformers
@pytest.mark.parametrize("dora", [False, True])
def test_kept_adapters_on_the_decoder_before_are_the_decoder_after(
    dora: bool, foundation: Path, tmp_path: Path
) -> None:
    lora = {"rank": 2, "dora": dora, "keep": True}
    stage = {"name": "lora", **STAGES["instruct"], "trainable": ["projector"], "lora": lora, "learning_rate": 0.05}
    run(make_recipe(foundation, "align", stage), tmp_path)
    before, after = (load_model(tmp_path / name)[0].language_model for name in ("1-align", "2-lora"))
    ids = torch.arange(12)[None]
    plain, wanted = before(ids).logits, after(ids).logits
    assert (plain - wanted).abs().max() > 1e-3
    adapted = peft.PeftModel.from_pretrained(before, tmp_path / "2-lora" / "adapters").eval()
    torch.testing.assert_close(adapted(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert adapted.peft_config["default"].use_dora is dora
