"""`.ci/audit`: what it makes of what pip-audit says, and that silence is never taken for "none known"."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("vidembed_ci_audit", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = kept
    return module


def entry(name: str, version: str = "1.0", *ids: str, skipped: str = "") -> dict[str, Any]:
    if skipped:
        return {"name": name, "skip_reason": skipped}
    vulns = [{"id": one, "aliases": [f"alias-{one}"], "fix_versions": ["2.0"], "description": "bad"} for one in ids]
    return {"name": name, "version": version, "vulns": vulns}


CANARY = entry("urllib3", "1.26.4", "PYSEC-2021-108")
MISSING = "Dependency not found on PyPI and could not be audited"


def tool(tmp_path: Path, first: str, then: str = "", code: int = 0) -> Path:
    """A stand-in for pip-audit: what it writes when asked about the canary, and about anything else."""
    (tmp_path / "first").write_text(first)
    (tmp_path / "then").write_text(then)
    script = tmp_path / "pip-audit"
    script.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "asked = pathlib.Path(sys.argv[sys.argv.index('--requirement') + 1]).read_text()\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / 'asked').write_text(asked)\n"
        "canary = asked == 'urllib3==1.26.4\\n'\n"
        "print((folder / ('first' if canary else 'then')).read_text())\n"
        "print('it went wrong', file=sys.stderr)\n"
        f"sys.exit({code})\n"
    )
    script.chmod(0o755)
    return script


def report(*entries: dict[str, Any]) -> str:
    return json.dumps({"dependencies": entries, "fixes": []})


def run(audit: ModuleType, path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = audit.main(["--python", sys.executable, "--tool", str(path)])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (report(entry("urllib3", skipped=MISSING)), report(), "does not name urllib3"),  # a mirror without the list
        (report(entry("urllib3", "1.26.4")), report(), "does not name urllib3"),  # an index without vulnerabilities
        (report(), report(), "does not name urllib3"),
        ("", report(), "it went wrong"),  # no connection
        (report(CANARY), "", "it went wrong"),
        (report(CANARY), report(entry("a", skipped=MISSING)), "answered for none"),
        (report(CANARY), report(), "answered for none"),
    ],
)
def test_what_is_not_looked_up_is_not_passed(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, then: str, said: str
) -> None:
    code, out = run(audit, tool(tmp_path, first, then), capsys)
    assert code == audit.NOT_AUDITED == 3
    assert "NOT AUDITED: " in out
    assert said in out


def test_vulnerable_packages_fail(audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(entry("a"), entry("b", "1.2", "PYSEC-1", "PYSEC-2"), entry("c", skipped=MISSING))
    code, out = run(audit, tool(tmp_path, report(CANARY), found, code=1), capsys)
    assert code == audit.FOUND == 1
    assert "VULNERABLE: b 1.2: PYSEC-1 = alias-PYSEC-1, fixed in 2.0" in out
    assert f"not looked up: c: {MISSING}" in out
    assert "2 packages looked up: 2 vulnerabilities, and 0 that are exceptions" in out


def test_exceptions_are_said(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "EXCEPTIONS", {"alias-PYSEC-1": "that part is not used"})
    found = report(entry("a"), entry("b", "1.2", "PYSEC-1"))
    code, out = run(audit, tool(tmp_path, report(CANARY), found, code=1), capsys)
    assert code == audit.CLEAN == 0
    assert "exception: b 1.2: PYSEC-1 = alias-PYSEC-1, fixed in 2.0; that part is not used" in out
    assert "0 vulnerabilities, and 1 that are exceptions" in out


def test_every_exception_has_its_reason(audit: ModuleType) -> None:
    assert all(len(reason) > 20 for reason in audit.EXCEPTIONS.values())


def test_the_installed_packages_are_asked_about(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = run(audit, tool(tmp_path, report(CANARY), report(entry("numpy"))), capsys)
    assert code == 0
    pins = dict(line.split("==") for line in (tmp_path / "asked").read_text().splitlines())
    assert {"numpy", "pytest", "av"} <= set(pins)
    assert "vidembed" not in pins
    assert not any("+" in version for version in pins.values())


def test_a_tool_that_is_not_there(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[str]:
        raise OSError("no index")

    monkeypatch.setattr(audit, "install", refuse)
    verdict = audit.audit(sys.executable, None)
    assert verdict.code == audit.NOT_AUDITED
    assert "cannot be installed (no index)" in verdict.lines[0]
