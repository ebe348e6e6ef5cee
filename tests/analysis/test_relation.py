"""Merging pairs, and the two halves: no video and no text in both, whatever is shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vidembed.analysis import split_halves
from vidembed.analysis.measure import relation_of
from vidembed.captions import CaptionedVideo


def pair(video: str, text: str, label: bool | None = None) -> CaptionedVideo:
    return CaptionedVideo(Path(video), text, label)


class TestMerging:
    def test_several_texts_and_shared_texts(self) -> None:
        pairs = [pair("a", "x"), pair("a", "y"), pair("b", "x"), pair("c", "z"), pair("a", "x")]
        relation = relation_of(pairs)
        assert [video.name for video in relation.videos] == ["a", "b", "c"]
        assert relation.texts == ("x", "y", "z")
        assert relation.positives.tolist() == [[True, True, False], [True, False, False], [False, False, True]]

    def test_one_file_by_several_names(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_bytes(b"")
        (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
        names = [tmp_path / "a.mp4", tmp_path / "link.mp4", tmp_path / "." / ".." / tmp_path.name / "a.mp4"]
        relation = relation_of(CaptionedVideo(name, str(index)) for index, name in enumerate(names))
        assert relation.videos == (names[0],)
        assert relation.positives.tolist() == [[True], [True], [True]]

    def test_a_false_text_is_no_pair(self) -> None:
        relation = relation_of([pair("a", "x", True), pair("a", "y", False), pair("b", "x", False)])
        assert (len(relation.videos), relation.texts) == (1, ("x",))
        with pytest.raises(ValueError, match="no text matches"):
            relation_of([pair("a", "x", False)])
        with pytest.raises(ValueError, match="no text matches"):
            relation_of([])

    def test_without(self) -> None:
        relation = relation_of([pair("a", "x"), pair("b", "x"), pair("b", "y"), pair("c", "z"), pair("d", "u")])
        rest, videos, texts = relation.without([1], [2])  # video b and text z
        assert [video.name for video in rest.videos] == ["a", "d"]
        assert rest.texts == ("x", "u")  # y had no other video, c no other text
        assert (videos.tolist(), texts.tolist()) == ([0, 3], [0, 3])
        assert rest.positives.tolist() == [[True, False], [False, True]]


@st.composite
def relations(draw: st.DrawFn) -> np.ndarray:
    texts, videos = draw(st.integers(1, 12)), draw(st.integers(1, 10))
    cells = draw(st.lists(st.integers(0, 3), min_size=texts * videos, max_size=texts * videos))
    mask = np.array(cells).reshape(texts, videos) == 0
    mask[np.arange(texts), draw(st.lists(st.integers(0, videos - 1), min_size=texts, max_size=texts))] = True
    return mask[:, mask.any(axis=0)]


class TestHalves:
    @given(relations(), st.integers(0, 20))
    def test_nothing_is_in_both(self, mask: np.ndarray, seed: int) -> None:
        try:
            first, second = split_halves(mask, seed=seed)
        except ValueError:
            assume(False)
        assert not set(first.videos.tolist()) & set(second.videos.tolist())
        assert not set(first.texts.tolist()) & set(second.texts.tolist())
        assert len(first.texts) + len(second.texts) == len(mask)  # no text is lost
        for half in (first, second):
            assert np.array_equal(half.positives, mask[np.ix_(half.texts, half.videos)])
            assert half.positives.any(axis=0).all()
            assert half.positives.any(axis=1).all()

    def test_one_text_a_video(self) -> None:
        first, second = split_halves(np.eye(11, dtype=bool), seed=0)
        assert (first.videos.size, second.videos.size) == (5, 6)
        assert sorted([*first.texts, *second.texts]) == list(range(11))

    def test_videos_that_share_a_text_stay_together(self) -> None:
        """Twelve videos, two and two with one text: no two are torn apart."""
        mask = np.repeat(np.eye(6, dtype=bool), 2, axis=1)  # (6, 12)
        for seed in range(20):
            first, second = split_halves(mask, seed=seed)
            assert (first.videos.size, second.videos.size) == (6, 6)
            assert not (first.videos[::2] % 2).any()

    def test_a_text_of_both_sides_goes_where_most_of_its_videos_are(self) -> None:
        mask = np.vstack([np.eye(8, dtype=bool), np.ones(8, dtype=bool)])  # text 8 is true of all
        first, second = split_halves(mask, seed=0)
        assert 8 not in first.texts
        assert second.positives[list(second.texts).index(8)].all()  # restricted to the half's own videos

    def test_a_video_without_a_text_of_its_half_is_left_out(self) -> None:
        mask = np.zeros((8, 9), dtype=bool)
        mask[np.arange(8), np.arange(8)] = True
        mask[7, 8] = True  # video 8 has no text but that of video 7
        sizes = {tuple(half.videos.size for half in split_halves(mask, seed=seed)) for seed in range(30)}
        assert sizes == {(4, 5), (3, 5)}  # as the cut goes between the two or not

    def test_same_seed_same_halves(self) -> None:
        mask = np.eye(40, dtype=bool)
        assert np.array_equal(split_halves(mask, seed=1)[0].videos, split_halves(mask, seed=1)[0].videos)
        assert not np.array_equal(split_halves(mask, seed=1)[0].videos, split_halves(mask, seed=2)[0].videos)

    @pytest.mark.parametrize("mask", [np.eye(3, dtype=bool), np.ones((1, 9), dtype=bool), np.ones((9, 1), dtype=bool)])
    def test_too_few(self, mask: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"pairs: .* are too few"):
            split_halves(mask, seed=0)
