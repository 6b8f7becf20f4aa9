"""The recipe of a comparison: what all arms share, and what each changes of it.

`common` is the content of a training recipe. An arm's `set` changes it key by key, as `--set` of `agevlm train` does;
so arms differ in nothing that the recipe does not show. A comparison may extend another one (sweeps and ablations do):
it takes over the other's content, and its own keys come on top.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from agevlm.comparison.claims import Claim, check_claims
from agevlm.comparison.readings import ADVERSARIAL
from agevlm.documents import Strict, read_yaml
from agevlm.training.foundation import FoundationSpec
from agevlm.training.recipe import (
    Recipe,
    Seed,
    StageRecipe,
    apply_changes,
    apply_overrides,
    explain,
    is_comparison,
    parse_recipe,
)


class ArmRecipe(Strict):
    """One arm: its name in tables, and key path → value over the common recipe, and over another arm's changes."""

    title: str
    """Its name in tables."""
    like: str | None = None
    """The arm whose changes come first."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Key path → value over the common recipe."""
    num_seeds: int | None = Field(None, ge=1)
    """Null: as many as the comparison, which is the most."""


class FoundationsRecipe(Strict):
    """The foundations that runs start from: seed `s` of a comparison starts from number `s % num`.

    Number `k` is made by `spec` with the seed `k`. Its models are copied from the package or from `ready`/`k` where
    they are there, and else trained, once, before the runs. `ready` is relative to the recipe's file; it is how the
    models are had and not what they are, so it is no part of the recipe as written out.
    """

    num: int = Field(3, ge=1, le=10_000)
    """How many."""
    ready: Path | None = Field(None, exclude=True)
    """A directory of models that are there, as `READY/K/`, relative to the recipe's file; they are copied."""
    spec: FoundationSpec = FoundationSpec()
    """What they are trained by."""


class EqualTimeRecipe(Strict):
    """Once more at equal time: every arm for as many steps as fit into the time that `reference` takes for its own.

    Times of steps are those of `costs` at `num_tokens` image tokens, which should be those of the recipe's pictures. An
    arm whose time is within `tolerance` of the reference's is at equal time already.
    """

    reference: str
    """The arm whose time is that of all."""
    num_tokens: int = Field(144, ge=1)
    """Image tokens at which times are taken; one of `costs`."""
    num_seeds: int = Field(3, ge=1)
    """Seeds that are trained once more."""
    tolerance: float = Field(0.05, ge=0)
    """An arm whose time is this near to the reference's is at equal time already."""


class PageRecipe(Strict):
    """What the page of a comparison says and shows that no figure decides."""

    title: str = ""
    """Empty: the comparison's name."""
    about: str = ""
    """What the arms are, or in what they differ."""
    claims: str = ""
    """How the claims came about."""
    baseline: str | None = None
    """The arm over whose error those of all others are set."""
    focus: tuple[str, ...] = ()
    """The arms whose differences to all others are told figure by figure."""
    paired: tuple[str, ...] = (ADVERSARIAL,)
    """Of groups: the figures whose difference to the group's first arm has a column of its own."""
    plot: Literal["groups", "steps"] | None = None
    """Of groups: adversarial accuracy, or its error over the steps."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that it names."""
        return (*([self.baseline] if self.baseline else []), *self.focus)


