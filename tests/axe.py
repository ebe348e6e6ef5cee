"""axe-core, which finds what keeps people from using a page: https://github.com/dequelabs/axe-core."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tools.browser import Browser


def axe() -> Path | None:
    """The file of axe-core: at the environment variable AXE_CORE, or where `npm install axe-core` puts it."""
    places = (Path(os.environ.get("AXE_CORE") or "node_modules/axe-core"), Path("node_modules/axe-core"))
    return next((place / "axe.min.js" for place in places if (place / "axe.min.js").is_file()), None)


def violations(tab: Browser, source: str) -> list[str]:
    tab.evaluate(source)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = tab.evaluate(
        f"axe.run({{ runOnly: {json.dumps(tags)} }}).then(result => result.violations.map(each =>"
        " `${each.impact}: ${each.id}: ${each.nodes.map(node => node.target.join(' ')).join(', ')}`))"
    )
    assert isinstance(found, list)
    return found
