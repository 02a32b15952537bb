"""A hook of MkDocs: the site holds its files at their paths in the repository, so that links are right in both.

Pages link to each other and to files outside docs/ by relative paths, as every viewer of the repository expects. Here
the pages of docs/ get their paths from the root of the repository, and the files that pages link to are added to them.
The addresses on the site do not contain docs/. The notebook is a page as well.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parents[1]
ADDRESSES = {"README.md": "readme/index.html"}  # MkDocs would make it the home page
LINK = re.compile(r"\]\(([^)\s#:]+)")  # to a file, not to another site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs with the files of docs/ and of the theme."""

    def at(path: str, address: str | None) -> File:
        return File(path, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=address)

    site = {}
    for file in files:
        own = file.src_dir == config.docs_dir
        path = f"docs/{file.src_uri}" if own else file.src_uri
        site[path] = at(path, file.dest_uri) if own else file
    for notebook in (ROOT / "docs").glob("*.ipynb"):
        page = File.generated(config, f"docs/{notebook.stem}.md", content=as_markdown(notebook))
        page.dest_uri = f"{notebook.stem}/index.html"
        site[page.src_uri] = page
    pages = [file for file in site.values() if file.is_documentation_page()]
    for page in pages:  # which grows
        for link in LINK.findall(page.content_string):
            path = os.path.normpath(Path(page.src_uri).parent / link)
            if path not in site and not path.startswith("..") and (ROOT / path).is_file():
                site[path] = at(path, ADDRESSES.get(path))
                if site[path].is_documentation_page():
                    pages.append(site[path])
    return Files(site.values())


def as_markdown(notebook: Path) -> str:
    """The cells of a notebook, which is stored without outputs."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
    return "\n\n".join(parts)
