"""The prompts of VidVec (arXiv 2602.08099, sections 3.2 and 4) as chat templates, so that stock loaders build them.

Header, media placeholders and footer are what the model's own template renders; only the instruction is added. The
names in capitals in ``eol.jinja`` and ``match.jinja`` stand for these.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidembed.errors import TemplateError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

TEXT_PROMPT = "Summarize above sentence in one word:"
VIDEO_PROMPT = "Summarize above video in one word:"
IMAGE_PROMPT = "Summarize above image in one word:"  # the paper has no images; this follows its form

ZERO_SHOT_PREFIX = "Recover the main subject or subjects, appearance and setting, and main activity in the video"
"""What the paper puts before the prompt for its results with the model as it is (VidVec-ZS)."""

_FOLDER = Path(__file__).parent
_EOL_TEMPLATE = (_FOLDER / "eol.jinja").read_text(encoding="utf-8")

_STARTS_AS_TEXT = "namespace(kind='text'"  # of the template above: what a message without media is taken for

# VidVec, section 3.3
MATCH_QUESTION = "Does the video match the sentence? Answer with a single word - Yes or No."

_MATCH_TEMPLATE = (_FOLDER / "match.jinja").read_text(encoding="utf-8")

_SYSTEM, _TEXT = "\ue000system\ue000", "\ue000text\ue000"  # private use: in no template

_THOUGHT_TAG = re.compile(r"[<\[◁][^<>\[\]◁▷\s]*(?:think|thought|reason)[^<>\[\]◁▷\s]*[>\]▷]", re.IGNORECASE)
_CLOSING = re.compile(r"/|end", re.IGNORECASE)  # </think>, <|end_of_thought|>, <|END_THINKING|>


def _message_format(processor: ProcessorMixin, *, name: str) -> dict[str, str]:
    """The values of the names in the templates above, read off what the model's own chat template renders.

    HEADER comes before the content without a system message, FOOTER after it, up to where the answer would begin.
    """
    if processor.chat_template is None:
        raise TemplateError(
            f"{name}: its processor has no chat template, so prompts cannot be made. Save one beside the model as "
            f"chat_template.jinja (published instruct models have it)."
        )
    text = {"type": "text", "text": _TEXT}
    # named, since smolvlm takes another one for a message with a video
    options: dict[str, Any] = {"chat_template": processor.chat_template}
    # not to every template: transformers warns of variables that a template does not have
    if "enable_thinking" in str(processor.chat_template):
        options["enable_thinking"] = False

    apply_chat_template: Any = processor.apply_chat_template  # its types say less than it takes

    def render(*content: dict[str, str], system: bool = False) -> str:
        start = [{"role": "system", "content": [{"type": "text", "text": _SYSTEM}]}] if system else []
        messages = [*start, {"role": "user", "content": list(content)}]
        return str(apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))

    def split(rendered: str, mark: str, what: str) -> tuple[str, str]:
        if rendered.count(mark) != 1:
            raise TemplateError(
                f"{name}: its chat template renders {what} {rendered.count(mark)} times instead of once, so the prompt "
                f"cannot be placed. It rendered {rendered!r}."
            )
        before, after = rendered.split(mark)
        return before, after

    header, footer = split(render(text), _TEXT, "the user text")
    system_start, after = split(render(text, system=True), _SYSTEM, "a system message")
    system_end, _ = split(after, _TEXT, "the user text after a system message")
    values = {"HEADER": header, "SYSTEM_START": system_start, "SYSTEM_END": system_end}
    for kind in ("video", "image"):
        # tokenize=False renders the template only: the placeholder file is never opened
        start, _ = split(render({"type": kind, kind: "placeholder"}, text), _TEXT, f"the user text after a {kind}")
        # smolvlm writes "User:" before media and "User: " before text
        opening = header if start.startswith(header) else header.rstrip(" ")
        mark = values[f"{kind.upper()}_MARK"] = start.removeprefix(opening)
        if not start.startswith(opening) or not mark.strip():
            raise TemplateError(
                f"{name}: its chat template writes no placeholder for a {kind}; rendered {start!r}. Use the chat "
                f"template of a model that takes {kind}s."
            )
    return {**values, "FOOTER": _with_thought_closed(footer, name=name)}


def open_thought(prompt: str) -> str | None:
    """The tag of a thought that a prompt opens and does not close, or None."""
    tags = _THOUGHT_TAG.findall(prompt)
    return None if not tags or _CLOSING.search(tags[-1]) else str(tags[-1])


def _with_thought_closed(footer: str, *, name: str) -> str:
    """Close the thought that a generation prompt leaves open, as the non-thinking prompts of Qwen and GLM do."""
    opening = open_thought(footer)
    if opening is None:
        return footer
    closing = re.sub("begin|start", "end", opening, flags=re.IGNORECASE)
    if opening.isupper():
        closing = closing.upper()
    if closing == opening and "|" not in opening:  # <think>, [THINK]
        closing = f"{opening[0]}/{opening[1:]}"
    if closing == opening:
        raise TemplateError(
            f"{name}: the generation prompt of its chat template starts a thought with {opening!r}, and its closing "
            f"tag is not known, so the answer cannot follow. Save a chat template beside the model whose generation "
            f"prompt "
            "closes it (chat_template.jinja)."
        )
    # Qwen writes two line breaks into the empty thought and two after it; GLM writes none
    return f"{footer}\n{closing}\n\n" if "\n" in footer.rpartition(opening)[2] else footer + closing


def eol_template(processor: ProcessorMixin, *, prefix: str | None = None, name: str = "the model") -> str:
    """Write the chat template that ends every input in its "in one word" prompt.

    A message with a video gets the video prompt, else one with an image the image prompt, else the text prompt. The
    last token is the readout position. A system message, such as sentence-transformers' ``prompt``, takes the place of
    the model's default one.

    Args:
        processor: The model's, with its own chat template.
        prefix: Put before the content on a line of its own, for example `ZERO_SHOT_PREFIX`; None for nothing.
        name: How to name the model in an error.

    Raises:
        TemplateError: The model's own template is missing, alters the content, or leaves a thought open.
    """
    values = _message_format(processor, name=name)
    if prefix:
        values |= {key: f"{values[key]}{prefix}\n" for key in ("HEADER", "SYSTEM_END")}
    prompts = {"TEXT_PROMPT": TEXT_PROMPT, "VIDEO_PROMPT": VIDEO_PROMPT, "IMAGE_PROMPT": IMAGE_PROMPT}
    return _fill(_EOL_TEMPLATE, {**values, **prompts})


def stand_in_template(template: str) -> str:
    """Rewrite an `eol_template` so that a text gets the video's prompt; TemplateError for another template.

    For training on texts alone, per call: a caption then differs from a video in the placeholder only.
    """
    if template.count(_STARTS_AS_TEXT) != 1:
        raise TemplateError(
            "the chat template was not written by vidembed, so texts cannot get the video prompt. Use a "
            "checkpoint made by vidembed.build, or a video MLLM."
        )
    return template.replace(_STARTS_AS_TEXT, _STARTS_AS_TEXT.replace("text", "video"))


def match_template(processor: ProcessorMixin, *, question: str = MATCH_QUESTION, name: str = "the model") -> str:
    """Write the reranker's chat template: the video, first in either order of a pair, the sentence, the question."""
    return _fill(_MATCH_TEMPLATE, {**_message_format(processor, name=name), "MATCH_QUESTION": question})


def instruct_template(processor: ProcessorMixin, instruction: str, *, name: str = "the model") -> str:
    """Write a chat template that asks `instruction` of a video, an image or a text, as `eol_template` asks its own."""
    prompts = dict.fromkeys(("TEXT_PROMPT", "VIDEO_PROMPT", "IMAGE_PROMPT"), instruction)
    return _fill(_EOL_TEMPLATE, {**_message_format(processor, name=name), **prompts})


def _fill(template: str, values: dict[str, str]) -> str:
    """Put each value, as a string of Jinja, in the place of its name."""

    def literal(match: re.Match[str]) -> str:
        text = values[match[1]].replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return f"'{text}'"

    return re.sub(rf"\b({'|'.join(values)})\b", literal, template)
