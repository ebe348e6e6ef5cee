from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import vidembed
from vidembed.cli.info import length

Loaded = list[dict[str, Any]]


def shown(*arguments: object) -> dict[str, str]:
    """The lines of the page by their names, without the first, which names the index or the file."""
    result = vidembed("info", *arguments)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    return {line[2:13].strip() or line[14:]: line[14:] for line in lines[1:]}


def test_a_page_of_an_index(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    (clips / "bad\x1b[31m.mp4").write_bytes(b"no video")
    began = datetime.now(UTC).replace(microsecond=0)
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake", "--segment", "1", "--overlap", "0.25")
    page = shown(tmp_path / "ix")
    assert page["videos"] == "4 videos, 6 s"
    assert page["segments"].endswith(", 1 s long, overlapping by 0.25 s")
    assert page["model"] == "fake, vectors of 8 numbers"
    assert page["frames"] == "2 per second, at most 8 per segment"
    assert (page["captions"], page["search"]) == ("none", "exact (up to 100,000 segments)")
    assert page["quarantine"] == "1 file"
    assert any("bad\\x1b[31m.mp4: NotAVideo: " in line for line in page)
    facts = json.loads(vidembed("info", tmp_path / "ix", "--json").stdout)
    assert began <= datetime.fromisoformat(facts["updated"]) <= datetime.now(UTC)
    assert page["updated"].startswith(f"{facts['updated'][:10]} {facts['updated'][11:16]} UTC (created ")
    (entry,) = facts["quarantine"]
    assert set(entry) == {"uri", "kind", "message", "since"}
    assert (facts["duration_s"], facts["quarantined"]) == (6.0, 1)


def test_verbose_adds_all_that_json_has(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    short, full = (vidembed("info", tmp_path / "ix", *more).stdout for more in ((), ("--verbose",)))
    assert full.startswith(short)
    for name in ("model_fingerprint", "fingerprint: name", "schema_version", "sampling", "exact_up_to", "quantize"):
        assert name in full
        assert name not in short


def test_a_page_of_a_video(clips: Path) -> None:
    page = shown(clips / "long.mp4")
    assert page["video"].startswith("32 x 32, mpeg4 in mov,mp4")
    assert page["length"] == "3 s, 4 frames per second, about 12 frames"
    assert (page["converted"], page["read from"], page["sound"]) == ("nothing to convert", "stream 0", "none")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (1.5, "1.5 s"), (245.2, "4 min 5 s"), (11_530, "3 h 12 min"), (3600, "1 h 0 min")]
)
def test_lengths_are_written_for_people(seconds: float, text: str) -> None:
    assert length(seconds) == text