class ComparisonRecipe(Strict):
    """A whole comparison. With `foundations` null all runs start from the models that `common` names."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Letters, digits, `.`, `-` and `_`. Names the file of figures."""
    num_seeds: int = Field(5, ge=1, le=10_000)
    """Seeds of each arm."""
    first_seed: Seed = 0
    """The first of them."""
    foundations: FoundationsRecipe | None = None
    """Models of the embedded world that runs start from. Null: the models that `common` names."""
    common: dict[str, Any]
    """The content of a training recipe, shared by all arms."""
    arms: dict[str, ArmRecipe] = Field(min_length=1)
    """Name → arm."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Title → arms that are compared, the first with each other; only these are trained. Empty: all with each other."""
    chosen: tuple[str, ...] = ()
    """Arms of groups that were settled on: marked in tables."""
    equal_time: EqualTimeRecipe | None = None
    """Every arm once more at equal time. Null: not."""
    tests: dict[str, Path] = Field(default_factory=dict)
    """Name → dataset that every run is measured on besides; each has figures of its own, under `domains`. Pictures from
    outside of its directory are taken where `evaluation.allow_outside` is true."""
    analyse: bool = True
    """Measure each run along its training too, and similarity."""
    costs: tuple[int, ...] = ()
    """Numbers of image tokens at which the arms' costs are measured."""
    cost_repetitions: int = Field(8, ge=1, le=10_000)
    """Turns of each arm in that."""
    note: str = ""
    """What a reader of the figures must know first."""
    claims: tuple[Claim, ...] = ()
    """What is said of the arms, and judged by the figures."""
    page: PageRecipe = PageRecipe()
    """What the page says and shows that no figure decides."""

    @model_validator(mode="after")
    def _arms_are_recipes(self) -> ComparisonRecipe:
        for name in self.tests:
            if not name.isidentifier():
                raise ValueError(f"the test {name!r} needs a name of letters, digits and _")
        for arm, settings in self.arms.items():
            if not arm.isidentifier():
                raise ValueError(f"the arm {arm!r} needs a name of letters, digits and _")
            if settings.like is not None and list(self.arms).index(arm) <= self._position(settings.like, f"arm {arm}"):
                raise ValueError(f"the arm {arm!r} is like {settings.like!r}, which must come before it")
        for title, members in self.groups.items():
            for arm in members:
                self._position(arm, f"group {title!r}")
        for arm in self.chosen:
            self._position(arm, "chosen")
        for arm in self.page.arms:
            self._position(arm, "page")
        check_claims(self.claims, self.trained)
        if self.equal_time is not None:
            self._position(self.equal_time.reference, "equal_time")
            if self.equal_time.num_tokens not in self.costs:
                raise ValueError(f"equal_time needs costs at its num_tokens, {self.equal_time.num_tokens}")
        for arm in self.trained:
            self.recipe_of(arm, 0)
        return self

    def _position(self, arm: str, place: str) -> int:
        if arm not in self.arms:
            raise ValueError(f"{place} names the arm {arm!r}; there are {', '.join(self.arms)}")
        return list(self.arms).index(arm)

    @property
    def trained(self) -> tuple[str, ...]:
        """The arms that are trained: those of the groups, all where there are none."""
        named = {arm for members in self.groups.values() for arm in members}
        return tuple(arm for arm in self.arms if arm in named or not self.groups)

    def choose_arms(self, names: Sequence[str]) -> list[str]:
        """The trained arms of these names, all where there are none. ValueError for other names."""
        unknown = sorted(set(names) - set(self.trained))
        if unknown:
            raise ValueError(f"no arm {unknown[0]!r} in the comparison: there are {', '.join(self.trained)}")
        return [arm for arm in self.trained if arm in names or not names]

    @property
    def seeds(self) -> range:
        """The seeds of the comparison."""
        return range(self.first_seed, self.first_seed + self.num_seeds)

    def seeds_of(self, arm: str) -> range:
        """The seeds that an arm is trained with."""
        return self.seeds[: self.arms[arm].num_seeds]

    def foundation_of(self, seed: int) -> int | None:
        """The number of the foundation that a seed starts from; None where none is trained."""
        return seed % self.foundations.num if self.foundations else None

    @property
    def groups_of_seeds(self) -> dict[int, int]:
        """Seed → the number of the foundation that it starts from; where none is trained all share one."""
        return {seed: self.foundation_of(seed) or 0 for seed in self.seeds}

    @property
    def words(self) -> dict[str, Any]:
        """What is said about the figures and not computed from them, as the file of figures holds it."""
        said = self.model_dump(mode="json", include={"name", "note", "claims", "page"}, exclude_defaults=True)
        return {**said, "titles": {arm: settings.title for arm, settings in self.arms.items()}}

    def describe(self, arm: str) -> dict[str, Any]:
        """What an arm is, for people: how it reads images, and what its stages guide, train and take."""
        recipe = self.recipe_of(arm, 0)
        guided = {stage.name: stage.guidance for stage in recipe.stages if stage.guidance and stage.guidance.weight}
        return {
            "architecture": recipe.model.architecture,
            "pool_size": recipe.model.pool_size,
            "null_token": recipe.model.architecture != "concat" and recipe.model.null_token,
            "guided": {name: settings.weight for name, settings in guided.items()},
            "answers_guided": any(settings.answer_position for settings in guided.values()),
            "language_model": [stage.name for stage in recipe.stages if "language_model" in stage.trainable],
            "learning_rates": [stage.learning_rate for stage in recipe.stages],
            "steady": [stage.name for stage in recipe.stages if stage.lr_scheduler == "constant_with_warmup"],
            "steps": sum(stage.steps for stage in recipe.stages),
        }

    def changes_of(self, arm: str) -> dict[str, Any]:
        """Key path → value of an arm, those of the arms that it is like first."""
        settings = self.arms[arm]
        return {**(self.changes_of(settings.like) if settings.like else {}), **settings.set}

    def recipe_of(self, arm: str, seed: int, foundation: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
        """The training recipe of one run: its world, weights, order and test world are all of its seed.

        ValueErrors name the arm and the key that is wrong.
        """
        content = apply_overrides(apply_changes(self.common, self.changes_of(arm)), overrides)
        content |= {"name": arm, "seed": seed}
        if foundation is not None:
            models = {
                "language_model": str(foundation / "tiny-llama"),
                "vision_model": str(foundation / "tiny-convnext"),
            }
            content["model"] = {**content.get("model", {}), **models}
        if isinstance(asked := content.get("evaluation") or {}, dict):  # else it is told below what it should be
            content["evaluation"] = {**asked, "seed": seed}
        return parse_recipe(content, f"arm {arm}")


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with the steps of every stage multiplied, to at least one."""

    def stage_of(stage: StageRecipe) -> StageRecipe:
        return stage.model_copy(update={"steps": max(1, round(stage.steps * factor))})

    return recipe.model_copy(update={"stages": tuple(map(stage_of, recipe.stages))})


def load_comparison(path: Path, overrides: Sequence[str] = (), *, quick: bool = False) -> ComparisonRecipe:
    """Read a comparison's file and apply `key.path=value` overrides; every wrong key is a line of a ValueError.

    `quick` applies the file's own `quick` changes before them; a file without is a ValueError.
    """
    content = _read(path)
    smaller = _mapping(content.pop("quick", None), path, "quick")
    if quick:
        if not smaller:
            raise ValueError(f"{path} has no smaller size: --quick needs the key quick, key path → value")
        content = apply_changes(content, smaller)
    content = apply_overrides(content, overrides)
    if isinstance(foundations := content.get("foundations"), dict) and isinstance(foundations.get("ready"), str):
        foundations["ready"] = path.parent / foundations["ready"]
    try:
        return ComparisonRecipe.model_validate(content)
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {line}" for line in explain(error, ComparisonRecipe))) from error


def _read(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a file, on top of what it extends: `set` changes that key by key, `arms` come beside its own."""
    if path.resolve() in extending:
        raise ValueError(f"{path} extends itself")
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no recipe at", str(path))
    content = read_yaml(path)
    if not is_comparison(content):
        raise ValueError(f"{path} is no comparison: a comparison is a mapping with the keys name, common and arms")
    if "extends" not in content:
        return content
    extended = content.pop("extends")
    if not isinstance(extended, str) or Path(extended).name != extended or "\0" in extended:
        raise ValueError(f"{path}: extends: got {extended!r:.120}, expected the name of a file beside it")
    base = _read(path.with_name(extended), (*extending, path.resolve()))
    for key in ("quick", "note", "equal_time", "costs", "claims", "page"):  # of that comparison alone
        base.pop(key, None)
    base = apply_changes(base, _mapping(content.pop("set", None), path, "set"))
    arms = {**_mapping(base.get("arms"), path, "arms"), **_mapping(content.get("arms"), path, "arms")}
    return {**base, **content, "arms": arms}


def _mapping(value: Any, path: Path, key: str) -> dict[str, Any]:
    """What a file has at a key whose values have names; null is none. Another kind of thing is a ValueError."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{path}: {key}: got {value!r:.120}, expected a mapping from names")
    return value
