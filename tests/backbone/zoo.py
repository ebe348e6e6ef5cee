"""Random small models of further video architectures, with real processors: what discovery is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from tests.backbone import tiny

Made: TypeAlias = "tuple[PretrainedConfig, Any]"  # config and processor

HIDDEN, DEPTH = tiny.HIDDEN, tiny.DEPTH
QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
SMALL_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
QWEN_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 64,
}
GLM_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": HIDDEN,
    "image_size": 56,
    "patch_size": 14,
}
LINEAR = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
    "full_attention_interval": 3,
}
SIDE = {"height": 56, "width": 56}
MAKERS: dict[str, Callable[[], Made]] = {}


def made(maker: Callable[[], Made]) -> Callable[[], Made]:
    """Register the maker of a model type, under its own name."""
    MAKERS[maker.__name__] = maker
    return maker


def tokenizer(special: Sequence[str], **names: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 256 bytes and some special tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=276 + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["Yes No a red square moves"], trainer)
    ends = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "model_max_length": 8192}
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=special, **ends, **names)


def template(image: str, video: str) -> str:
    return tiny.TEMPLATE.replace("IMAGE", f"'{image}'").replace("VIDEO", f"'{video}'")


def text_config(tok: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    ids = tok.get_vocab()
    sizes = {"vocab_size": len(ids) + 24, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": DEPTH}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    ends = {"bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    return {**sizes, **heads, **ends, **more}


def qwen_ids(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, map(tok.convert_tokens_to_ids, QWEN), strict=True))


def media_ids(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    return {name: value for name, value in qwen_ids(tok).items() if name in ("image_token_id", "video_token_id")}


def qwen_template() -> str:
    start, end, image, video = QWEN
    return template(f"{start}{image}{end}", f"{start}{video}{end}")


def qwen3_processor(tok: PreTrainedTokenizerFast) -> Any:
    size = {"shortest_edge": 32**2, "longest_edge": 64**2}
    return hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(size=size, patch_size=16),
        tok,
        hf.Qwen3VLVideoProcessor(size={**size, "longest_edge": 8 * 64**2}, patch_size=16),
        chat_template=qwen_template(),
    )


def qwen2_processor(kind: Any, tok: PreTrainedTokenizerFast) -> Any:
    size = {"shortest_edge": 28**2, "longest_edge": 56**2}
    image, video = (part(size=size, patch_size=14) for part in (hf.Qwen2VLImageProcessor, hf.Qwen2VLVideoProcessor))
    return kind(image, tok, video, chat_template=qwen_template())


def linear_text(tok: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """Text config of Qwen3.5: two blocks of linear attention, then one of full attention."""
    rope = {**MROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5}
    return text_config(tok, rope_parameters=rope, **LINEAR, **more)


@made
def smolvlm() -> Made:
    cells = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>", *cells]
    tok = tokenizer(marks)
    image = tok.convert_tokens_to_ids("<image>")
    vision = {**SMALL_VISION, "image_size": 56, "patch_size": 14}
    text = {**text_config(tok), "model_type": "llama"}
    config = hf.SmolVLMConfig(
        text_config=text, vision_config=vision, image_token_id=image, scale_factor=2, pad_token_id=text["pad_token_id"]
    )
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    edge = {"longest_edge": 56}
    grid = {"fps": 1, "num_frames": 64, "video_sampling": {"fps": 1, "max_frames": 64, "video_size": edge}}
    return config, hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        tok,
        hf.SmolVLMVideoProcessor(size=edge, max_image_size=edge, **grid),
        image_seq_len=4,
        chat_template=DEFAULT_CHAT_TEMPLATE,
    )


@made
def qwen3_5() -> Made:
    tok = tokenizer(QWEN)
    config = hf.Qwen3_5Config(text_config=linear_text(tok), vision_config=QWEN_VISION, **qwen_ids(tok))
    return config, qwen3_processor(tok)


@made
def qwen3_5_moe() -> Made:
    tok = tokenizer(QWEN)
    experts = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    text = linear_text(tok, num_experts=4, num_experts_per_tok=2, **experts)
    return hf.Qwen3_5MoeConfig(text_config=text, vision_config=QWEN_VISION, **qwen_ids(tok)), qwen3_processor(tok)


@made
def qwen3_vl_moe() -> Made:
    tok = tokenizer(QWEN)
    experts = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    text = text_config(tok, head_dim=16, rope_parameters=MROPE, **experts)
    vision = {**QWEN_VISION, "deepstack_visual_indexes": [0, 1]}
    return hf.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **qwen_ids(tok)), qwen3_processor(tok)


@made
def internvl() -> Made:
    names = {"start_image_token": "<img>", "end_image_token": "</img>"}
    names |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tok = tokenizer([*names.values()], extra_special_tokens=names)
    config = hf.InternVLConfig(
        text_config={**text_config(tok), "model_type": "qwen2"},
        vision_config={**SMALL_VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return config, hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=False),
        tok,
        hf.InternVLVideoProcessor(size=SIDE),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>\\n", "<video>\\n"),
    )


def llava_ids(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    return {f"{kind}_token_index": tok.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}


@made
def llava_onevision() -> Made:
    tok = tokenizer(["<image>", "<video>"])
    grid = [[56, 56], [56, 112]]
    vision = {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}
    text = {**text_config(tok), "model_type": "qwen2"}
    config = hf.LlavaOnevisionConfig(
        text_config=text, vision_config={**SMALL_VISION, **vision}, image_grid_pinpoints=grid, **llava_ids(tok)
    )
    return config, hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=SIDE, image_grid_pinpoints=grid),
        tok,
        hf.LlavaOnevisionVideoProcessor(size=SIDE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<image>", "<video>"),
    )


CLIP = {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, "projection_dim": 32}
CLIP_SIZES = {"size": {"shortest_edge": 56}, "crop_size": SIDE}


@made
def llava_next_video() -> Made:
    tok = tokenizer(["<image>", "<video>"])
    grid = [[56, 56], [56, 112]]
    config = hf.LlavaNextVideoConfig(
        text_config={**text_config(tok), "model_type": "llama"},
        vision_config={**SMALL_VISION, **CLIP},
        image_grid_pinpoints=grid,
        image_seq_length=16,
        video_seq_length=4,
        **llava_ids(tok),
    )
    return config, hf.LlavaNextVideoProcessor(
        video_processor=hf.LlavaNextVideoVideoProcessor(**CLIP_SIZES),
        image_processor=hf.LlavaNextImageProcessor(**CLIP_SIZES, image_grid_pinpoints=grid),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>", "<video>"),
    )


@made
def video_llava() -> Made:
    tok = tokenizer(["<image>", "<video>"])
    config = hf.VideoLlavaConfig(
        text_config={**text_config(tok), "model_type": "llama"},
        vision_config={**SMALL_VISION, **CLIP},
        image_seq_length=16,
        video_seq_length=136,
        **llava_ids(tok),
    )
    return config, hf.VideoLlavaProcessor(
        image_processor=hf.VideoLlavaImageProcessor(**CLIP_SIZES),
        video_processor=hf.VideoLlavaVideoProcessor(**CLIP_SIZES),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>", "<video>"),
    )


GLM = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")


def glm(config: Any, processor: Any, image: Any, video: Any) -> Made:
    tok = tokenizer(GLM)
    kinds = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    ids = {f"{kind}_token_id": tok.convert_tokens_to_ids(token) for kind, token in zip(kinds, GLM, strict=True)}
    text = text_config(tok, rope_parameters={**MROPE, "partial_rotary_factor": 1.0})
    edges = {"shortest_edge": 28**2, "longest_edge": 8 * 56**2}
    chat = template("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>")
    return config(text_config=text, vision_config=GLM_VISION, **ids), processor(
        image(size={**edges, "longest_edge": 2 * 56**2}),
        tok,
        video(size=edges, max_image_size={"longest_edge": 8 * 56**2}),
        chat_template=chat,
    )


@made
def glm4v() -> Made:
    return glm(hf.Glm4vConfig, hf.Glm4vProcessor, hf.Glm4vImageProcessor, hf.Glm4vVideoProcessor)


@made
def glm46v() -> Made:
    return glm(hf.Glm46VConfig, hf.Glm46VProcessor, hf.Glm46VImageProcessor, hf.Glm46VVideoProcessor)


@made
def gemma4() -> Made:
    """Sliding and full attention by turns, keys and values shared by the last blocks, logits capped."""
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    names |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tok = tokenizer([*names.values(), "<|video|>"], extra_special_tokens=names)
    ids = {f"{name}_id": tok.convert_tokens_to_ids(token) for name, token in names.items() if name != "eoa_token"}
    ids |= {"video_token_id": tok.convert_tokens_to_ids("<|video|>")}
    ids |= {"eoa_token_index": tok.convert_tokens_to_ids("<audio|>")}
    text = text_config(
        tok,
        head_dim=16,
        global_head_dim=32,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"] * (DEPTH // 2),
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(tok) + 24,
        num_kv_shared_layers=3,
        final_logit_softcapping=3.0,
    )
    vision = {"num_key_value_heads": 4, "head_dim": 8, "patch_size": 14}
    vision |= {"pooling_kernel_size": 2, "position_embedding_size": 64}
    config = hf.Gemma4Config(text_config=text, vision_config={**SMALL_VISION, **vision}, audio_config=None, **ids)
    pooled = {"patch_size": 14, "max_soft_tokens": 70, "pooling_kernel_size": 2}
    return config, hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(**pooled),
        tok,
        hf.Gemma4VideoProcessor(**pooled),
        chat_template=template("<|image|>", "<|video|>"),
        image_seq_length=4,
    )


@made
def molmo2() -> Made:
    """Frames attend to themselves in both directions; pooling indices count into the whole batch."""
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    marks = ["<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>"]
    tok = tokenizer([*names.values(), *marks, "<im_low>"], extra_special_tokens=names)
    of = {
        "image_start": "<im_start>",
        "low_res_image_start": "<low_res_im_start>",
        "image_end": "<im_end>",
        "frame_start": "<frame_start>",
        "frame_end": "<frame_end>",
    }
    ids = {f"{name}_token_id": tok.convert_tokens_to_ids(token) for name, token in of.items()}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    adapter = {"vision_feature_layer": [2, 1], "hidden_size": 32, "intermediate_size": 48, "text_hidden_size": HIDDEN}
    config = hf.Molmo2Config(
        text_config=text_config(tok, head_dim=16, additional_vocab_size=8),
        vision_config={**SMALL_VISION, **heads, "num_hidden_layers": 3, "image_size": [56, 56], "patch_size": 14},
        adapter_config={**adapter, **heads},
        image_patch_id=tok.convert_tokens_to_ids("<im_patch>"),
        **ids,
    )
    return config, hf.Molmo2Processor(
        hf.Molmo2ImageProcessor(size=SIDE, patch_size=14, max_crops=2, overlap_margins=[1, 1]),
        hf.Molmo2VideoProcessor(size=SIDE, patch_size=14, pooling_size=[2, 2]),
        tok,
        chat_template=template("<|image|>", "<|video|>"),
    )


def minicpm(config: Any, processor: Any) -> Made:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    names |= {"image_start_token": "<image>", "image_end_token": "</image>", "slice_start_token": "<slice>"}
    names |= {"slice_end_token": "</slice>", "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}
    tok = tokenizer([*names.values()], extra_special_tokens=names)
    slicing = {"scale_resolution": 112, "patch_size": 14, "max_slice_nums": 1}
    made_config = config(
        text_config={**linear_text(tok), "model_type": "qwen3_5_text"},
        vision_config={**SMALL_VISION, "num_hidden_layers": 3, "image_size": 112, "patch_size": 14},
        insert_layer_id=1,
        image_size=112,
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
    )
    image, video = hf.MiniCPMV4_6ImageProcessor(**slicing), hf.MiniCPMV4_6VideoProcessor(**slicing)
    return made_config, processor(image, video, tok, chat_template=template("<|image_pad|>", "<|video_pad|>"))


@made
def minicpmv4_6() -> Made:
    return minicpm(hf.MiniCPMV4_6Config, hf.MiniCPMV4_6Processor)


@made
def minicpmv4_7() -> Made:
    return minicpm(hf.MiniCPMV4_7Config, hf.MiniCPMV4_7Processor)


WINDOWED_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": HIDDEN,
    "fullatt_block_indexes": [1],
}


@made
def exaone4_5() -> Made:
    tok = tokenizer(QWEN)
    text = text_config(tok, head_dim=16, sliding_window=24, sliding_window_pattern=3)
    config = hf.Exaone4_5_Config(
        text_config={**text, "model_type": "exaone4"},
        vision_config={**WINDOWED_VISION, "num_key_value_heads": 2},
        **media_ids(tok),
    )
    return config, qwen2_processor(hf.Exaone4_5_Processor, tok)


@made
def lfm3_vl() -> Made:
    """Convolution, sliding and full attention by turns; the final norm is `embedding_norm`."""
    tok = tokenizer(QWEN)
    kinds = ["conv", "sliding_attention", "full_attention"] * (DEPTH // 3)
    text = text_config(tok, head_dim=16, sliding_window=24, layer_types=kinds, conv_L_cache=4, tie_word_embeddings=True)
    vision = {**SMALL_VISION, "num_key_value_heads": 2, "layer_types": ["full_attention", "full_attention"]}
    config = hf.Lfm3VlConfig(
        text_config={**text, "model_type": "lfm3"}, vision_config=vision, projector_hidden_size=32, **qwen_ids(tok)
    )
    qwen = qwen3_processor(tok)
    chat = qwen.chat_template
    return config, hf.Lfm3VlProcessor(qwen.image_processor, tok, qwen.video_processor, chat_template=chat)


@made
def hyperclovax_vision_v2() -> Made:
    """Logits are scaled after the head."""
    tok = tokenizer(QWEN)
    scales = {"logits_scaling": 0.5, "residual_multiplier": 0.7, "embedding_multiplier": 2.0}
    config = hf.HyperCLOVAXVisionV2Config(
        text_config={**text_config(tok, head_dim=16, **scales), "model_type": "hyperclovax"},
        vision_config={"model_type": "qwen2_5_vl_vision", **WINDOWED_VISION},
        **media_ids(tok),
    )
    return config, qwen2_processor(hf.HyperCLOVAXVisionV2Processor, tok)


@torch.no_grad()
def save(model_type: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a random model of `model_type` with its processor to `folder`."""
    config, processor = MAKERS[model_type]()
    torch.manual_seed(seed)
    model = hf.AutoModelForMultimodalLM.from_config(config).float()
    generator = torch.Generator().manual_seed(seed + 1)
    for key, parameter in model.named_parameters():  # trained norms are not ones; residual streams are not tiny
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in key and key.endswith("weight"):
            parameter.add_(0.3 * noise)
        elif parameter.dim() > 1:
            parameter.copy_(noise * (0.6 / parameter.shape[-1] ** 0.5))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
