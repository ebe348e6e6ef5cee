"""Fields of dataclasses, for API pages: the comment behind a field is its description."""

from __future__ import annotations

import ast
import tokenize
from io import StringIO
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Takes ``name: type  # what it is`` for the docstring of ``name``, where the attribute has none."""

    def on_attribute_instance(
        self,
        *,
        node: ast.AST | griffe.ObjectNode,
        attr: griffe.Attribute,
        **kwargs: Any,  # noqa: ARG002 - of the interface
    ) -> None:
        """Read the comment at the end of the attribute's line."""
        if attr.docstring is None and isinstance(node, ast.AnnAssign) and (comment := _comment(attr)):
            attr.docstring = griffe.Docstring(comment, lineno=attr.lineno, parent=attr)


def _comment(attribute: griffe.Attribute) -> str | None:
    try:
        tokens = list(tokenize.generate_tokens(StringIO(attribute.source.strip()).readline))
    except tokenize.TokenError:
        return None
    comments = [token.string.removeprefix("#").strip() for token in tokens if token.type == tokenize.COMMENT]
    text = " ".join(comments).split("noqa")[0].rstrip(" -:#")
    return f"{text[0].upper()}{text[1:]}." if text else None
