"""`VideoCrossEncoder`: a vidembed reranker as a LangChain cross-encoder."""

from __future__ import annotations

from langchain_core.cross_encoders import BaseCrossEncoder
from vidembed.adapters import lock_of
from vidembed.errors import NotAVideoError

from langchain_vidembed.scoring import RerankerModel


class VideoCrossEncoder(RerankerModel, BaseCrossEncoder):
    """Scores pairs of a text and a video URI by the probability that they match.

    A pair's score does not depend on the other pairs, so it is the head's alone. To rerank documents, `VideoRerank` is
    better: it fuses the head with the similarity, which needs all candidates of a query, and it keeps the scores, which
    LangChain's `CrossEncoderReranker` throws away.

    Args:
        **fields: Those of `langchain_vidembed.scoring.RerankerModel`.
    """

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs.

        Args:
            text_pairs: Each with one video URI, on either side, and one text.

        Returns:
            Probabilities, 0 to 1.

        Raises:
            NotAVideoError: A pair holds no video URI, or two; the message says which.
            VideoUriError: A video URI is malformed, or what it names is not allowed.
            VideoError: A video cannot be read.
            InputError: A text is empty.
        """
        if not text_pairs:
            return []
        pairs = [self._pair(place, pair) for place, pair in enumerate(text_pairs)]
        with lock_of(self.reranker):
            scores: list[float] = self.reranker.predict(pairs, show_progress_bar=False).tolist()
        return scores

    def _pair(self, place: int, pair: tuple[str, str]) -> dict[str, object]:
        found = [self.video_in(side) for side in pair]
        videos = [ref for ref in found if ref is not None]
        if len(videos) != 1:
            shown = tuple(side[:80] for side in pair)
            raise NotAVideoError(
                f"text_pairs[{place}]: {len(videos)} video URIs in {shown!r}; exactly one side must be a video URI"
            )
        return {"text": pair[1] if found[0] is not None else pair[0], "video": videos[0].segment()}
