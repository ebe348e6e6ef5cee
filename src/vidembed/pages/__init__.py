"""Pages: the templates of those that are files and of the page of `vidembed serve`, and the style that all share."""

from __future__ import annotations

from pathlib import Path

from vidembed.text import printable

_FOLDER = Path(__file__).parent


def render(template: str, **values: object) -> str:
    """Return a page: a template of this folder, filled in. All text is escaped; a name that is missing is an error.

    Args:
        template: Its file name, such as "sheet.html". All extend "base.html", whose content security policy forbids
            scripts and everything from outside; the page of `vidembed serve` has another one from its server.
        **values: What it shows. Its filter `printable` writes what cannot be printed as an escape.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - only pages need it

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["printable"] = printable
    return environment.get_template(template).render(**values)
