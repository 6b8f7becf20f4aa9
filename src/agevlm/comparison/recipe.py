"""The recipe of a comparison: what all arms share, and what each changes of it.

`common` is the content of a training recipe. An arm's `set` changes it key by key, as `--set` of `agevlm train` does;
so arms differ in nothing that the recipe does not show.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agevlm.training.foundation import FoundationSpec
from agevlm.training.recipe import Recipe, apply_overrides, parse_recipe


class Strict(BaseModel):
    """Settings that refuse keys they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ArmRecipe(Strict):
    """One arm: its name in tables, and key path → value over the common recipe."""

    title: str
    set: dict[str, Any] = {}
    num_seeds: int | None = Field(None, ge=1)  # None: as many as the comparison


class FoundationsRecipe(Strict):
    """The foundations that runs start from: seed `s` of a comparison starts from number `s % num`.

    Number `k` is trained by `spec` with the seed `k`, once, before the runs.
    """

    num: int = Field(3, ge=1)
    spec: FoundationSpec = FoundationSpec()


class ComparisonRecipe(Strict):
    """A whole comparison. With `foundations` null all runs start from the models that `common` names."""

    name: str = Field(pattern=r"^[\w.-]+$")
    num_seeds: int = Field(5, ge=1)
    foundations: FoundationsRecipe | None = None
    common: dict[str, Any]
    arms: dict[str, ArmRecipe] = Field(min_length=1)

    @model_validator(mode="after")
    def _arms_are_recipes(self) -> ComparisonRecipe:
        for arm in self.arms:
            if not arm.isidentifier():
                raise ValueError(f"the arm {arm!r} needs a name of letters, digits and _")
            self.recipe_of(arm, 0)
        return self

    def choose_arms(self, names: Sequence[str]) -> list[str]:
        """The arms of these names, all where there are none. ValueError for a name that is no arm."""
        unknown = sorted(set(names) - self.arms.keys())
        if unknown:
            raise ValueError(f"no arm {unknown[0]!r} in the comparison: there are {', '.join(self.arms)}")
        return [arm for arm in self.arms if arm in names or not names]

    def seeds_of(self, arm: str) -> range:
        """The seeds that an arm is trained with."""
        return range(self.arms[arm].num_seeds or self.num_seeds)

    def recipe_of(self, arm: str, seed: int, foundation: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
        """The training recipe of one run: its world, weights, order and test world are all of its seed.

        ValueErrors name the arm and the key that is wrong.
        """
        changes = [f"{key}={json.dumps(value)}" for key, value in self.arms[arm].set.items()]
        content = apply_overrides(self.common, [*changes, *overrides])
        content |= {"name": f"{self.name}-{arm}", "seed": seed}
        if foundation is not None:
            models = {
                "language_model": str(foundation / "tiny-llama"),
                "vision_model": str(foundation / "tiny-convnext"),
            }
            content["model"] = {**content.get("model", {}), **models}
        content["evaluation"] = {**(content.get("evaluation") or {}), "seed": seed}
        return parse_recipe(content, f"arm {arm}")


def load_comparison(path: Path, overrides: Sequence[str] = ()) -> ComparisonRecipe:
    """Read a comparison's file and apply `key.path=value` overrides; every wrong key is a line of a ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or "arms" not in content:
        raise ValueError(f"{path} is no comparison: a comparison is a mapping with the keys name, common and arms")
    try:
        return ComparisonRecipe.model_validate(apply_overrides(content, overrides))
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, p['loc'])) or 'recipe'}: {_message(p)}" for p in error.errors()]
        raise ValueError("\n".join(lines)) from error


def _message(problem: Any) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")
