"""Requests of other servers' clients and of this package's own search.

Fields that cannot change an answer are taken and not used. Of those that could, only the values that this server
follows are declared; another one is refused by name.

Sources: https://platform.openai.com/docs/api-reference/embeddings, https://docs.cohere.com/reference/embed and
https://docs.cohere.com/reference/rerank, https://api.jina.ai/redoc, docs/openapi.json of text-embeddings-inference,
and vllm/entrypoints/pooling/*/protocol.py of vLLM.
"""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from vidembed.index.hits import By, Merge
from vidembed.index.rows import MAX_PATTERN_CHARS
from vidembed.serve.security import FORM

MAX_CONDITIONS = 16
MAX_CONDITION_CHARS = 1000
MAX_AROUND_S = 3600.0
MAX_TIME_S = 1e9  # of a moment of a video: 31 years; milliseconds of it are exact
SEGMENT_PATTERN = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"  # of a UUID

Task = Literal["query", "document"]
TeiPrompt = Literal["query", "document", "passage"]
Encoding = Literal["float", "base64"]
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Direction = Literal["left", "right", "Left", "Right"]


def _allow_null(schema: dict[str, Any]) -> None:
    """State in the schema of a body that null means absent."""
    for name, form in schema["properties"].items():
        if name not in schema.get("required", ()):
            kept = {key: form.pop(key) for key in ("title", "description", "default") if key in form}
            forms = [each for each in form.get("anyOf", [form]) if each != {"type": "null"}]
            schema["properties"][name] = {"anyOf": [*forms, {"type": "null"}], **kept}
    schema["additionalProperties"] = {"type": "null"}


class Options(BaseModel):
    """What a request asks for. Null means absent, for every field; an unknown one is refused by name."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        for name, value in given.items():
            if name not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_parameter",
                    "it is not supported; got {got}; allowed are {allowed}",
                    {"param": name, "got": reprlib.repr(value), "allowed": ", ".join(cls.model_fields)},
                )
        return given


class Body(Options):
    """A body of a request: types as they are in JSON."""

    model_config = ConfigDict(strict=True, json_schema_extra=_allow_null)


class Video(Body):
    """A video, or a timed part of one, by its URI: `video+file:///folder/a.mp4#t=10,20`."""

    video: Text


class TextObject(Body):
    """A string as an object, as Cohere and Jina have it; the same as the string."""

    text: Text


Entry = Text | Video | TextObject


def text_of(entry: Entry) -> str:
    """Return the string of an entry: its words, or the URI of a `Video`."""
    if isinstance(entry, str):
        return entry
    return entry.video if isinstance(entry, Video) else entry.text


def _check_items(value: object, needed: str) -> object:
    """Refuse what is no item, with one message instead of one for each form of an item."""
    items = value if isinstance(value, list) else [value]
    if not items:
        raise PydanticCustomError("empty", "got an empty list; at least 1 item is needed")
    for number, item in enumerate(items):
        where = f"item {number}: " if isinstance(value, list) else ""
        given = {name: each for name, each in item.items() if each is not None} if isinstance(item, dict) else {}
        words = next(iter(given.values())) if len(given) == 1 and set(given) <= {"video", "text"} else item
        if not isinstance(words, str):
            context = {"where": where, "got": reprlib.repr(item)}
            raise PydanticCustomError("form", "{where}got {got}; " + needed + " is needed", context)
        if not words.strip():
            raise PydanticCustomError("empty", f"{where}got no words; give some words")
        try:
            words.encode()
        except UnicodeEncodeError:
            message = f"{where}got half of a surrogate pair, which is not a character"
            raise PydanticCustomError("unicode", message) from None
    return value


def _check_input(value: object) -> object:
    for number, item in enumerate(value if isinstance(value, list) else []):
        if isinstance(item, (int, float, list)):
            raise PydanticCustomError(
                "tokens",
                "item {number}: got {got}; token arrays are not supported; send text, as LangChain's OpenAIEmbeddings "
                "does with check_embedding_ctx_length=False",
                {"number": number, "got": reprlib.repr(item)},
            )
    return _check_items(value, 'a string, {"text": WORDS} or {"video": URI}')


def _list_of(needed: str) -> BeforeValidator:
    """Check the items of a list; what is no list is left to pydantic."""
    return BeforeValidator(lambda value: _check_items(value, needed) if isinstance(value, list) else value)


Inputs = Annotated[
    Entry | Annotated[list[Entry], Field(min_length=1)],
    BeforeValidator(_check_input),
    Field(description="Words, a video, or a list of them. A string is always words. Token arrays are refused."),
]
Documents = Annotated[
    list[Entry],
    _list_of('a video URI, as a string, {"video": URI} or {"text": URI},'),
    Field(min_length=1, description="Video URIs, as strings or as objects. Words are refused."),
]
ModelName = Annotated[str | None, Field(description="A name of the served model; default that one.")]
Dimensions = Annotated[
    int | None, Field(ge=1, description="Keep this many numbers of each vector, scaled to length 1 again.")
]

_PROMPT = "Which of the model's prompts words get: by default that of queries."


def task_of(name: str | None) -> Task:
    """Return which of the model's prompts words get, by the name that another server has for it."""
    return "document" if name is not None and name.endswith(("document", "passage")) else "query"


