"""Hostile folders of the other families: CogVideoX, SD3, SDXL, Wan2.2's experts, images, TI2V-5B.

The CLIP network of ``evaluate --clip`` is here too.

What all families share, such as the limits of JSON and of headers, is in ``hostile``; here is what
each has besides, and one of the shared kinds for each part that only it has.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.untrusted.damage import (
    RunsCode,
    both,
    deeply,
    header,
    instead,
    link,
    many_tensors,
    put,
    torch_archive,
    write,
)
from tests.untrusted.kinds import AUTO_MAP, DEEP, TOKENIZER_MAP, Base, Hostile, kinds

TRANSFORMER, SECOND, VAE = (f"{p}/config.json" for p in ("transformer", "transformer_2", "vae"))
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ONE = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


def raw(file: str, key: str, value: str) -> Callable[[Path], None]:
    """Puts a value into a JSON file that ``json`` would not write, such as 1e999."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        text = json.dumps({**content, key: "@"}).replace('"@"', value)
        (folder / file).write_text(text)

    return damage


def code_everywhere(base: Base, *files: str) -> list[Hostile]:
    """A configuration that names code, is nested deeply, or is a link, for each of the files."""
    made = []
    for file in files:
        name = file.split("/")[0]
        tokens = file.endswith("tokenizer_config.json")
        auto_map: Any = TOKENIZER_MAP if tokens else AUTO_MAP
        damages = {
            f"{name}_auto_map": put(file, auto_map=auto_map),
            f"{name}_deep": write(file, DEEP),
            f"{name}_linked": link(file, "/etc/passwd"),
        }
        made += kinds(base, True, **damages)
    return made


def pickles(base: Base, **files: str) -> list[Hostile]:
    """Pickles in the place of weights, or under their names."""
    made = {}
    for part, file in files.items():
        name = str(Path(file).with_suffix(".bin"))
        made[f"{part}_pickle"] = instead(file, name, pickle.dumps(RunsCode()))
        made[f"{part}_pickle_named_so"] = write(file, torch_archive())
        made[f"{part}_other_tensors"] = header(file, ONE, b"1234")
    return kinds(base, True, **made)


