"""Readers: what each kind looks like, and what is said about files that are wrong."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pytest

from vidembed.captions import KINDS
from vidembed.errors import AnnotationError
from vidembed.training import TextPair, read_pairs, sample_pairs


def jsonl(path: Path, rows) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def numbered(n: int) -> list[dict[str, str]]:
    return [{"dense": f"long {i}", "summary": f"short {i}"} for i in range(n)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_every_kind_from_both_formats(tmp_path: Path, kind, suffix):
    dense, summary = KINDS[kind]
    rows = [
        {"ID": "1", summary: 'a "quoted" word,\nand a line', dense: " long é "},
        {"ID": "2", summary: "b", dense: "c"},
    ]
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        jsonl(path, rows)
    wanted = [TextPair("long é", 'a "quoted" word,\nand a line'), TextPair("c", "b")]
    assert list(read_pairs(path)) == wanted
    assert list(read_pairs(path, kind=kind)) == wanted


def test_the_published_columns():
    assert KINDS["videoufo"] == ("Detailed Caption", "Brief Caption")
    assert KINDS["nli"] == ("anchor", "positive")


def test_a_byte_order_mark_and_empty_lines_do_not_matter(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"dense": "a", "summary": "b"}\n\n{"dense": "c", "summary": "d"}\n')
    assert len(list(read_pairs(path))) == 2
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfdense,summary\na,b\n")
    assert list(read_pairs(path)) == [TextPair("a", "b")]


class TestBadFiles:
    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"dense": "a", "summary": ""}, r"'summary' is empty"),
            ({"dense": "   ", "summary": "b"}, r"'dense' is empty"),
            ({"dense": None, "summary": "b"}, r"'dense' is empty"),
            ({"dense": "", "summary": ""}, r"both sides are empty"),
            ({"dense": "a"}, r"no column 'summary'"),
            ({"dense": 3, "summary": "b"}, r"'dense' is int"),
            ("[1]", r"expected an object, got list"),
            ("{", r"not JSON"),
            ('{"dense": "a", "summary": "b"', r"not JSON"),
        ],
    )
    def test_rows(self, tmp_path: Path, row, message, caplog):
        path = jsonl(tmp_path / "p.jsonl", [*numbered(2), row, *numbered(1)])
        with pytest.raises(AnnotationError, match=rf"p\.jsonl, line 3: .*{message}"):
            list(read_pairs(path))
        with caplog.at_level(logging.WARNING):
            assert len(list(read_pairs(path, on_error="skip"))) == 3
        assert "skipped 1 of 4" in caplog.text

    def test_csv_rows_are_named_by_their_line_in_the_file(self, tmp_path: Path):
        path = tmp_path / "p.csv"
        path.write_text('dense,summary\n"two\nlines",b\nc,\n', encoding="utf-8")
        with pytest.raises(AnnotationError, match=r"p\.csv, line 4: 'summary' is empty"):
            list(read_pairs(path))
        path.write_text("dense,summary\na,b,c\n", encoding="utf-8")
        with pytest.raises(AnnotationError, match=r"p\.csv, line 2: 3 cells under a header of 2"):
            list(read_pairs(path))
        path.write_text("dense,summary\na\n", encoding="utf-8")
        with pytest.raises(AnnotationError, match=r"p\.csv, line 2: 1 cells under a header of 2"):
            list(read_pairs(path))
        path.write_text('dense,summary\na,b\nc,"d\n', encoding="utf-8")
        with pytest.raises(AnnotationError, match=r"p\.csv, line 3: not CSV \(unexpected end of data"):
            list(read_pairs(path))

    def test_other_encodings(self, tmp_path: Path):
        for name, content in (("p.csv", b"dense,summary\n\xff\xfe,b\n"), ("p.jsonl", b'{"dense": "\xff"}\n')):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(AnnotationError, match=rf"{name}, line \d+: .*UTF-8"):
                list(read_pairs(tmp_path / name))

    def test_wrong_columns(self, tmp_path: Path):
        path = jsonl(tmp_path / "p.jsonl", [{"caption": "a", "text": "b"}])
        with pytest.raises(
            AnnotationError, match=r"p\.jsonl, line 1: columns \['caption', 'text'\].*'Detailed Caption'.*videoufo"
        ):
            list(read_pairs(path))
        with pytest.raises(AnnotationError, match="Check the kind of the file"):
            list(read_pairs(jsonl(path, numbered(1)), kind="nli"))

    @pytest.mark.parametrize("content", ["", "\n\n"])
    def test_no_rows(self, tmp_path: Path, content):
        for name, text in (("p.jsonl", content), ("p.csv", "dense,summary\n" + content)):
            (tmp_path / name).write_text(text)
            with pytest.raises(AnnotationError, match="no pairs found"):
                list(read_pairs(tmp_path / name))

    def test_misuse(self, tmp_path: Path):
        with pytest.raises(AnnotationError, match=r"\.csv or \.jsonl, not from \.parquet"):
            list(read_pairs(tmp_path / "p.parquet"))
        with pytest.raises(ValueError, match="kind='x'"):
            list(read_pairs(tmp_path / "p.jsonl", kind="x"))
        with pytest.raises(ValueError, match="on_error='x'"):
            list(read_pairs(tmp_path / "p.jsonl", on_error="x"))
        with pytest.raises(FileNotFoundError):
            list(read_pairs(tmp_path / "p.jsonl"))


class TestSampling:
    def test_the_seed_decides(self, tmp_path: Path):
        path = jsonl(tmp_path / "p.jsonl", numbered(200))
        rows = list(read_pairs(path))
        sample = sample_pairs(path, 20, seed=1)
        assert sample == sample_pairs(path, 20, seed=1)
        assert sample != sample_pairs(path, 20, seed=2)
        assert len(set(sample)) == 20
        assert sample == sorted(sample, key=rows.index)  # in the order of the file

    def test_every_row_is_as_likely(self, tmp_path: Path):
        path = jsonl(tmp_path / "p.jsonl", numbered(10))
        counts = dict.fromkeys(read_pairs(path), 0)
        for seed in range(300):
            for pair in sample_pairs(path, 3, seed=seed):
                counts[pair] += 1
        assert min(counts.values()) > 60  # 90 expected, standard deviation 8
        assert max(counts.values()) < 120

    def test_fewer_rows_than_asked_for(self, tmp_path: Path, caplog):
        path = jsonl(tmp_path / "p.jsonl", numbered(5))
        with caplog.at_level(logging.WARNING):
            assert len(sample_pairs(path)) == 5
        assert "fewer than the 60000" in caplog.text
        assert len(sample_pairs(path, None)) == 5

    def test_a_bad_row_outside_the_sample_is_still_found(self, tmp_path: Path):
        path = jsonl(tmp_path / "p.jsonl", [*numbered(50), {"dense": "a", "summary": ""}])
        with pytest.raises(AnnotationError, match="line 51:"):
            sample_pairs(path, 1)

    def test_n_must_be_positive(self, tmp_path: Path):
        with pytest.raises(ValueError, match="n=0"):
            sample_pairs(tmp_path / "p.jsonl", 0)
