"""Answers, in the forms of other servers and of this package's own search. `schemas` has the requests and sources."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Vectors = list[list[float]]


class Embedding(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of the words, without the model's template; videos count 0."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's answer."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "vidembed"


class Models(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ApiVersion(BaseModel):
    """Version of Cohere's API."""

    version: str


class BilledUnits(BaseModel):
    """What Cohere counts: one search for a rerank request, tokens of the words for embeddings."""

    search_units: int | None = None
    input_tokens: int | None = None


class Meta(BaseModel):
    """Cohere's description of an answer."""

    api_version: ApiVersion
    billed_units: BilledUnits


class CohereEmbeddings(BaseModel):
    """Vectors of the texts, in each of the types asked for."""

    float: Vectors | None = None
    base64: list[str] | None = None


class CohereEmbedResponse(BaseModel):
    """Cohere's answer: by type, or for version 1 without `embedding_types` a plain list."""

    id: str
    response_type: Literal["embeddings_by_type", "embeddings_floats"]
    embeddings: CohereEmbeddings | Vectors
    texts: list[str]
    meta: Meta


class TeiRank(BaseModel):
    """A text's place in the request, and the probability that it matches the query."""

    index: int
    score: float = Field(ge=0, le=1)
    text: str | None = None


class RerankDocument(BaseModel):
    """A document, as version 1 returns it."""

    text: str


class RerankResult(BaseModel):
    """A document's place in the request, and the probability that it matches the query."""

    index: int
    relevance_score: float = Field(ge=0, le=1)
    document: RerankDocument | None = None


class RerankResponse(BaseModel):
    """Cohere's answer, most relevant first, which Jina and vLLM have too; `meta` is Cohere's."""

    id: str
    model: str
    results: list[RerankResult]
    meta: Meta | None = None


class IndexSegment(BaseModel):
    """A segment of the index."""

    id: str = Field(description="Its name in the index, the same in every run.")
    uri: str
    name: str
    start_s: float
    end_s: float
    duration: float = Field(description="Of the video, seconds.")
    caption: str | None = Field(None, description="What a model says of the segment, if the index holds that.")
    media: str | None = Field(None, description="Relative address of the video's bytes, if the video is on the server.")
    thumbnail: str | None = Field(None, description="Relative address of the frame in its middle, as JPEG, likewise.")


class SearchHit(IndexSegment):
    """A segment that fits what was searched for."""

    score: float = Field(description="Cosine similarity with the video.")
    probability: float | None = Field(None, description="By the reranker, if it was asked about this hit.")
    segments: int | None = Field(
        None, description="With `merge=videos`, segments of the video that rank no lower than the last hit."
    )
    context_start_s: float | None = Field(None, description="With `around`, where the hit starts with it.")
    context_end_s: float | None = Field(None, description="With `around`, where the hit ends with it.")
    caption_score: float | None = Field(None, description="Cosine similarity with the caption, if that was searched.")
    text_score: float | None = Field(None, description="BM25 of the caption, if its words were searched.")
    hybrid_score: float | None = Field(None, description="With `by=hybrid`, what orders the hits; see `method.fusion`.")


class SearchResponse(BaseModel):
    """Hits, best first, and how they were found."""

    query: str
    approximate: bool
    method: dict[str, Any]
    hits: list[SearchHit]


class LikeResponse(BaseModel):
    """Hits, best first, how they were found, and the segment that they are like, if it is one of the index."""

    like: IndexSegment | None = None
    approximate: bool
    method: dict[str, Any]
    hits: list[SearchHit]


class IndexContents(BaseModel):
    """What the index holds."""

    model: str
    videos: int
    segments: int
    seconds: float = Field(description="Of all videos together.")
    examples: list[str] = Field(description="Queries to begin with: captions of the index, or of the bundled models.")
    samples: list[IndexSegment] = Field(description="A segment of each of some videos.")


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok", "stopping"]
    model: str
    reranker: str | None
    index: bool
    captions: bool = Field(description="Whether the index has captions, which `by` of a search needs.")


class Live(BaseModel):
    """Only that the process answers."""

    status: Literal["ok"] = "ok"


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """The form of every error."""

    error: ErrorBody
