"""Models that read images or sounds beside text; their own pass runs the towers too."""

from collections.abc import Callable
from contextlib import contextmanager
from unittest.mock import patch

import torch
import transformers as T
from torch import nn
from transformers import PretrainedConfig

from .decoders import LOCAL
from .experts import LLAMA4
from .mixers import DELTA
from .table import D_MODEL, D_VOCAB, IMAGE, PLACEHOLDER, SOUND, Row, noise, tiny, tokens

IDS = dict(image_token_id=5, video_token_id=6, audio_token_id=7)


def _row(architecture: str, config: Callable, inputs: Callable, **more: object) -> Row:
    return Row(architecture, config=config, inputs=inputs, **more)


def _with_image(
    text: type, vision: type, *, text_own=None, vision_own=None, **top
) -> Callable[[type], PretrainedConfig]:
    def config(cls):
        parts = dict(
            text_config=tiny(text, **(text_own or {})), vision_config=tiny(vision, IMAGE, **(vision_own or {}))
        )
        return cls(**parts, **top)

    return config


def _with_sound(text: type, audio: type, *, audio_own=None, **top) -> Callable[[type], PretrainedConfig]:
    def config(cls):
        return cls(text_config=tiny(text), audio_config=tiny(audio, SOUND, **(audio_own or {})), **top)

    return config


def _image(n: int, *more_shape: int, **further: object):
    """One small image an example, which is `n` tokens."""
    shape = (2, *more_shape, 3, 8, 8)
    return lambda config: (tokens(placeholders=n), dict(pixel_values=noise(*shape), **further))


def _patches(width: int, n: int = 4):
    """An image an example, as rows of patches and their grid."""

    def inputs(config):
        ids = tokens(placeholders=n)
        grid = torch.tensor([[1, 2, 2]] * 2)
        given = dict(pixel_values=noise(8, width), image_grid_thw=grid)
        return ids, given if n == 1 else dict(**given, mm_token_type_ids=(ids == PLACEHOLDER).int())

    return inputs


def _placed_patches(n: int):
    """An image an example, as four patches and their places."""

    def inputs(config):
        ids, places = tokens(placeholders=n), torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1]]] * 2)
        given = dict(pixel_values=noise(2, 4, 48), image_position_ids=places)
        return ids, dict(**given, mm_token_type_ids=(ids == PLACEHOLDER).int())

    return inputs


def _sound(name: str, n: int, *shape: int, **further: object):
    return lambda config: (tokens(placeholders=n), {name: noise(2, *shape), **further})


def _qwen(text: type, vision: type, *, text_own=None, vision_own=None) -> Callable:
    rope = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 1]))
    top = dict(image_token_id=5, video_token_id=6)
    return _with_image(text, vision, text_own={**rope, **(text_own or {})}, vision_own=vision_own, **top)


def _emu3(cls):
    words = {"<image>": PLACEHOLDER, "<|extra_200|>": 9} | {f"<|visual token {i:06d}|>": 10 + i for i in range(16)}
    codes = T.Emu3VQVAEConfig(
        codebook_size=16, embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1,
        attn_resolutions=[4], hidden_size=32, num_attention_heads=1,
    )  # fmt: skip
    return cls(text_config=tiny(T.Emu3TextConfig), vq_config=codes, vocabulary_map=words)


def _florence2(cls):
    vision = T.Florence2VisionConfig(
        depths=[1, 1], patch_size=[3, 3], patch_stride=[2, 2], patch_padding=[1, 1], patch_prenorm=[False, True],
        embed_dim=[8, 16], num_heads=[2, 2], num_groups=[2, 2], window_size=4, projection_dim=D_MODEL,
        max_position_embeddings=10,
    )  # fmt: skip
    return cls(text_config=tiny(T.BartConfig), vision_config=vision, image_token_id=PLACEHOLDER)