COGVIDEOX = [
    *code_everywhere(
        "cogvideox",
        TRANSFORMER,
        VAE,
        SCHEDULER,
        "text_encoder/config.json",
        "tokenizer/tokenizer_config.json",
    ),
    *pickles("cogvideox", transformer=f"transformer/{WEIGHTS}", vae=f"vae/{WEIGHTS}"),
    *kinds(
        "cogvideox",
        True,
        layers_1e9=put(TRANSFORMER, num_layers=10**9),
        heads_zero=put(TRANSFORMER, num_attention_heads=0),
        patch_zero=put(TRANSFORMER, patch_size=0),
        table=put(TRANSFORMER, sample_width=2048, sample_height=2048, sample_frames=4096),
        text_rows=put(TRANSFORMER, max_text_seq_length=10**9),
        activation=put(TRANSFORMER, activation_fn="evil.Evil"),
        scale_infinite=raw(TRANSFORMER, "spatial_interpolation_scale", "1e999"),
        image_model=put(TRANSFORMER, use_learned_positional_embeddings=True),
        vae_block=put(VAE, down_block_types=["evil.Evil"] * 3),
        vae_blocks_many=put(VAE, up_block_types=["CogVideoXUpBlock3D"] * 50_000),
        vae_channels_1e9=put(VAE, block_out_channels=[4, 4, 10**9]),
        vae_groups_zero=put(VAE, norm_num_groups=0),
        vae_scaling_nan=raw(VAE, "scaling_factor", "NaN"),
        scheduler_class=put(SCHEDULER, _class_name="os.system"),
        scheduler_betas=put(SCHEDULER, trained_betas=[0.1] * 100_000),
        scheduler_beta_large=raw(SCHEDULER, "beta_end", "1e308"),
        scheduler_steps=put(SCHEDULER, num_train_timesteps=10**9),
        scheduler_prediction=put(SCHEDULER, prediction_type="evil"),
        index_pipeline=put(INDEX, custom_pipeline="evil.py"),
        index_class=put(INDEX, vae=["evil", "Evil"]),
        header_many=many_tensors(f"vae/{WEIGHTS}", 1_000_000),
        index_outside=both(
            lambda folder: (folder / "transformer" / WEIGHTS).unlink(),
            write(
                f"transformer/{WEIGHTS}.index.json",
                '{"weight_map": {"a": "../../evil.safetensors"}}',
            ),
        ),
    ),
]
SD3 = [
    *code_everywhere(
        "sd3",
        TRANSFORMER,
        VAE,
        SCHEDULER,
        *(f"text_encoder{n}/config.json" for n in ("", "_2", "_3")),
        *(f"tokenizer{n}/tokenizer_config.json" for n in ("", "_2", "_3")),
    ),
    *pickles(
        "sd3",
        transformer=f"transformer/{WEIGHTS}",
        vae=f"vae/{WEIGHTS}",
        clip="text_encoder_2/model.safetensors",
    ),
    *kinds(
        "sd3",
        True,
        layers_1e9=put(TRANSFORMER, num_layers=10**9),
        positions_1e6=put(TRANSFORMER, pos_embed_max_size=10**6),
        dual_layers=put(TRANSFORMER, dual_attention_layers=list(range(100_000))),
        qk_norm=put(TRANSFORMER, qk_norm="evil.Evil"),
        patch_zero=put(TRANSFORMER, patch_size=0),
        projection_1e9=put(TRANSFORMER, caption_projection_dim=10**9),
        pooled_text=put(TRANSFORMER, pooled_projection_dim="20"),
        vae_block=put(VAE, down_block_types=["evil.Evil"] * 2),
        vae_channels_1e9=put(VAE, block_out_channels=[4, 10**9]),
        vae_groups_zero=put(VAE, norm_num_groups=0),
        vae_scaling_infinite=raw(VAE, "scaling_factor", "Infinity"),
        scheduler_shift=raw(SCHEDULER, "shift", "1e308"),
        scheduler_class=put(SCHEDULER, _class_name="os.system"),
        clip_activation=put("text_encoder/config.json", hidden_act="evil.Evil"),
        clip_layers_1e9=put("text_encoder/config.json", num_hidden_layers=10**9),
        clip_vocabulary_1e10=put("text_encoder_2/config.json", vocab_size=10**10),
        clip_positions_1e9=put("text_encoder_2/config.json", max_position_embeddings=10**9),
        clip_architecture=put("text_encoder/config.json", architectures=["EvilModel"]),
        clip_tokens_class=put("tokenizer_2/tokenizer_config.json", tokenizer_class="Evil"),
        t5_layers_1e8=put("text_encoder_3/config.json", num_layers=10**8),
        index_class=put(INDEX, text_encoder_2=["evil", "Evil"]),
        index_program=put(INDEX, tokenizer_3=["transformers", "evil.py"]),
        header_many=many_tensors("text_encoder/model.safetensors", 1_000_000),
        weights_linked=link("text_encoder_2/model.safetensors", "/etc/passwd"),
    ),
]
PAIR = [
    *code_everywhere("pair", SECOND),
    *pickles("pair", second=f"transformer_2/{WEIGHTS}"),
    *kinds(
        "pair",
        True,
        second_layers_1e9=put(SECOND, num_layers=10**9),
        second_class=put(SECOND, _class_name="evil.Evil"),
        second_wider=put(SECOND, num_attention_heads=8),
        boundary_two=put(INDEX, boundary_ratio=2),
        boundary_nan=raw(INDEX, "boundary_ratio", "NaN"),
        boundary_text=put(INDEX, boundary_ratio="evil.py"),
        boundary_nested=put(INDEX, boundary_ratio=[[0.9]]),
        index_second=put(INDEX, transformer_2=["evil", "Evil"]),
        second_header_many=many_tensors(f"transformer_2/{WEIGHTS}", 1_000_000),
        second_linked=link(f"transformer_2/{WEIGHTS}", "/etc/passwd"),
    ),
]
IMAGE = [
    *code_everywhere("image", "image_encoder/config.json"),
    *pickles("image", encoder="image_encoder/model.safetensors"),
    *kinds(
        "image",
        True,
        image_dim_1e12=put(TRANSFORMER, image_dim=10**12),
        key_values_1e9=put(TRANSFORMER, added_kv_proj_dim=10**9),
        channels_1e9=put(TRANSFORMER, in_channels=10**9),
        encoder_layers_1e9=put("image_encoder/config.json", num_hidden_layers=10**9),
        encoder_image_1e9=put("image_encoder/config.json", image_size=10**9),
        encoder_activation=put("image_encoder/config.json", hidden_act="evil"),
        encoder_kind=put("image_encoder/config.json", model_type="evil"),
        index_encoder=put(INDEX, image_encoder=["evil", "Evil"]),
        encoder_header_many=many_tensors("image_encoder/model.safetensors", 1_000_000),
        encoder_linked=link("image_encoder/model.safetensors", "/etc/passwd"),
    ),
]
TI2V = [
    *code_everywhere("ti2v", VAE),
    *kinds(
        "ti2v",
        True,
        vae_patch_zero=put(VAE, patch_size=0),
        vae_patch_1e9=put(VAE, patch_size=10**9),
        vae_residual_text=put(VAE, is_residual="evil.py"),
        vae_decoder_1e9=put(VAE, decoder_base_dim=10**9),
        vae_channels_1e9=put(VAE, in_channels=10**9),
        vae_factor_zero=put(VAE, scale_factor_spatial=0),
        vae_mean_many=put(VAE, latents_mean=[0.0] * 50_000),
        timesteps_text=put(INDEX, expand_timesteps="evil.py"),
        timesteps_nested=deeply(INDEX, "expand_timesteps", value=[[True]]),
    ),
]
UNET, FIRST_CLIP = "unet/config.json", "text_encoder/config.json"
SDXL = [
    *code_everywhere(
        "sdxl", UNET, SCHEDULER, "text_encoder_2/config.json", "tokenizer_2/tokenizer_config.json"
    ),
    *pickles("sdxl", unet=f"unet/{WEIGHTS}", clip="text_encoder/model.safetensors"),
    *kinds(
        "sdxl",
        True,
        unet_class=put(UNET, _class_name="evil.Evil"),
        unet_channels_1e9=put(UNET, block_out_channels=[8, 16, 10**9]),
        unet_levels_many=put(UNET, block_out_channels=[8] * 50_000),
        unet_levels_differ=put(UNET, block_out_channels=[8, 16]),
        unet_blocks_1e9=put(UNET, transformer_layers_per_block=[1, 1, 10**9]),
        unet_blocks_together=put(UNET, transformer_layers_per_block=[64] * 3, layers_per_block=16),
        unet_block=put(UNET, down_block_types=["evil.Evil"] * 3),
        unet_middle=put(UNET, mid_block_type="evil.Evil"),
        unet_heads_zero=put(UNET, attention_head_dim=[1, 2, 0]),
        unet_heads_nested=put(UNET, attention_head_dim=[[1], 2, 3]),
        unet_text_1e12=put(UNET, cross_attention_dim=10**12),
        unet_classes_1e9=put(UNET, num_class_embeds=10**9),
        unet_class_embedding=put(UNET, class_embed_type="evil.Evil"),
        unet_activation=put(UNET, act_fn="evil.Evil"),
        unet_groups_zero=put(UNET, norm_num_groups=0),
        unet_eps_nan=raw(UNET, "norm_eps", "NaN"),
        unet_no_room_for_text=put(UNET, projection_class_embeddings_input_dim=48),
        unet_images_too=put(UNET, in_channels=9),
        vae_mean=put(VAE, latents_mean=[0.0] * 4),
        vae_block=put(VAE, up_block_types=["evil.Evil"] * 2),
        vae_scaling_infinite=raw(VAE, "scaling_factor", "Infinity"),
        scheduler_class=put(SCHEDULER, _class_name="os.system"),
        scheduler_betas=put(SCHEDULER, trained_betas=[0.1] * 100_000),
        scheduler_beta_large=raw(SCHEDULER, "beta_end", "1e308"),
        scheduler_steps=put(SCHEDULER, num_train_timesteps=10**9),
        clip_layers_1e9=put(FIRST_CLIP, num_hidden_layers=10**9),
        clip_activation=put(FIRST_CLIP, hidden_act="evil.Evil"),
        index_class=put(INDEX, unet=["evil", "Evil"]),
        index_pipeline=put(INDEX, custom_pipeline="evil.py"),
        index_empty_text=put(INDEX, force_zeros_for_empty_prompt="evil.py"),
        header_many=many_tensors(f"unet/{WEIGHTS}", 1_000_000),
        unet_outside=both(
            lambda folder: (folder / "unet" / WEIGHTS).unlink(),
            write(
                f"unet/{WEIGHTS}.index.json",
                '{"weight_map": {"a": "../../evil.safetensors"}}',
            ),
        ),
        vae_linked=link(f"vae/{WEIGHTS}", "/etc/passwd"),
    ),
]
CLIP_CONFIG, CLIP_WEIGHTS = "config.json", "model.safetensors"
CLIP = [
    *code_everywhere("clip", CLIP_CONFIG, "tokenizer_config.json"),
    *pickles("clip", network=CLIP_WEIGHTS),
    *kinds(
        "clip",
        True,
        kind=put(CLIP_CONFIG, model_type="dinov2"),
        kind_that_downloads=put(CLIP_CONFIG, model_type="timm_wrapper", architecture="evil/evil"),
        text_layers_1e9=deeply(CLIP_CONFIG, "text_config", "num_hidden_layers", value=10**9),
        text_positions_1e9=deeply(
            CLIP_CONFIG, "text_config", "max_position_embeddings", value=10**9
        ),
        text_a_list=put(CLIP_CONFIG, text_config=[1]),
        vocabulary_1e10=deeply(CLIP_CONFIG, "text_config", "vocab_size", value=10**10),
        image_1e9=deeply(CLIP_CONFIG, "vision_config", "image_size", value=10**9),
        patch_zero=deeply(CLIP_CONFIG, "vision_config", "patch_size", value=0),
        activation=deeply(CLIP_CONFIG, "vision_config", "hidden_act", value="evil.Evil"),
        mean=write("preprocessor_config.json", '{"image_mean": ["a"]}'),
        std_zero=write("preprocessor_config.json", '{"image_std": [0, 0, 0]}'),
        tokenizer_deep=write("tokenizer.json", DEEP),
        header_many=many_tensors(CLIP_WEIGHTS, 1_000_000),
        weights_linked=link(CLIP_WEIGHTS, "/etc/passwd"),
    ),
]
FAMILIES = [*COGVIDEOX, *SD3, *PAIR, *IMAGE, *TI2V, *SDXL, *CLIP]
