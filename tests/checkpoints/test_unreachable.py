"""Names that are none of ours and no directory: they are looked for on the hub."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from agevlm.checkpoints import load_vlm


def test_a_hub_that_cannot_be_reached_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("we could not connect")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ValueError, match=r"we could not connect.*see that the hub can be reached and has a model of"):
        load_vlm("nobody/nothing")
