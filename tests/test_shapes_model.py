"""The bundled model, by its name, as a user meets it: real files in, right clips out."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import vidembed
from vidembed import VideoEncoder
from vidembed.checkpoint import CheckpointConfig
from vidembed.shapes import CHECKPOINT, ClipRecord, write_clips

CLIPS = 48


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, ClipRecord]]:
    return write_clips(tmp_path_factory.mktemp("shapes"), CLIPS, "test", 7)


def recall_at_1(queries: np.ndarray, gallery: np.ndarray) -> float:
    """Share of queries whose own row is the only best; a tie counts against."""
    scores = queries @ gallery.T  # (N, N)
    return float(((scores >= np.diag(scores)[:, None]).sum(axis=1) == 1).mean())


def test_finds_held_out_clips_by_their_captions(pairs: list[tuple[Path, ClipRecord]]) -> None:
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    videos = encoder.encode_document([path for path, _ in pairs])
    texts = encoder.encode_query([{"text": record.caption} for _, record in pairs])
    assert recall_at_1(texts, videos) >= 0.6  # chance: 0.02
    assert recall_at_1(videos, texts) >= 0.6


def test_an_intermediate_layer_is_read(pairs: list[tuple[Path, ClipRecord]]) -> None:
    config = CheckpointConfig.read(vidembed.model_path("shapes") / "vidembed_config.json")
    assert 1 <= config.layer <= config.depth
    assert config.prefix is None
    on_the_fly = VideoEncoder(CHECKPOINT, layer=config.layer, prefix=None, device="cpu")
    bundled = VideoEncoder("vidembed/shapes", device="cpu")
    assert on_the_fly.fingerprint == bundled.fingerprint == config.fingerprint
    paths = [path for path, _ in pairs[:4]]
    assert np.abs(on_the_fly.encode(paths) - bundled.encode(paths)).max() <= 1e-5


def test_stock_sentence_transformers_needs_no_vidembed(pairs: list[tuple[Path, ClipRecord]], tmp_path: Path) -> None:
    caption = pairs[0][1].caption
    script = (
        "import sys; sys.modules['vidembed'] = None\n"
        "import numpy as np\nfrom sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({str(vidembed.model_path('shapes'))!r}, device='cpu')\n"
        f"np.save({str(tmp_path / 'v.npy')!r}, model.encode({caption!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert (
        np.abs(np.load(tmp_path / "v.npy") - VideoEncoder("vidembed/shapes", device="cpu").encode(caption)).max() < 1e-5
    )


def test_by_its_name() -> None:
    model = SentenceTransformer("vidembed/shapes", device="cpu")
    assert model.encode("a red square").shape == (model.get_embedding_dimension(),)
    assert {"vidembed/shapes", "vidembed/shapes-mllm"} <= set(vidembed.model_names())


def test_wheel_stays_small() -> None:
    """The embedded models take at most 16 MB of the wheel, which is a zip file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(CHECKPOINT.parent.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file)
    assert packed.tell() < 16_000_000
