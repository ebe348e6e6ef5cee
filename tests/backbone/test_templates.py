"""The one-word prompts, as they reach the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backbone import tiny
from vidembed.backbone import ZERO_SHOT_PREFIX, TemplateError, eol_template

HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
FOOT = "<|im_end|>\n<|im_start|>assistant\n"
VIDEO = {
    "qwen2_vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "video_llama_3": "<|video_pad|>",
}


def render(processor: Any, messages: list[dict[str, Any]], prefix: str | None = None) -> str:
    template = eol_template(processor, prefix=prefix)
    return str(processor.apply_chat_template(messages, chat_template=template, tokenize=False))


def user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize("model_type", tiny.ARCHITECTURES)
class TestRender:
    def test_text(self, model_type: str) -> None:
        got = render(tiny.processor(model_type), user(text("a cat {{ 1 }} \\ 'q'")))
        assert got == f"{HEAD}a cat {{{{ 1 }}}} \\ 'q'\nSummarize above sentence in one word:{FOOT}"

    def test_plain_string_content(self, model_type: str) -> None:
        got = render(tiny.processor(model_type), [{"role": "user", "content": "a cat"}])
        assert got == f"{HEAD}a cat\nSummarize above sentence in one word:{FOOT}"

    def test_video(self, model_type: str) -> None:
        got = render(tiny.processor(model_type), user({"type": "video", "video": "x"}))
        assert got == f"{HEAD}{VIDEO[model_type]}\nSummarize above video in one word:{FOOT}"

    def test_video_and_text_is_a_video(self, model_type: str) -> None:
        got = render(tiny.processor(model_type), user({"type": "video", "video": "x"}, text("at night")))
        assert got.endswith(f"at night\nSummarize above video in one word:{FOOT}")

    def test_image(self, model_type: str) -> None:
        got = render(tiny.processor(model_type), user({"type": "image", "image": "x"}))
        assert got.endswith(f"\nSummarize above image in one word:{FOOT}")
        assert "<|image_pad|>" in got

    def test_prefix_is_a_line_before_the_content(self, model_type: str) -> None:
        got = render(tiny.processor(model_type), user(text("a cat")), ZERO_SHOT_PREFIX)
        assert got == f"{HEAD}{ZERO_SHOT_PREFIX}\na cat\nSummarize above sentence in one word:{FOOT}"

    def test_system_message_replaces_the_default(self, model_type: str) -> None:
        messages = [{"role": "system", "content": [text("Find things.")]}, *user(text("a cat"))]
        got = render(tiny.processor(model_type), messages)
        assert got == (
            "<|im_start|>system\nFind things.<|im_end|>\n<|im_start|>user\n"
            f"a cat\nSummarize above sentence in one word:{FOOT}"
        )


def test_missing_template() -> None:
    processor = tiny.processor("qwen2_vl")
    processor.chat_template = None
    processor.tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="no chat template"):
        eol_template(processor, name="m")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("fixed", "renders the user text 0 times"),
        ("{% for m in messages %}{{ m.content[0].text }}{{ m.content[0].text }}{% endfor %}", "2 times"),
        ("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}", "no placeholder"),
    ],
)
def test_template_that_cannot_carry_the_prompt(template: str, message: str) -> None:
    processor = tiny.processor("qwen2_vl")
    processor.chat_template = template
    with pytest.raises(TemplateError, match=message):
        eol_template(processor, name="m")


def test_saved_model_carries_it(tiny_mllm: Callable[[str], Path], tmp_path: Path) -> None:
    processor = tiny.processor("qwen2_5_vl")
    processor.chat_template = eol_template(processor)
    processor.save_pretrained(tmp_path)
    assert "Summarize above video in one word:" in (tmp_path / "chat_template.jinja").read_text()
