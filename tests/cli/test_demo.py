from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import vidembed
from vidembed.encoder import load_encoder
from vidembed.index import VideoIndex, search
from vidembed.shapes import sample_clips, write_clips


def test_the_bundled_model_finds_clips_by_their_captions(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 12, seed=5)
    report = json.loads(vidembed("index", tmp_path / "clips", "--to", tmp_path / "ix", "--json").stdout)
    assert (report["model"], report["indexed"]) == ("vidembed/shapes", 12)
    index, encoder = VideoIndex.open(tmp_path / "ix"), load_encoder("vidembed/shapes")
    first = [search(index, encoder, record.caption, k=1)[0].uri == path.as_uri() for path, record in clips]
    assert sum(first) >= 8  # by chance: 1


def test_demo_with_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a run says what is true, and the searches that it suggests find a right clip first."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    out = tmp_path / "the demo"
    result = vidembed("demo", "--out", out, "--clips", "8", "--open")
    assert result.exit_code == 0
    assert "8 indexed" in result.stdout
    assert result.stderr.count("Note: vidembed/shapes") == 1
    assert f"Wrote {out / 'index.html'}" in result.stderr
    assert opened == [(out / "index.html").as_uri()]
    page = html.unescape((out / "index.html").read_text(encoding="utf-8"))

    records = {f"{one.name}.mp4": one for one in sample_clips(8, "test", 0)}
    named = ("shape", "colour", "direction", "event")
    for part in page.split('<section class="query">')[1:]:
        query = re.search("<h3>(.*?)</h3>", part)
        assert query is not None
        wanted = next(one.attributes for one in records.values() if one.summary == query[1])
        for name, mark in re.findall(r'class="name"[^>]*>(.*?)</a>.*?class="mark (\w+)"', part, re.DOTALL):
            found = records[name].attributes
            assert (mark == "right") == all(found[key] == wanted[key] for key in named)
    # what the page says of the short captions is what the terminal says
    short = page[page.index("<h3>Short captions</h3>") :]
    first = re.findall(r'score-value">(.*?)<', short)[:3]
    for name, value in zip(("video vectors", "head", "fused"), first, strict=True):
        assert re.search(rf"short caption, {name}\s*│ {value}", result.stdout)
    assert page.count('<figure class="chart">') == 2
    chart = page[page.index('<th scope="col">Layer</th>') :]
    at_layer = re.findall(r'<tr><th scope="row">6</th><td>.*?</td><td>(.*?)</td>', chart)
    assert at_layer == first[:1]  # the vectors of the index are those of this layer

    suggested = re.findall("<code>(vidembed search .*?)</code>", page)
    assert suggested[0] in result.stdout
    assert len(suggested) == 3
    words = shlex.split(suggested[-1])[1:]
    hits = json.loads(vidembed(*words, "--json").stdout)
    right = {name for name, one in records.items() if one.summary == words[1]}
    assert Path(hits[0]["uri"]).name in right
