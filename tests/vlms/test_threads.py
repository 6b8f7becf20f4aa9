"""Two threads that read the attention of one model at the same time: each gets its own rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from tiny_models import make_model, make_processor
from tiny_served import scene

from agevlm.vlms import Vlm


def test_threads_read_one_model_at_the_same_time() -> None:
    vlm = Vlm(make_model(), make_processor())
    inputs = [vlm.encode([vlm.prompt("is there a fish?")], [[scene(number)]]) for number in range(2)]
    before = vlm.model.config._attn_implementation

    def read(number: int) -> list[torch.Tensor]:
        with torch.inference_mode():
            readings = (vlm.read(inputs[number], positions=[[inputs[number].text_len - 1]]) for _ in range(12))
            return [torch.stack(list(reading.rows.values())) for reading in readings]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(read, range(2)))
    for number in range(2):
        alone = read(number)[0]
        assert all(torch.allclose(rows, alone, atol=1e-5) for rows in together[number])
    assert vlm.model.config._attn_implementation == before
