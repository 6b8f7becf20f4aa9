"""The picture of docs/results/quickstart.md: the same questions without guidance and with it, chosen by rule.

    python benchmarks/seeds.py recipes/quickstart.yaml --seeds 0 --out runs/guided
    python benchmarks/seeds.py recipes/quickstart.yaml --seeds 0 --out runs/unguided \
        --set stages.ground.guidance=null --set stages.instruct.guidance=null
    python benchmarks/guidance_picture.py runs/unguided/quickstart-0 runs/guided/quickstart-0

The rule: of all adversarial questions, half about things that are there and half about things that are not, evenly
spread over the test pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agevlm.comparison.attention import write_attention


def main() -> None:
    """Parse, draw, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unguided", type=Path, help="a finished run without guidance")
    parser.add_argument("guided", type=Path, help="a finished run of the same seed with it")
    parser.add_argument("--out", type=Path, default=Path("docs/images/guidance.png"))
    asked = parser.parse_args()
    runs = {"unguided": asked.unguided, "guided": asked.guided}
    titles = {"unguided": "without guidance", "guided": "with guidance"}
    if not write_attention(runs, titles, asked.out, across=True, disputed=False):
        sys.exit("the two runs were asked no adversarial question: there is nothing to show")
    print(asked.out)


if __name__ == "__main__":
    main()