class VllmBody(Body):
    """Fields that vLLM adds to each of its requests."""

    request_id: str = Field("", description="vLLM's; not used.")
    priority: int = Field(0, description="vLLM's and Cohere's; not used: requests take turns.")
    cache_salt: str = Field("", description="vLLM's; not used: texts are not cached.")
    truncate_prompt_tokens: Literal[-1] = Field(-1, description="vLLM's; nothing is ever cut.")
    truncation_side: Literal["left", "right"] = Field("right", description="vLLM's; nothing is ever cut.")
    padding: Literal["do_not_pad"] = Field("do_not_pad", description="vLLM's.")
    use_activation: Literal[True] = Field(True, description="vLLM's.")
    user: str = Field("", description="Not used.")


class EmbeddingsRequest(VllmBody):
    """OpenAI's request, with videos among the inputs, and what Jina and vLLM add to it."""

    input: Inputs
    model: ModelName = None
    encoding_format: Encoding | None = Field(None, description="Default `float`; `base64` is of little-endian float32.")
    dimensions: Dimensions = None
    embedding_type: Encoding | None = Field(None, description="Jina's name of `encoding_format`.")
    task: Literal["retrieval.query", "retrieval.passage"] | None = Field(None, description=f"Jina's. {_PROMPT}")
    input_type: TeiPrompt | None = Field(None, description=f"Voyage's, NVIDIA's. {_PROMPT}")
    normalized: Literal[True] = Field(True, description="Jina's; vectors always have length 1.")
    late_chunking: Literal[False] = Field(False, description="Jina's; each input is embedded by itself.")
    truncate: bool = Field(False, description="Jina's; an input that is too long is refused, never cut.")
    truncation: bool = Field(False, description="The same, as Voyage has it.")
    add_special_tokens: Literal[True] = Field(True, description="vLLM's.")
    embed_dtype: Literal["float32"] = Field("float32", description="vLLM's.")
    endianness: Literal["native", "little"] = Field("little", description="vLLM's; always little.")

    @model_validator(mode="after")
    def _check_agreement(self) -> EmbeddingsRequest:
        if None not in (given := (self.encoding_format, self.embedding_type)) and len(set(given)) > 1:
            raise PydanticCustomError("conflict", "got an encoding_format and another embedding_type; give one of them")
        if self.task and self.input_type and task_of(self.task) != task_of(self.input_type):
            raise PydanticCustomError("conflict", "got a task and another input_type; give one of them")
        return self


class TeiEmbedRequest(Body):
    """TEI's request for embeddings, which Hugging Face's InferenceClient sends too. It names no model."""

    inputs: Inputs
    prompt_name: TeiPrompt = Field("query", description=_PROMPT)
    dimensions: Dimensions = None
    normalize: Literal[True] = Field(True, description="Vectors always have length 1.")
    truncate: bool = Field(False, description="An input that is too long is refused, never cut.")
    truncation_direction: Direction = Field("right", description="Nothing is ever cut.")
    encoding_format: Literal["float"] = Field("float", description="InferenceClient's.")


