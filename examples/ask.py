"""Ask a model about a picture, and see where it looks at each object word.

python examples/ask.py
python examples/ask.py tiny picture.png "is there a fish?"
"""

from __future__ import annotations

import sys

from PIL import Image

from agevlm.analysis.attention import look
from agevlm.analysis.figures import look_figure, save_figure
from agevlm.checkpoints import load_model
from agevlm.data.images import open_image
from agevlm.data.scenes import WorldSpec, draw_scene


def main(model: str = "tiny", picture: str = "", question: str = "is there a boat?", out: str = "look.png") -> str:
    """Print the answer, draw the attention to `out`, and give the answer. Without a picture a scene is drawn."""
    image = open_image(picture) if picture else Image.fromarray(draw_scene(WorldSpec(), seed=1, index=0).image)
    network, processor = load_model(model)
    seen = look(network, processor, image, question)
    print(seen.answer)
    for word in seen.words:
        print(f"{word.word}: {word.mass:.0%} of its attention on the picture, a map of {word.map.shape} cells")
    print(save_figure(look_figure(seen, image), out))
    return seen.answer


if __name__ == "__main__":
    main(*sys.argv[1:])