def _florence2_inputs(config):
    ids, given = _image(5)(config)
    return ids, {**given, "decoder_input_ids": tokens(5)}


GEMMA4 = dict(**LOCAL, num_global_key_value_heads=None, num_kv_shared_layers=0)


def _gemma4_text(cls):
    return tiny(cls, **GEMMA4)


def _gemma4(cls):
    vision = tiny(T.Gemma4VisionConfig, IMAGE, global_head_dim=8, position_embedding_size=16, pooling_kernel_size=2)
    return cls(text_config=_gemma4_text(T.Gemma4TextConfig), vision_config=vision, audio_config=None, **IDS)


def _gemma4_unified(cls):
    vision = tiny(
        T.Gemma4UnifiedVisionConfig, IMAGE, mm_embed_dim=16, mm_posemb_size=16, output_proj_dims=16, model_patch_size=4,
        pooling_kernel_size=1,
    )  # fmt: skip
    audio = tiny(T.Gemma4UnifiedAudioConfig, SOUND)
    return cls(text_config=tiny(T.Gemma4UnifiedTextConfig, **LOCAL), vision_config=vision, audio_config=audio, **IDS)


def _gemma3n(cls):
    text = tiny(
        T.Gemma3nTextConfig, num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2,
        intermediate_size=[36] * 4, num_kv_shared_layers=2, altup_num_inputs=2, altup_active_idx=0,
        activation_sparsity_pattern=[0.5, 0, 0, 0],
    )  # fmt: skip
    audio = T.Gemma3nAudioConfig(
        hidden_size=16, conf_num_hidden_layers=1, conf_num_attention_heads=2, sscp_conv_channel_size=[4, 4], vocab_size=4,
        vocab_offset=D_VOCAB + 4,
    )  # fmt: skip
    vision = T.Gemma3nVisionConfig(hidden_size=16, vocab_size=4, vocab_offset=D_VOCAB)
    return cls(text_config=text, audio_config=audio, vision_config=vision)


@contextmanager
def _without_vision():
    """Its vision tower comes from another library, timm; a text pass runs without."""
    import transformers.models.gemma3n.modeling_gemma3n as module

    class Stub:
        @staticmethod
        def from_config(config, **options):
            return (
                nn.Linear(1, 1)
                if isinstance(config, T.Gemma3nVisionConfig)
                else T.AutoModel.from_config(config, **options)
            )

    with patch.object(module, "AutoModel", Stub):
        yield


def _muse(cls):
    vision = tiny(T.MuseGlimmerVisionConfig, IMAGE, pos_emb_height=4, pos_emb_width=4, max_position_embeddings=16)
    text = tiny(T.MuseGlimmerTextConfig, **LOCAL)
    top = dict(out_hidden_size=64, projector_hidden_size=16, image_token_id=5, video_token_id=6)
    return cls(text_config=text, vision_config=vision, **top)


LLAVA = dict(image_token_index=PLACEHOLDER)
GRID = dict(image_grid_pinpoints=[[8, 8]])
WHOLE = dict(image_sizes=torch.tensor([[8, 8], [8, 8]]))
DEEP = dict(deepstack_visual_indexes=[0])
FLAMINGO = _with_sound(T.Qwen2Config, T.AudioFlamingo3EncoderConfig, audio_token_id=PLACEHOLDER)
HEARD = dict(input_features_mask=torch.ones(2, 40, dtype=torch.long))
LLAMA4_VISION = dict(
    intermediate_size=64, projector_input_dim=16, projector_output_dim=16, vision_output_dim=16, pixel_shuffle_ratio=0.5
)

