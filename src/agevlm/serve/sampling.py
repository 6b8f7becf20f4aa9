"""The next token of one row, from its logits: greedy, or drawn with a temperature from the likeliest of them."""

# Shapes: V vocabulary.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; at temperature 0 the likeliest. `num_top` log-probabilities are told, None for none."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    num_top: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is wanted."""
        return self.temperature == 0 and self.num_top is None

    def generator(self, choice: int) -> torch.Generator:
        """The source of chance of one choice: the same for the same seed, another for each choice."""
        import torch

        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed((self.seed * 1_000_003 + choice) % 2**63)
        return generator


GREEDY = Sampling()


@dataclass(frozen=True)
class TokenLogProb:
    """A token that was said, its log-probability under the model, and the likeliest (token, log-probability) there."""

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


def draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token: the likeliest, or one drawn at the temperature among the fewest that together have `top_p`."""
    import torch

    if sampling.temperature == 0:
        return int(logits_V.argmax())
    shares_V = (logits_V.float().cpu() / max(sampling.temperature, 1e-4)).softmax(-1)
    if sampling.top_p < 1:
        ordered_V, order_V = shares_V.sort(descending=True)
        within_V = ordered_V.cumsum(-1) - ordered_V < sampling.top_p  # the first that passes it is still in
        shares_V = torch.zeros_like(shares_V).scatter(0, order_V[within_V], ordered_V[within_V])
    return int(torch.multinomial(shares_V, 1, generator=generator))


def log_prob_of(logits_V: Tensor, token: int, num_top: int) -> TokenLogProb:
    """What the model thought of a token, whatever the temperature it was drawn at."""
    log_probs_V = logits_V.float().log_softmax(-1)
    values, tokens = log_probs_V.topk(min(num_top, len(log_probs_V)))
    # the image placeholder is never said: its log-probability is no number that JSON has
    top = [(int(t), float(v)) for t, v in zip(tokens, values, strict=True) if float(v) > -1e30]
    return TokenLogProb(token, float(log_probs_V[token]), tuple(top))
