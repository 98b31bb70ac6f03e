"""Encoders, encoders with decoders, and models that read images or sounds alone."""

import torch
import transformers as T

from .decoders import LOCAL
from .table import D_VOCAB, IMAGE, noise, row, tiny, tokens


def with_decoder(config):
    """Both sides get tokens."""
    return tokens(6), dict(decoder_input_ids=tokens(5))


def segments(config):
    """Two segments, and an example that is padded."""
    real = torch.ones(2, 6, dtype=torch.long)
    real[1, 4:] = 0
    return tokens(6), dict(token_type_ids=torch.tensor([[0, 0, 0, 1, 1, 1]] * 2), attention_mask=real)


def image(config):
    """Two small images."""
    return None, dict(pixel_values=noise(2, 3, 8, 8))


def wave(config):
    """Two short sounds."""
    return None, dict(input_values=noise(2, 64))


def spectrogram(config):
    """Two short sounds as AST reads them."""
    return None, dict(input_values=noise(2, config.max_length, config.num_mel_bins))


def _t5gemma(cls):
    part = lambda: tiny(T.T5GemmaModuleConfig, **LOCAL)  # noqa: E731
    return cls(encoder=part(), decoder=part(), vocab_size=D_VOCAB)


def _t5gemma2(cls):
    text = tiny(T.T5Gemma2TextConfig, **LOCAL)
    vision = tiny(T.SiglipVisionConfig, IMAGE)
    encoder = T.T5Gemma2EncoderConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_index=5)
    decoder = tiny(T.T5Gemma2DecoderConfig, **LOCAL)
    return cls(encoder=encoder, decoder=decoder, image_token_index=5, vocab_size=D_VOCAB)


SEQ2SEQ = dict(inputs=with_decoder)
WAVE = dict(
    inputs=wave, reads_text=False, conv_dim=[8, 8], conv_kernel=[4, 3], conv_stride=[2, 2], num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2, num_feat_extract_layers=2,
)  # fmt: skip
SEEN = dict(inputs=image, reads_text=False, image_size=8, patch_size=4)

ROWS = [
    row("BertForMaskedLM", masked=True, inputs=segments),
    row("BertLMHeadModel", is_decoder=True),
    row("RobertaForMaskedLM", masked=True, max_position_embeddings=34),
    row("T5ForConditionalGeneration", like=SEQ2SEQ),
    row("T5ForConditionalGeneration", "v1.1: gated", like=SEQ2SEQ, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    row("MT5ForConditionalGeneration", like=SEQ2SEQ),
    row("T5WithLMHeadModel", cls="T5ForConditionalGeneration", like=SEQ2SEQ),
    row("LongT5ForConditionalGeneration", like=SEQ2SEQ, local_radius=3),
    row("SwitchTransformersForConditionalGeneration", like=SEQ2SEQ, num_experts=3, num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1, expert_capacity=64),
    row("T5GemmaForConditionalGeneration", like=SEQ2SEQ, config=_t5gemma),
    row("T5Gemma2ForConditionalGeneration", like=SEQ2SEQ, config=_t5gemma2),
    row("BartForConditionalGeneration", like=SEQ2SEQ),
    row("MBartForConditionalGeneration", like=SEQ2SEQ),
    row("BlenderbotForConditionalGeneration", like=SEQ2SEQ),
    row("PegasusForConditionalGeneration", like=SEQ2SEQ),
    row("MarianMTModel", like=SEQ2SEQ),
    row("M2M100ForConditionalGeneration", like=SEQ2SEQ),
    row("LEDForConditionalGeneration", like=SEQ2SEQ, attention_window=[4, 4]),
    row("ViTModel", like=SEEN),
    row("ViTForImageClassification", like=SEEN),
    row("DeiTModel", like=SEEN),
    row("DeiTForImageClassification", like=SEEN),
    row("ASTForAudioClassification", inputs=spectrogram, reads_text=False, max_length=24, num_mel_bins=16, patch_size=4,
        frequency_stride=4, time_stride=4),
    row("HubertModel", like=WAVE),
    row("HubertForCTC", like=WAVE),
    row("Wav2Vec2Model", like=WAVE),
    row("Wav2Vec2ForCTC", like=WAVE),
    row("Wav2Vec2ForPreTraining", like=WAVE),
]  # fmt: skip
