from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import vidembed.shapes
from vidembed.shapes import iterate_clips, sample_clips, write_clip, write_clips, write_videos
from vidembed.shapes.world import split_of
from vidembed.video import Sampling, load_video


def test_clips_are_distinct_held_out_and_do_not_depend_on_how_many():
    records = sample_clips(200, "test", seed=0)
    assert len({record.caption for record in records}) == 200
    assert len({tuple(record.attributes.values()) for record in records}) == 200
    assert len({record.name for record in records}) == 200
    assert {split_of(record.scene) for record in records} == {"test"}
    assert {split_of(record.scene) for record in sample_clips(50, "train")} == {"train"}
    assert sample_clips(5, "test", seed=0) == records[:5]
    assert sample_clips(5, "test", seed=1) != records[:5]
    assert next(iterate_clips("test", 0)) == records[0]


@pytest.mark.parametrize("n", [0, -1, 5001])
def test_number_of_clips_is_checked(n):
    with pytest.raises(ValueError, match="from 1 to 5000"):
        sample_clips(n)


def test_file_round_trip(tmp_path):
    written = write_clips(tmp_path, 3, "test", seed=2)
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [line["caption"] for line in lines] == [record.caption for _, record in written]
    assert [line["file"] for line in lines] == [path.name for path, _ in written]
    assert lines[0]["attributes"] == written[0][1].attributes
    for path, record in written:
        clip = load_video(path, Sampling())
        assert clip.frames.shape == (8, 168, 168, 3)
        assert clip.duration == pytest.approx(4.0)
        assert clip.timestamps.tolist() == pytest.approx([k / 2 for k in range(8)])
        halved = clip.frames.reshape(8, 84, 2, 84, 2, 3).mean((2, 4))
        error = np.abs(halved - record.frames())
        assert error.mean() < 4  # of 255: colours survive compression
        assert np.percentile(error, 99) < 16


def test_files_are_the_same_bytes_each_time(tmp_path):
    record = sample_clips(1)[0]
    one, two = write_clip(record.scene, tmp_path / "a.mp4"), write_clip(record.scene, tmp_path / "b.mp4")
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()


def test_videos_of_several_scenes(tmp_path):
    (first, scenes), (second, others) = write_videos(tmp_path / "videos", 2, 3, seed=2)
    assert [first.name, second.name] == ["video-0.mp4", "video-1.mp4"]
    assert [*scenes, *others] == sample_clips(6, seed=2)
    clip = load_video(second, Sampling())
    assert clip.duration == pytest.approx(12.0)
    for shown, record in zip(np.split(clip.frames, 3), others, strict=True):
        halved = shown.reshape(8, 84, 2, 84, 2, 3).mean((2, 4))
        assert np.abs(halved - record.frames()).mean() < 4


@pytest.mark.parametrize(("n", "scenes"), [(0, 3), (2, 0), (-1, -1)])
def test_numbers_of_videos_and_scenes_are_checked(tmp_path, n, scenes):
    with pytest.raises(ValueError, match="at least 1"):
        write_videos(tmp_path, n, scenes)


@pytest.mark.parametrize(("options", "message"), [({"side": 85}, "even"), ({"side": 0}, "even"), ({"fps": 0}, "fps")])
def test_bad_formats_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_clip(sample_clips(1)[0].scene, tmp_path / "a.mp4", **options)


def test_shapes_imports_nothing_from_above():
    folder = Path(vidembed.shapes.__file__).parent
    imported = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
    above = ("encoder", "reranker", "index", "cli", "analysis", "evaluation", "training")
    assert not {name for name in imported if name and name.startswith(tuple(f"vidembed.{part}" for part in above))}