ROWS = [
    _row("LlavaForConditionalGeneration", _with_image(T.LlamaConfig, T.CLIPVisionConfig, **LLAVA), _image(4)),
    _row("LlavaNextForConditionalGeneration", _with_image(T.LlamaConfig, T.CLIPVisionConfig, **LLAVA, **GRID),
         _image(10, 2, **WHOLE)),
    _row("LlavaOnevisionForConditionalGeneration",
         _with_image(T.Qwen2Config, T.SiglipVisionConfig, **LLAVA, **GRID, video_token_index=6), _image(10, 2, **WHOLE)),
    _row("Gemma3ForConditionalGeneration",
         _with_image(T.Gemma3TextConfig, T.SiglipVisionConfig, text_own=LOCAL, mm_tokens_per_image=4, **LLAVA,
                     boi_token_index=6, eoi_token_index=7), _image(4)),
    _row("Mistral3ForConditionalGeneration",
         _with_image(T.MistralConfig, T.PixtralVisionConfig, **LLAVA, spatial_merge_size=1), _image(4, **WHOLE)),
    _row("Idefics3ForConditionalGeneration",
         _with_image(T.LlamaConfig, T.Idefics3VisionConfig, image_token_id=PLACEHOLDER, scale_factor=2), _image(1, 1)),
    _row("Llama4ForConditionalGeneration",
         _with_image(T.Llama4TextConfig, T.Llama4VisionConfig, text_own=LLAMA4, vision_own=LLAMA4_VISION, **LLAVA),
         _image(1)),
    _row("Qwen2_5_VLForConditionalGeneration", _qwen(T.Qwen2_5_VLTextConfig, T.Qwen2_5_VLVisionConfig), _patches(48)),
    _row("Qwen3VLForConditionalGeneration", _qwen(T.Qwen3VLTextConfig, T.Qwen3VLVisionConfig, vision_own=DEEP), _patches(48)),
    _row("Qwen3VLMoeForConditionalGeneration",
         _qwen(T.Qwen3VLMoeTextConfig, T.Qwen3VLMoeVisionConfig, vision_own=DEEP), _patches(48)),
    _row("Qwen3_5ForConditionalGeneration", _qwen(T.Qwen3_5TextConfig, T.Qwen3_5VisionConfig, text_own=DELTA), _patches(48)),
    _row("Qwen3_5MoeForConditionalGeneration",
         _qwen(T.Qwen3_5MoeTextConfig, T.Qwen3_5MoeVisionConfig, text_own=DELTA), _patches(48)),
    _row("Glm4vForConditionalGeneration", _qwen(T.Glm4vTextConfig, T.Glm4vVisionConfig), _patches(48)),
    _row("MuseGlimmerForConditionalGeneration", _muse, _patches(96, 1)),
    _row("Emu3ForConditionalGeneration", _emu3, _image(20, **WHOLE)),
    _row("Florence2ForConditionalGeneration", _florence2, _florence2_inputs),
    _row("Gemma4ForCausalLM", _gemma4_text, None),
    _row("Gemma4ForConditionalGeneration", _gemma4, _placed_patches(1)),
    _row("Gemma4UnifiedForConditionalGeneration", _gemma4_unified, _placed_patches(4)),
    _row("Gemma3nForConditionalGeneration", _gemma3n, None, making=_without_vision),
    _row("Qwen2AudioForConditionalGeneration",
         _with_sound(T.Qwen2Config, T.Qwen2AudioEncoderConfig, audio_token_index=PLACEHOLDER),
         _sound("input_features", 10, 8, 40, feature_attention_mask=torch.ones(2, 40, dtype=torch.long))),
    _row("AudioFlamingo3ForConditionalGeneration", FLAMINGO, _sound("input_features", 10, 8, 40, **HEARD)),
    _row("MusicFlamingoForConditionalGeneration", FLAMINGO, _sound("input_features", 10, 8, 40, **HEARD)),
    _row("GlmAsrForConditionalGeneration",
         _with_sound(T.LlamaConfig, T.GlmAsrEncoderConfig, audio_token_id=PLACEHOLDER),
         _sound("input_features", 5, 8, 40, **HEARD)),
]  # fmt: skip
