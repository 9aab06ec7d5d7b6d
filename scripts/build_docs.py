"""Build the documentation as a site, with an API reference from the docstrings and the notebook, executed.

    python scripts/build_docs.py                 # into build/site; any warning of Sphinx is an error: a broken link too
    python scripts/build_docs.py --no-notebook   # leaves the notebook as it is, which takes half the time

The pages link each other as files of this repository, across `docs`, `studies` and others. So the pages and whatever
they link are copied into one folder, each under its own path, and Sphinx makes the site of that folder.
Needs `pip install '.[docs]'`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
PAGES = ("*.md", "docs/**/*.md", "docs/**/*.ipynb", "studies/**/*.md", "configs/*.md")
SECTIONS = {  # the navigation: what of a folder is not named comes after what is
    "Start": ["docs/index", "docs/howto/install", "docs/notebooks/*", "docs/howto/train"],
    "How to": ["docs/howto/evaluate", "docs/howto/generate", "docs/howto/*"],
    "Concepts": ["docs/concepts/quantisation", "docs/concepts/*"],
    "Reference": ["docs/reference", "docs/glossary", "configs/README", "CHANGELOG"],
    "Results": ["docs/results/*", "studies/README", "studies/*/README"],
    "Development": ["CONTRIBUTING"],
}
_LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)|src=\"([^\"#]+)\"")
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Build the site, and end with the exit code of Sphinx."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-notebook", action="store_true", help="do not execute the notebook")
    options = parser.parse_args()
    folder = BUILD / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    stage(ROOT, folder)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", ROOT / "docs"]
    variables = {"QUESTLM_NOTEBOOK": "off"} if options.no_notebook else {}
    sys.exit(subprocess.run([*command, folder, BUILD / "site"], check=False, env=os.environ | variables).returncode)


def stage(root: Path, folder: Path) -> None:
    """Copy the pages of `root` and what they link into `folder`, each under its own path, and add the navigation."""
    pages = sorted({path for pattern in PAGES for path in root.glob(pattern)})
    linked = {target for page in pages for target in links(page) if target.is_relative_to(root)}
    for path in (*pages, *sorted(linked)):
        place = folder / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)

    with (folder / "README.md").open("a", encoding="utf-8") as start:
        start.writelines(toctree(title, entries) for title, entries in SECTIONS.items())


def toctree(title: str, entries: list[str]) -> str:
    """A section of the navigation, in MyST."""
    listed = "\n".join(entries)
    return f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {title}\n\n{listed}\n```\n"


def links(page: Path) -> Iterator[Path]:
    """Files that a page links or shows; Sphinx says which of them are missing."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in _LINK.finditer(prose):
        name = match[1] or match[2]
        target = (page.parent / name).resolve()
        if not re.match(r"[a-z]+:", name) and target.is_file():
            yield target


if __name__ == "__main__":
    main()
