"""Builds small Wan models in the published folder layout: for the bundled teacher and for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-"


def make_tokenizer(words: list[str], max_length: int = 512) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer as umT5's: whole ``words`` are one token, any other text is spelt out.

    Ids 0, 1, 2 are padding, end of sentence and unknown, as in T5; every text ends with ``</s>``.
    """
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [("▁" + word, -2.0) for word in words]
    vocabulary += [("▁", -8.0)] + [(character, -9.0) for character in CHARACTERS]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def text_encoder_config(vocabulary: int, width: int, layers: int, heads: int) -> UMT5Config:
    """A umT5 encoder's configuration at a small size."""
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // heads,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        tie_word_embeddings=False,
    )


def write_wan_folder(
    folder: Path,
    transformer: WanTransformer3DModel,
    vae: AutoencoderKLWan,
    text_encoder: UMT5EncoderModel,
    tokenizer: Any,
    shift: float,
    image_encoder: Any = None,
    image_processor: Any = None,
    **settings: bool,
) -> Path:
    """Writes the parts as ``Wan2.1-T2V-*-Diffusers`` has them, ready for ``WanPipeline``.

    Args:
        folder: The folder, which may not be there yet.
        transformer: The network.
        vae: The VAE.
        text_encoder: The text encoder.
        tokenizer: The tokenizer.
        shift: Flow shift of the scheduler.
        image_encoder: CLIP's image encoder, for a folder as ``Wan2.1-I2V-*-Diffusers`` is.
        image_processor: The image encoder's preprocessing.
        settings: Further values of ``model_index.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    for_image = transformer.config.in_channels != transformer.config.out_channels
    index: dict[str, Any] = {
        "_class_name": "WanImageToVideoPipeline" if for_image else "WanPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", type(tokenizer).__name__],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        **settings,
    }
    if image_encoder is not None:
        image_encoder.save_pretrained(folder / "image_encoder")
        image_processor.save_pretrained(folder / "image_processor")
        index["image_encoder"] = ["transformers", "CLIPVisionModel"]
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder
