"""Where recipes lie: a file of the user's, or one of `recipes/`, which a wheel carries inside the package."""

from __future__ import annotations

import difflib
from pathlib import Path


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name (the file's without .yaml), in alphabetical order."""
    package = Path(__file__).parents[1]
    for directory in (package / "recipes", package.parents[1] / "recipes"):  # a wheel, a checkout
        if directory.is_dir():
            return {path.stem: path for path in sorted(directory.glob("*.yaml"))}
    return {}


def described(path: Path) -> str:
    """What a recipe is for: the comment in its first line; "" where there is none."""
    with path.open(encoding="utf-8") as lines:
        first = lines.readline()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def resolve_recipe(name: str | Path) -> Path:
    """Give the file that a recipe's name means: a file that exists, or the name of a recipe in the package.

    Raises ValueError where it is neither, with the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{path} is a directory: a recipe is a YAML file, such as {path}/recipe.yaml")
    known = packaged_recipes()
    if str(name) in known:
        return known[str(name)]
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no recipe {str(name)!r}: expected a YAML file, or one of {', '.join(known)}.{hint}")
