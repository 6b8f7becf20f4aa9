"""Nothing that a user can do nothing about is said: loading, looking, answering, training and resuming stay silent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiny_models import make_picture
from tiny_runs import make_foundation

# What pycocotools does with NumPy arrays is its own matter; Python shows such warnings to nobody by default.
OF_PYCOCOTOOLS = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
STRICT = ["-W", "error::DeprecationWarning", "-W", "error::FutureWarning", "-W", OF_PYCOCOTOOLS]

FROM_PYTHON = """
import sys
import transformers
transformers.utils.logging.disable_progress_bar()
import agevlm
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from agevlm.analysis.attention import look
from agevlm.checkpoints import load_model, resolve_model

picture = Image.open("picture.png")
print(look(*load_model("tiny"), picture, "is there a fish?").answer)
directory = str(resolve_model("tiny"))
model, processor = AutoModelForImageTextToText.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
content = [{"type": "image", "image": picture}, {"type": "text", "text": "is there a fish?"}]
chat = [{"role": "user", "content": content}]
inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
model.generate(**inputs, max_new_tokens=2)
pipe = pipeline("image-text-to-text", model=directory)
print(pipe(text=chat, max_new_tokens=2, return_full_text=False)[0]["generated_text"])
"""

TRAINING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import transformers
transformers.utils.logging.disable_progress_bar()
from tiny_runs import make_recipe, run

checkpointed = {"name": "cross", "trainable": ["cross_attention"], "kinds": {"caption": 1.0}}
checkpointed["gradient_checkpointing"] = True
for resume in (False, True):
    run(make_recipe(Path("foundation"), "align", checkpointed, "ground"), Path("run"), resume=resume)
"""


def heard(code: str, directory: Path, *arguments: str) -> str:
    """What a fresh Python says on standard error while it runs `code`; deprecated calls are errors there."""
    command = [sys.executable, *STRICT, "-c", code, *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_looking_and_the_classes_of_transformers_are_silent(tmp_path: Path) -> None:
    make_picture(size=(96, 96)).save(tmp_path / "picture.png")
    assert heard(FROM_PYTHON, tmp_path) == ""


def test_training_and_resuming_are_silent(tmp_path: Path) -> None:
    make_foundation(tmp_path / "foundation")
    assert heard(TRAINING, tmp_path, str(Path(__file__).parent)) == ""
