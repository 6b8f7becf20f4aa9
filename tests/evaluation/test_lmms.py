"""The plug-in for lmms-eval, beside stand-ins for the three things it takes from there.

Against lmms-eval itself it is held by `benchmarks/lmms_eval_pope.py`.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from launching import run_code
from tiny_models import make_model, make_picture, make_processor

from agevlm.evaluation.official.table import BENCHMARKS
from agevlm.vlms import Vlm

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
OPTIONS = {"max_new_tokens": 4, "until": ["\n\n"], "temperature": 0.0, "do_sample": False}


class Messages:
    """lmms-eval's `ChatMessages`, as far as the plug-in uses it."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.messages = [
            SimpleNamespace(role=m["role"], content=[SimpleNamespace(**part) for part in m["content"]])
            for m in messages
        ]

    def extract_media(self) -> tuple[list[Any], ...]:
        parts = [part for message in self.messages for part in message.content]
        return tuple([part.url for part in parts if part.type == kind] for kind in ("image", "video", "audio"))

    def to_hf_messages(self) -> list[dict[str, Any]]:
        def plain(part: Any) -> dict[str, Any]:
            return {"type": "text", "text": part.text} if part.type == "text" else {"type": part.type}

        return [{"role": m.role, "content": [plain(part) for part in m.content]} for m in self.messages]


@dataclass(frozen=True)
class Manifest:
    """lmms-eval's `ModelManifest`."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Lmms:
    """lmms-eval's base class."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *args: None)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    taken = {"api.model": {"lmms": Lmms}, "protocol": {"ChatMessages": Messages}}
    taken["models.registry_v2"] = {"ModelManifest": Manifest}
    for name in ("", "api", "models", *taken):
        module = ModuleType(f"lmms_eval.{name}".rstrip("."))
        vars(module).update(taken.get(name, {}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "agevlm.evaluation.lmms.model", raising=False)
    yield importlib.import_module("agevlm.evaluation.lmms.model")
    sys.modules.pop("agevlm.evaluation.lmms.model")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_model().save_pretrained(directory)
    make_processor().save_pretrained(directory)
    return directory


def asked(number: int, options: dict[str, Any] = OPTIONS) -> Any:
    return SimpleNamespace(args=("", user, options, number, "task", "test"))


def user(document: dict[str, Any]) -> list[dict[str, Any]]:
    pictures = [{"type": "image", "url": picture} for picture in document["pictures"]]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": document["text"]}]}]


DOCUMENTS = [
    {"pictures": [make_picture(0)], "text": "is there a boat in the picture ?"},
    {"pictures": [make_picture(1), make_picture(2)], "text": "is there a fish ?"},
    {"pictures": [], "text": "what ?"},
    {"pictures": [make_picture(3).convert("RGBA")], "text": "how many fish ?"},
]


def test_the_entry_point_names_the_class_and_loads_nothing(plugin: Any) -> None:
    entry = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, function = entry["agevlm"].split(":")
    manifest = getattr(importlib.import_module(module), function)()
    assert manifest == Manifest("agevlm", chat_class_path="agevlm.evaluation.lmms.model.AgeVlmChat")
    where, name = manifest.chat_class_path.rsplit(".", 1)
    assert getattr(importlib.import_module(where), name) is plugin.AgeVlmChat
    assert plugin.AgeVlmChat.is_simple is False
    loaded = "import sys, agevlm.evaluation.lmms; print('agevlm.vlms' in sys.modules, 'lmms_eval' in sys.modules)"
    assert run_code(loaded).split() == ["False", "False"]


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_answers_are_those_of_the_model_asked_one_by_one(plugin: Any, checkpoint: Path, batch_size: int | str) -> None:
    model = plugin.AgeVlmChat(pretrained=str(checkpoint), device="cpu", batch_size=batch_size)
    model.task_dict = {"task": {"test": DOCUMENTS}}
    vlm = Vlm(make_model(), make_processor())
    expected = []
    for document in DOCUMENTS:
        pictures = [picture.convert("RGB") for picture in document["pictures"]]
        inputs = vlm.encode([vlm.prompt(document["text"], len(pictures))], [pictures])
        expected.append(vlm.answers(inputs, 4)[0].text)
    assert model.generate_until([asked(number) for number in range(4)]) == expected
    assert (model.rank if hasattr(model, "rank") else model._rank) == 0


def test_an_answer_is_as_long_as_in_our_command_where_a_task_does_not_say(
    plugin: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plugin.AgeVlmChat(pretrained=str(checkpoint), device="cpu")
    model.task_dict = {"task": {"test": DOCUMENTS}}
    lengths: list[int] = []

    def answers(inputs: Any, max_new_tokens: int) -> list[Any]:
        lengths.append(max_new_tokens)
        return [SimpleNamespace(text="yes")]

    monkeypatch.setattr(model.vlm, "answers", answers)
    model.generate_until([asked(0, {"until": ["\n\n"]}), asked(2, OPTIONS)])
    assert lengths == [BENCHMARKS["mmstar"].protocol("lmms-eval").max_new_tokens, 4]


def test_an_answer_ends_where_the_task_says(plugin: Any) -> None:
    assert plugin._until("yes\n\nand no", ["\n\n"]) == "yes"
    assert plugin._until("yes and no", "and") == "yes"
    assert plugin._until(" yes ", None) == "yes"


def test_what_it_cannot_do_it_says(plugin: Any, checkpoint: Path) -> None:
    model = plugin.AgeVlmChat(pretrained=str(checkpoint), device="cpu")
    model.task_dict = {"task": {"test": DOCUMENTS}}
    with pytest.raises(ValueError, match="drawn by chance"):
        model.generate_until([asked(0, {**OPTIONS, "do_sample": True, "temperature": 0.7})])
    moving = SimpleNamespace(
        args=(
            "",
            lambda d: [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}],
            OPTIONS,
            0,
            "task",
            "test",
        )
    )
    with pytest.raises(ValueError, match="videos"):
        model.generate_until([moving])
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            ask([])
