from __future__ import annotations

import json
import shlex
from pathlib import Path

from tests.cli.conftest import vidembed
from vidembed.cli.demo import Asked, recall_row
from vidembed.encoder import load_encoder
from vidembed.index import Hit, VideoIndex, search
from vidembed.shapes import sample_clips, write_clips


def test_recall_counts_any_right_clip_beside_chance() -> None:
    hits = [Hit(f"file:///{name}", 0, 1, 0.5) for name in "abcde"]
    asked = [Asked("1", {"file:///a"}, hits), Asked("2", {"file:///c", "file:///z"}, hits), Asked("3", set(), hits)]
    # By chance at 1 of 10 clips: (1 + 2 + 0) / 10 / 3; at 5: (1/2 + (1 - C(8,5)/C(10,5)) + 0) / 3.
    assert recall_row("x", asked, 10) == ["x", "33.3%", "66.7%", "10.0%", "42.6%"]


def test_the_bundled_model_finds_clips_by_their_captions(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 12, seed=5)
    report = json.loads(vidembed("index", tmp_path / "clips", "--to", tmp_path / "ix", "--json").stdout)
    assert (report["model"], report["indexed"]) == ("vidembed/shapes", 12)
    index, encoder = VideoIndex.open(tmp_path / "ix"), load_encoder("vidembed/shapes")
    first = [search(index, encoder, record.caption, k=1)[0].uri == path.as_uri() for path, record in clips]
    assert sum(first) >= 8  # by chance: 1


def test_demo_with_the_bundled_model(tmp_path: Path) -> None:
    result = vidembed("demo", "--out", tmp_path / "demo", "--clips", "8")
    assert result.exit_code == 0
    assert "8 indexed" in result.stdout
    assert "a right clip came first" in result.stdout
    assert "short caption, reranked" in result.stdout
    assert result.stderr.count("Note: vidembed/shapes") == 1


def test_what_the_demo_suggests_finds_a_right_clip_first(tmp_path: Path) -> None:
    result = vidembed("demo", "--out", tmp_path / "demo", "--clips", "8")
    suggested = next(line for line in result.stdout.splitlines() if "vidembed search" in line)
    words = shlex.split(suggested)[1:]
    hits = json.loads(vidembed(*words, "--json").stdout)
    right = {one.name for one in sample_clips(8, "test", 0) if one.summary == words[1]}
    assert Path(hits[0]["uri"]).stem in right
    assert hits[0]["probability"] > 0.5
    assert f"{hits[0]['probability']:.1%}" in (tmp_path / "demo" / "hits-8-0.html").read_text()
