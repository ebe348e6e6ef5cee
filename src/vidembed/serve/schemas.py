"""Bodies of requests and answers: OpenAI's embeddings, Cohere's rerank, and this package's own search.

Sources: https://platform.openai.com/docs/api-reference/embeddings and https://docs.cohere.com/reference/rerank.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from vidembed.index.retrieval.filters import MAX_PATTERN_CHARS
from vidembed.index.retrieval.merge import Merge

MAX_CONDITIONS = 16
MAX_CONDITION_CHARS = 1000
MAX_AROUND_S = 3600.0

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Body(BaseModel):
    """A body of a request: types as they are in JSON, and no fields but those."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Video(Body):
    """A video, or a timed part of one, by its URI: `video+file:///folder/a.mp4#t=10,20`."""

    video: Text


def _check_input(value: Any) -> Any:
    """Refuse what no form of input takes, with one message instead of one for each form."""
    items = value if isinstance(value, list) else [value]
    if not items:
        raise PydanticCustomError("empty", "got an empty list; at least one input is needed")
    for number, item in enumerate(items):
        where = f"item {number}: " if isinstance(value, list) else ""
        if isinstance(item, (int, float, list)):
            raise PydanticCustomError("tokens", f"{where}token arrays are not taken; send the words")
        words = item["video"] if isinstance(item, dict) and set(item) == {"video"} else item
        if not isinstance(words, str):
            raise PydanticCustomError("form", f'{where}a string, or {{"video": URI}}, is needed')
        if not words.strip():
            raise PydanticCustomError("empty", f"{where}got no words; some are needed")
        _check_unicode(words, where)
    return value


def _check_documents(value: Any) -> Any:
    """Refuse documents that are no videos by the place they have."""
    for number, item in enumerate(value if isinstance(value, list) else []):
        uri = item["video"] if isinstance(item, dict) and set(item) == {"video"} else item
        if not isinstance(uri, str) or not uri.strip():
            raise PydanticCustomError("form", f'document {number}: a video URI, or {{"video": URI}}, is needed')
        _check_unicode(uri, f"document {number}: ")
    return value


def _check_unicode(text: str, where: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise PydanticCustomError("unicode", f"{where}it holds half of a surrogate pair, which is no character")


class EmbeddingsRequest(Body):
    """OpenAI's request, with videos among the inputs."""

    input: Annotated[
        Text | Video | Annotated[list[Text | Video], Field(min_length=1)],
        BeforeValidator(_check_input),
        Field(description="Words, a video, or a list of them. A string is always words. Token arrays are refused."),
    ]
    model: Annotated[str, Field(description="A name of the served model.")]
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="`base64`: little-endian float32, as OpenAI sends it.")
    ] = "float"
    dimensions: Annotated[
        int | None, Field(ge=1, description="Keep this many numbers of each vector, scaled to length 1 again.")
    ] = None
    user: Annotated[str | None, Field(description="Taken for compatibility; not used.")] = None


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


class RerankRequest(Body):
    """Cohere's request. Documents are videos."""

    model: Annotated[str, Field(description="The name of the served reranker.")]
    query: Text
    documents: Annotated[
        list[Text | Video],
        BeforeValidator(_check_documents),
        Field(min_length=1, description='Video URIs, as strings or as {"video": URI}. Words are refused.'),
    ]
    top_n: Annotated[int | None, Field(ge=1, description="Most results; default all.")] = None
    return_documents: Annotated[
        bool | None, Field(description="Of version 1: put the URI of each document into its result.")
    ] = None


class RerankDocument(BaseModel):
    """A document, as version 1 returns it."""

    text: str


class RerankResult(BaseModel):
    """A document's place in the request, and the probability that it matches the query."""

    index: int
    relevance_score: Annotated[float, Field(ge=0, le=1)]
    document: RerankDocument | None = None


class ApiVersion(BaseModel):
    """Version of Cohere's API."""

    version: str


class BilledUnits(BaseModel):
    """What Cohere counts; one search a request, as there."""

    search_units: int = 1


class RerankMeta(BaseModel):
    """Cohere's description of an answer."""

    api_version: ApiVersion
    billed_units: BilledUnits = BilledUnits()


class RerankResponse(BaseModel):
    """Cohere's answer, most relevant first."""

    id: str
    results: list[RerankResult]
    meta: RerankMeta


class SearchOptions(BaseModel):
    """A search of the index, as an address has it."""

    model_config = ConfigDict(extra="forbid")

    q: Annotated[Text, Field(description="Words.")]
    k: Annotated[int | None, Field(ge=1, description="Most hits; default 10, or the server's limit if less.")] = None
    rerank: Annotated[int, Field(ge=0, description="Ask the reranker about so many of the first hits.")] = 0
    path: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_PATTERN_CHARS,
            description="Only videos whose path fits this glob; without a `/` it is of the name.",
        ),
    ] = None
    after: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Only segments that end after so many seconds of their video."),
    ] = None
    before: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Only segments that start before so many seconds."),
    ] = None
    where: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_CONDITION_CHARS)]],
        Field(
            max_length=MAX_CONDITIONS,
            description="Only rows that satisfy all of these: COLUMN, one of `=`, `!=`, `<`, `<=`, `>=`, `>`, VALUE.",
        ),
    ] = []
    merge: Annotated[
        Merge,
        Field(
            description="`moments` drops hits that overlap a better one of the same video, `videos` keeps the best of "
            "each video, `none` keeps all."
        ),
    ] = "moments"
    around: Annotated[
        float | None,
        Field(
            ge=0,
            le=MAX_AROUND_S,
            allow_inf_nan=False,
            description="Let hits tell where they start and end with so many seconds on both sides.",
        ),
    ] = None


class SearchRequest(SearchOptions):
    """A search of the index, as a body has it."""

    model_config = ConfigDict(strict=True)


class SearchHit(BaseModel):
    """A segment that fits the words."""

    uri: str
    name: str
    start_s: float
    end_s: float
    score: Annotated[float, Field(description="Cosine similarity.")]
    probability: Annotated[float | None, Field(description="By the reranker, if it was asked about this hit.")] = None
    segments: Annotated[
        int | None,
        Field(description="With `merge=videos`, segments of the video that rank no lower than the last hit."),
    ] = None
    context_start_s: Annotated[float | None, Field(description="With `around`, where the hit starts with it.")] = None
    context_end_s: Annotated[float | None, Field(description="With `around`, where the hit ends with it.")] = None
    media: Annotated[
        str | None, Field(description="Relative address of the video's bytes, if the video is on the server.")
    ] = None


class SearchResponse(BaseModel):
    """Hits, best first, and how they were found."""

    query: str
    approximate: bool
    method: dict[str, Any]
    hits: list[SearchHit]


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok", "stopping"]
    model: str
    reranker: str | None
    index: bool


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
