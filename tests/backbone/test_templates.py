"""The one-word prompts, as they reach the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from tests.backbone import tiny
from vidembed import VideoEncoder, VideoReranker
from vidembed import registry as hook
from vidembed.backbone.templates import (
    MATCH_QUESTION,
    ZERO_SHOT_PREFIX,
    eol_template,
    match_template,
    stand_in_template,
)
from vidembed.errors import TemplateError

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


QWEN3_VL = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}"
    "{%- for c in m.content -%}{%- if c.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif c.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- c.text -}}{%- endif -%}{%- endfor -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}GENERATION{%- endif -%}"
)
GLM_V = (
    "[gMASK]<sop>{%- for m in messages -%}{{- '<|' + m.role + '|>\\n' -}}"
    "{%- for c in m.content -%}{%- if c.type == 'image' -%}{{- '<|begin_of_image|><|image|><|end_of_image|>' -}}"
    "{%- elif c.type == 'video' -%}{{- '<|begin_of_video|><|video|><|end_of_video|>' -}}"
    "{%- else -%}{{- c.text -}}{%- endif -%}{%- endfor -%}"
    "{{- '/nothink' if (m.role == 'user' and enable_thinking is defined and not enable_thinking) else '' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}GENERATION{%- endif -%}"
)


def written(tag: str) -> str:
    return "{{- '" + tag.replace("\n", "\\n") + "' -}}"


def unless_thinking(closed: str, otherwise: str = "") -> str:
    return (
        "{%- if enable_thinking is defined and enable_thinking is false -%}"
        + written(closed)
        + "{%- else -%}"
        + written(otherwise)
        + "{%- endif -%}"
    )


@pytest.mark.parametrize(
    ("template", "generation", "footer"),
    [
        pytest.param(QWEN3_VL, "", "<|im_end|>\n<|im_start|>assistant\n", id="Qwen3-VL-Instruct"),
        pytest.param(
            QWEN3_VL,
            written("<think>\n"),
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            id="Qwen3-VL-Thinking",
        ),
        pytest.param(
            QWEN3_VL,
            unless_thinking("<think>\n\n</think>\n\n"),
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            id="Qwen3",
        ),
        pytest.param(
            QWEN3_VL,
            unless_thinking("<think>\n\n</think>\n\n", "<think>\n"),
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            id="Qwen3.5",
        ),
        pytest.param(
            GLM_V, unless_thinking("<think></think>"), "/nothink<|assistant|>\n<think></think>", id="GLM-4.5V"
        ),
        pytest.param(GLM_V, written("<think>"), "/nothink<|assistant|>\n<think></think>", id="GLM that always thinks"),
        pytest.param(GLM_V, unless_thinking("</think>", "<think>"), "/nothink<|assistant|>\n</think>", id="GLM-4.7"),
        pytest.param(
            QWEN3_VL,
            written("<|begin_of_thought|>\n"),
            "<|im_end|>\n<|im_start|>assistant\n<|begin_of_thought|>\n\n<|end_of_thought|>\n\n",
            id="begin_of_thought",
        ),
        pytest.param(
            QWEN3_VL,
            written("<|START_THINKING|>"),
            "<|im_end|>\n<|im_start|>assistant\n<|START_THINKING|><|END_THINKING|>",
            id="START_THINKING",
        ),
        pytest.param(
            QWEN3_VL,
            written("\u25c1think\u25b7"),
            "<|im_end|>\n<|im_start|>assistant\n\u25c1think\u25b7\u25c1/think\u25b7",
            id="Kimi-VL",
        ),
    ],
)
class TestThinkingModels:
    """The prompt of no model may end inside a thought, where no answer can stand."""

    @pytest.fixture
    def processor(self, template: str, generation: str) -> Any:
        processor = tiny.processor("qwen3_vl")
        processor.chat_template = template.replace("GENERATION", generation)
        return processor

    def test_embedding_prompts(self, processor: Any, footer: str, caplog: pytest.LogCaptureFixture) -> None:
        assert render(processor, user(text("a cat"))).endswith(f"a cat\nSummarize above sentence in one word:{footer}")
        video = user({"type": "video", "video": "x"})
        assert render(processor, video).endswith(f"\nSummarize above video in one word:{footer}")
        system = [{"role": "system", "content": [text("Find things.")]}, *video]
        assert render(processor, system).endswith(f"\nSummarize above video in one word:{footer}")
        assert not caplog.text

    def test_matching_prompt(self, processor: Any, footer: str) -> None:
        got = processor.apply_chat_template(
            user({"type": "video", "video": "x"}, text("a cat")), chat_template=match_template(processor)
        )
        assert got.endswith(f"a cat\n{MATCH_QUESTION}{footer}")

    def test_training_prompt(self, processor: Any, footer: str) -> None:
        template = stand_in_template(eol_template(processor))
        got = processor.apply_chat_template(user(text("a cat")), chat_template=template)
        assert got.endswith(f"a cat\nSummarize above video in one word:{footer}")


def test_thought_whose_end_is_not_known() -> None:
    processor = tiny.processor("qwen3_vl")
    processor.chat_template = QWEN3_VL.replace("GENERATION", written("<|think|>"))
    with pytest.raises(TemplateError, match=r"m: the generation prompt .* starts a thought with '<\|think\|>'"):
        eol_template(processor, name="m")


def test_checkpoints_of_a_thinking_model_carry_the_closed_thought(
    tiny_mllm: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_mllm("qwen3_vl"), tmp_path / "mllm")
    (tmp_path / "mllm" / "chat_template.jinja").write_text(QWEN3_VL.replace("GENERATION", written("<think>\n")))
    encoder = VideoEncoder(tmp_path / "mllm", layer=2, device="cpu")
    encoder.save_pretrained(str(tmp_path / "encoder"))
    encoder.reranker().save_pretrained(str(tmp_path / "reranker"))
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    for folder in ("encoder", "reranker"):
        template = (tmp_path / folder / "chat_template.jinja").read_text()
        assert closed.replace("\n", "\\n") in template
    hook.remove()  # sentence-transformers as it is
    try:
        stock = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    finally:
        hook.install()
    ids = stock.preprocess(["a cat"])["input_ids"][0]
    assert stock.tokenizer.decode(ids).endswith(f"a cat\nSummarize above sentence in one word:<|im_end|>\n{closed}")
    again = VideoReranker(str(tmp_path / "reranker"), device="cpu")
    rendered = again[0].processor.apply_chat_template(user({"type": "video", "video": "x"}, text("a cat")))
    assert rendered.endswith(f"a cat\n{MATCH_QUESTION}<|im_end|>\n{closed}")
