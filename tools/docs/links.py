"""Links of the documentation that lead out of ``docs``, for the site.

On the code host a page links to any file of the repository by a relative path. The site has the pages of ``docs`` and
those of `PAGES`. A link to any other file becomes an address below ``REPOSITORY_URL`` (environment, for example
``https://host/owner/name/blob/main``) or, where that is not set, the path from ``build/site`` to the file in this
checkout.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""Pages of the site that lie beside ``docs``, by their path in the repository."""
_LINK: Final = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
_OUTSIDE: Final = "repository:"  # a scheme, so that MkDocs leaves the link alone


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside ``docs``."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs passes them by name
    """Point links at pages of the site, and mark those to other files of the repository."""
    name = page.file.src_uri
    source = next((path for path, its_page in PAGES.items() if its_page == name), f"docs/{name}")
    return _LINK.sub(lambda link: f"{link[1]}{site_target(link[2], source, name)}{link[3]}", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs passes them by name
    """Give links to other files of the repository their address."""
    up = "../" * (page.file.src_uri.count("/") + 2)  # from the page's folder below build/site
    address = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    return html.replace(f'"{_OUTSIDE}', f'"{address}/' if address else f'"{up}')


def site_target(target: str, source: str, page: str) -> str:
    """Return where a link leads on the site.

    Args:
        target: The link as written, without its anchor.
        source: Path in the repository of the file that it stands in.
        page: Path of that file's page below ``docs``.
    """
    if "://" in target:
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))  # in the repository
    path = f"docs/{PAGES[path]}" if path in PAGES else path
    if path.startswith("docs/"):
        return posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(page) or ".")
    return f"{_OUTSIDE}{path}" if (ROOT / path).exists() else target
