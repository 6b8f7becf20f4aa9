"""What `import agevlm` does: names and Auto classes, and nothing of the other rooms."""

from __future__ import annotations

import pytest
from launching import run_code

import agevlm


def test_public_names_load() -> None:
    for name in agevlm.__all__:
        assert getattr(agevlm, name) is not None
    assert set(agevlm.__all__) <= set(dir(agevlm))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        agevlm.Nothing  # noqa: B018


def test_import_registers_and_stays_in_its_room() -> None:
    code = (
        "import sys, agevlm\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor\n"
        "config = AutoConfig.for_model('agevlm')\n"
        "assert AutoModel._model_mapping[type(config)].__name__ == 'AgeVlmModel'\n"
        "name = AutoModelForImageTextToText._model_mapping[type(config)].__name__\n"
        "assert name == 'AgeVlmForConditionalGeneration', name\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('agevlm.')}\n"
        "assert rooms == {'modeling'}, rooms\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    run_code(code)


def test_import_registers_in_the_package_of_anothers_command() -> None:
    run_code(
        "import sys\n"
        "sys.argv, sys.orig_argv = ['-m'], [sys.executable, '-m', 'another.command']\n"
        "import agevlm\n"
        "from transformers import AutoConfig\n"
        "AutoConfig.for_model('agevlm')\n"
    )
