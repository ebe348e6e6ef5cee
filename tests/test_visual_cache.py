"""Visual tokens kept between calls: the same scores, no decoding and no vision pass, and never another video's."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.clips import moving_square, write_video
from tests.fixtures import vision_tower
from vidembed import Sampling, VideoFrames, VideoReranker, VideoSegment, VisualTokenCache
from vidembed.backbone.architectures import find_parts
from vidembed.inputs import BYTES, normalized
from vidembed.visual_cache import visual_key

TEXTS = ["a red square", "b"]


def count_vision(reranker: VideoReranker) -> list[int]:
    parts = find_parts(reranker[0].model)  # type: ignore[arg-type]
    calls: list[int] = []
    vision_tower(parts).register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("shared", [True, False])
def test_same_scores_without_decoding_or_vision(
    each_reranker: VideoReranker,
    clips: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared: bool,
) -> None:
    each_reranker.shared_prefix = shared
    pairs = [(text, video) for text in TEXTS for video in (clips[0], VideoSegment(clips[1], 0.2, 1.5), clips[2])]
    plain = each_reranker.predict(pairs)
    each_reranker.visual_cache = VisualTokenCache(tmp_path)
    first = each_reranker.predict(pairs)
    calls = count_vision(each_reranker)
    each_reranker.visual_cache = VisualTokenCache(tmp_path)  # another process: from disk
    monkeypatch.setattr("vidembed.pipeline.load_input", None)  # nothing may be decoded
    again = each_reranker.predict(pairs)
    from_memory = each_reranker.predict([("something else", clips[0])])
    assert calls == []
    assert np.abs(first - plain).max() <= 1e-6
    assert np.abs(again - plain).max() <= 1e-6
    assert from_memory.shape == (1,)
    assert each_reranker.visual_cache.stats.hits == 4


def test_another_file_grid_segment_or_model_is_another_entry(
    reranker: VideoReranker, clips: list[Path], tmp_path: Path, tiny_mllm: Callable[[str], Path]
) -> None:
    cache = VisualTokenCache()
    reranker.visual_cache = cache
    path = tmp_path / "a.mp4"
    shutil.copy(clips[0], path)
    before = reranker.answers([("a", path)]).yes_no
    reranker.predict(("a", VideoSegment(path, 0.0, 0.5)))
    reranker.predict(("a", path), prompt="Be strict.")
    reranker.sampling = Sampling(fps=5)
    reranker.predict(("a", path))
    reranker.sampling = Sampling()
    other = VideoReranker(tiny_mllm("qwen2_vl"), device="cpu", visual_cache=cache)
    other.predict(("a", path))
    assert (cache.stats.hits, cache.stats.misses) == (0, 5)
    write_video(path, moving_square(20, seed=9))  # the file is replaced
    after = reranker.answers([("a", path)]).yes_no
    assert np.abs(after - before).max() > 0.01
    assert (cache.stats.hits, cache.stats.misses) == (0, 6)


def test_what_is_no_file_is_not_kept(reranker: VideoReranker, clips: list[Path]) -> None:
    cache = VisualTokenCache()
    reranker.visual_cache = cache
    reranker.predict([("a", clips[0].read_bytes()), ("a", VideoFrames(moving_square(8), fps=4.0))])
    assert (cache.nbytes, cache.stats.hits, cache.stats.misses) == (0, 0, 0)
    with pytest.raises(Exception, match=r"gone\.mp4"):
        reranker.predict(("a", "gone.mp4"))
    assert visual_key("https://example.org/a.mp4", Sampling(), {}) is None


def test_bounds(tmp_path: Path) -> None:
    kilobyte = {"visual.tokens": torch.zeros(256)}
    cache = VisualTokenCache(tmp_path, ram_bytes=2048, disk_bytes=3 * 1200)
    for number, name in enumerate("abcd"):
        cache.put(name, kilobyte)
        os.utime(tmp_path / f"{name}.safetensors", ns=(number, number))
    cache.put("e", kilobyte)
    assert cache.nbytes <= 2048
    kept = sorted(file.stem for file in tmp_path.glob("*.safetensors"))
    assert "e" in kept
    assert "a" not in kept
    assert cache.get("a") is None
    assert cache.get("e") is not None
    cache.clear()
    assert (cache.nbytes, list(tmp_path.iterdir())) == (0, [])
    assert VisualTokenCache(ram_bytes=0).get("x") is None
    for bad in ({"ram_bytes": -1}, {"disk_bytes": -1}):
        with pytest.raises(ValueError, match="0 or more"):
            VisualTokenCache(**bad)


def test_a_damaged_file_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "k.safetensors").write_bytes(b"no tensors")
    cache = VisualTokenCache(tmp_path)
    assert cache.get("k") is None
    assert "written again" in caplog.text
    assert not (tmp_path / "k.safetensors").exists()
    cache.put("k", {"x": torch.ones(3)})
    assert torch.equal(VisualTokenCache(tmp_path).get("k")["x"], torch.ones(3))  # type: ignore[index]


def test_a_disk_that_takes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vidembed.visual_cache.save_file", full)
    cache = VisualTokenCache(tmp_path)
    cache.put("k", {"x": torch.ones(3)})
    assert "not written to the disk" in caplog.text
    assert cache.get("k") is not None
    assert list(tmp_path.iterdir()) == []


def test_goes_to_a_process_pool(tmp_path: Path) -> None:
    cache = VisualTokenCache(tmp_path)
    cache.put("k", {"x": torch.ones(3)})
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.folder == tmp_path
    assert copy.nbytes == 0
    assert copy.get("k") is not None


def test_bytes_and_floats_make_the_same_entries(
    each_reranker: VideoReranker, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
        each_reranker.visual_cache = VisualTokenCache(folder)
        each_reranker.predict([("a", clips[0]), ("b", VideoSegment(clips[1], 0.2, 1.5))])
        return {file.stem: load_file(file) for file in folder.glob("*.safetensors")}

    seen: list[bool] = []

    def spy(features: dict[str, torch.Tensor], video_processor: object) -> dict[str, torch.Tensor]:
        seen.append(BYTES in features)
        return normalized(features, video_processor)

    monkeypatch.setattr("vidembed.cross_encoder.normalized", spy)
    of_bytes = entries(tmp_path / "bytes")
    assert any(seen)
    seen.clear()
    monkeypatch.setattr("vidembed.proof.takes_bytes", lambda *_: False)
    of_floats = entries(tmp_path / "floats")
    assert not any(seen)
    assert len(of_bytes) == 2
    assert of_bytes.keys() == of_floats.keys()
    for key, tensors in of_bytes.items():
        assert tensors.keys() == of_floats[key].keys()
        assert all(torch.equal(tensor, of_floats[key][name]) for name, tensor in tensors.items())
    each_reranker.visual_cache = VisualTokenCache(tmp_path / "bytes")  # made of bytes, read by who makes floats
    each_reranker.predict([("c", clips[0])])
    assert each_reranker.visual_cache.stats.hits == 1
