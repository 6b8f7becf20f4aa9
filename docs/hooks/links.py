"""Links of the pages to files outside docs/ lead somewhere on the site too. A hook of MkDocs.

A page links to `../recipes/quickstart.yaml` as it would on a code host. On the site the file becomes a page of its own
(text), or is copied (anything else). A link to a file that is not there stays as it is, and fails the strict build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(?=[)\s])")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".txt": "text", ".sh": "sh"}
FOLDER = "repository"  # on the site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file of the repository that a page links to, and those that they link to in turn."""
    root = Path(config.config_file_path).parent
    waiting = [(file.src_uri, file.content_string) for file in files if file.src_uri.endswith(".md")]
    while waiting:
        uri, text = waiting.pop()
        for path in outside(uri, text, root):
            target = site_uri(path)
            if target not in files.src_uris:
                file = repository_file(root, path, target, config)
                files.append(file)
                if path.endswith(".md"):
                    waiting.append((target, file.content_string))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at what the site has of them."""
    root = Path(config.config_file_path).parent
    uri = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        path = repository_path(uri, match[2])
        if path is None or not (root / path).is_file():
            return match[0]
        target = path.removeprefix("docs/") if path.startswith("docs/") else site_uri(path)
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(uri) or '.')}{match[3] or ''}"

    return LINK.sub(lead, markdown)


def outside(uri: str, text: str, root: Path) -> set[str]:
    """The files of the repository outside docs/ that a page links to."""
    found = {repository_path(uri, match[2]) for match in LINK.finditer(text)}
    return {path for path in found if path and not path.startswith("docs/") and (root / path).is_file()}


def repository_path(uri: str, link: str) -> str | None:
    """Where a link of a page leads in the repository; None where it leads out of it or to another host."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    inside = uri.startswith(f"{FOLDER}/")
    at = posixpath.dirname(uri.removeprefix(f"{FOLDER}/") if inside else f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(at, link))
    return None if path.startswith("..") else path


def site_uri(path: str) -> str:
    """The page or the copy of a file of the repository."""
    return f"{FOLDER}/{path}.md" if Path(path).suffix in LANGUAGES else f"{FOLDER}/{path}"


def repository_file(root: Path, path: str, target: str, config: MkDocsConfig) -> File:
    language = LANGUAGES.get(Path(path).suffix)
    if language is None and not path.endswith(".md"):
        return File.generated(config, target, abs_src_path=str(root / path))
    text = (root / path).read_text(encoding="utf-8")
    if language is not None:
        text = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n````{language}\n{text}\n````\n"
    return File.generated(config, target, content=text)