class CohereEmbedRequest(Body):
    """Cohere's request for embeddings, versions 1 and 2."""

    texts: Annotated[list[Text], _list_of("a string"), Field(min_length=1, description="Words.")]
    model: ModelName = None
    input_type: Literal["search_query", "search_document"] = Field("search_query", description=_PROMPT)
    embedding_types: list[Encoding] | None = Field(
        None, min_length=1, description="Default `float`; without it, version 1 answers with a plain list."
    )
    output_dimension: Dimensions = None
    truncate: Literal["NONE", "START", "END"] = Field("END", description="What is too long is refused, never cut.")
    priority: int = Field(0, description="Not used: requests take turns.")


class RerankRequest(VllmBody):
    """Cohere's request, versions 1 and 2, and what Jina and vLLM add to it. Documents are videos."""

    query: Text
    documents: Documents
    model: str | None = Field(None, description="A name of the served reranker; default that one.")
    top_n: int | None = Field(None, ge=0, description="Most results; default all, and so is 0, vLLM's default.")
    return_documents: bool = Field(False, description="Put the URI of each document into its result.")
    rank_fields: list[Literal["video", "text"]] = Field(["text"], description="Cohere's; a document has one field.")
    max_chunks_per_doc: int = Field(1, ge=1, description="Cohere's; a video is one chunk.")
    raw_scores: Literal[False] = Field(False, description="Infinity's; scores are probabilities.")
    return_embeddings: Literal[False] = Field(False, description="Jina's.")
    truncation: bool = Field(False, description="Jina's; nothing is ever cut.")


class TeiRerankRequest(Body):
    """TEI's request for reranking. It names no model, and its answer is a plain list."""

    query: Text
    texts: Documents
    return_text: bool = Field(False, description="Put the URI of each text into its result.")
    raw_scores: Literal[False] = Field(False, description="Scores are probabilities.")
    truncate: bool = Field(False, description="Nothing is ever cut.")
    truncation_direction: Direction = Field("right", description="Nothing is ever cut.")


def _form_of(body: object) -> str:
    """Tell TEI's request from the others: its list is named `texts`, and theirs `documents`."""
    given = {name for name, value in body.items() if value is not None} if isinstance(body, dict) else set()
    return f"{FORM}texts" if "texts" in given and "documents" not in given else f"{FORM}documents"


AnyRerankRequest = Annotated[
    Annotated[RerankRequest, Tag(f"{FORM}documents")] | Annotated[TeiRerankRequest, Tag(f"{FORM}texts")],
    Discriminator(_form_of),
]


class HitOptions(Options):
    """Which segments of the index may be hits, how many, and how they are told; as an address has it."""

    k: int | None = Field(None, ge=1, description="Most hits; default 10, or the server's limit if less.")
    path: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_PATTERN_CHARS,
        description="Only videos whose path fits this glob; without a `/` it is of the name.",
    )
    after: Seconds | None = Field(None, description="Only segments that end after so many seconds of their video.")
    before: Seconds | None = Field(None, description="Only segments that start before so many seconds.")
    where: list[Annotated[str, Field(min_length=1, max_length=MAX_CONDITION_CHARS)]] = Field(
        [],
        max_length=MAX_CONDITIONS,
        description="Only rows that satisfy all of these: COLUMN, one of `=`, `!=`, `<`, `<=`, `>=`, `>`, VALUE.",
    )
    merge: Merge = Field(
        "moments",
        description="`moments` drops hits that overlap a better one of the same video, `videos` keeps the best of "
        "each video, `none` keeps all.",
    )
    around: Annotated[Seconds, Field(le=MAX_AROUND_S)] | None = Field(
        None, description="Also return each hit widened by so many seconds on both sides."
    )


class SearchOptions(HitOptions):
    """A search of the index for words, as an address has it."""

    q: Text = Field(description="Words.")
    rerank: int = Field(0, ge=0, description="Ask the reranker about so many of the first hits.")
    by: By = Field(
        "video",
        description="What orders hits: cosine with the video, cosine with its `caption`, BM25 of the caption's words "
        "(`text`), or all three (`hybrid`).",
    )


class LikeOptions(HitOptions):
    """A search for what is like a segment of the index, as an address has it."""

    segment: str = Field(pattern=SEGMENT_PATTERN, description="The `id` of a hit.")


class SearchRequest(SearchOptions, Body):
    """A search of the index, as a body has it."""
