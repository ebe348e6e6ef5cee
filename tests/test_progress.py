from __future__ import annotations

import re

import pytest

from vidembed.progress import progress_bar


def test_shows_speed_with_its_unit_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("Indexing", "files", total=4, shown=True) as bar:
        bar.update(3)
        bar.set_postfix_str("2 clips/s")
        running = str(bar)
        bar.update()
    assert re.fullmatch(
        r"Indexing:  75%\|.{20}\| 3/4 files, [\d,.e+]+ files/s, \d\d:\d\d left, 2 clips/s", running.rstrip()
    )
    assert re.search(r"Indexing: 100%\|.{20}\| 4/4 files, [\d,.e+]+ files/s, took \d\d:\d\d, 2 clips/s", str(bar))
    assert "Indexing" in capsys.readouterr().err


def test_counts_where_the_number_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("Describing", "videos", shown=True) as bar:
        assert str(bar).rstrip() == "Describing: 0 videos"
        bar.update(2)
        assert re.fullmatch(r"Describing: 2 videos, [\d,.e+]+ videos/s", str(bar).rstrip())
    assert "%" not in capsys.readouterr().err


def test_what_was_done_before_does_not_count_for_the_speed() -> None:
    with progress_bar("Aligning", "steps", total=10, done=9, shown=True) as bar:
        assert re.fullmatch(r"Aligning:  90%\|.{20}\| 9/10 steps", str(bar).rstrip())


def test_is_silent_where_it_is_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar("Writing clips", "clips", each=[1, 2], shown=False)) == [1, 2]
    assert list(progress_bar("Fitting", "temperatures", each=[1, 2], shown=True, delay_s=60)) == [1, 2]
    assert "Fitting" not in capsys.readouterr().err
