"""What the index needs of a model; `vidembed.encoder.VideoEncoder` has it, and cannot be named here without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidembed.video import Sampling


class Fingerprinted(Protocol):
    """A model that says what made its vectors."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that makes the vectors, hex."""
        ...

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the same, readable."""
        ...


class QueryEncoder(Fingerprinted, Protocol):
    """A model that gives the vector of a query."""

    def encode_query(self, inputs: Any, /) -> Any:
        """Return the vector of a query."""
        ...


class Item(Protocol):
    """One result of `StreamEncoder.encode_stream`."""

    @property
    def index(self) -> int:
        """Position of the input, from 0."""
        ...

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """Vector, shape (D,), or None where there is an error."""
        ...

    @property
    def error(self) -> Exception | None:
        """Why there is no vector."""
        ...


class IndexedModel(Fingerprinted, Protocol):
    """A model that an index can be made with."""

    @property
    def sampling(self) -> Sampling:
        """How frames are chosen."""
        ...

    def get_embedding_dimension(self) -> int | None:
        """Return the length of a vector."""
        ...


class StreamEncoder(IndexedModel, QueryEncoder, Protocol):
    """A model that gives the vectors of videos, one after the other."""

    video_backend: str

    def encode_stream(
        self,
        inputs: Iterable[Any],
        *,
        batch_size: int = 32,
        on_error: Literal["raise", "skip"] = "raise",
        show_progress_bar: bool | None = None,
    ) -> Iterator[Item]:
        """Yield a vector or an error for each input, in order."""
        ...
