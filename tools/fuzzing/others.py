"""Fuzz targets of what is read beside Wan's models.

Other families' configurations, images, a server's requests, the votes of a study and the log of a
watched run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch

from infer.serve.api.request import RequestProblem, parse_body, read_request, settle
from infer.serve.options import Served
from lightx2v_sgmd.apps.study.key import Pair, StudyKey
from lightx2v_sgmd.apps.study.questions import Question
from lightx2v_sgmd.apps.study.votes import parse_submission
from lightx2v_sgmd.apps.watch.reading import WatchedRun
from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.files.images import check_image, decode_image
from lightx2v_sgmd.files.prompts import read_images
from lightx2v_sgmd.files.run_files import METRICS
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import cogvideox, configs, sd3, sdxl
from tools.fuzzing.files import folder, json_object, named_file

SERVED = Served(
    name="tiny",
    trained=(32, 32, 9),
    fps=8.0,
    steps=4,
    shift=8.0,
    rules=SizeRules(temporal=4, spatial=8, patch=(1, 2, 2), channels=4, most_positions=1024),
)
STUDY = "0" * 16
PAIR = "1" * 16


def _checked_and_built(
    check: Callable[[Mapping[str, Any]], None],
    build: Callable[[Mapping[str, Any]], Any],
    data: bytes,
) -> None:
    config = json_object(data)
    check(config)
    with torch.device("meta"):
        build(config)


def cogvideox_transformer(data: bytes) -> None:
    """CogVideoX's network, and one that is accepted."""
    _checked_and_built(cogvideox.check_transformer, cogvideox.build_transformer, data)


def cogvideox_vae(data: bytes) -> None:
    """CogVideoX's VAE, and one that is accepted."""
    _checked_and_built(cogvideox.check_vae, cogvideox.build_vae, data)


def cogvideox_scheduler(data: bytes) -> None:
    """CogVideoX's noise schedule."""
    cogvideox.check_scheduler(json_object(data))


def sd3_transformer(data: bytes) -> None:
    """SD3's network, and one that is accepted."""
    _checked_and_built(sd3.check_transformer, sd3.build_transformer, data)


def sd3_vae(data: bytes) -> None:
    """SD3's VAE, and one that is accepted."""
    _checked_and_built(sd3.check_vae, sd3.build_vae, data)


def sd3_clip(data: bytes) -> None:
    """SD3's CLIP text encoders, and one that is accepted."""
    _checked_and_built(sd3.check_clip, sd3.build_clip, data)


def sdxl_unet(data: bytes) -> None:
    """SDXL's network, and one that is accepted."""
    _checked_and_built(sdxl.check_unet, sdxl.build_unet, data)


def sdxl_vae(data: bytes) -> None:
    """SDXL's VAE, and one that is accepted."""
    _checked_and_built(sdxl.check_vae, sd3.build_vae, data)


def sdxl_scheduler(data: bytes) -> None:
    """SDXL's noise schedule."""
    sdxl.check_scheduler(json_object(data))


def image_encoder(data: bytes) -> None:
    """The image encoder of a model that starts from images, and how it takes them."""
    config = json_object(data)
    configs.check_image_encoder(config)
    configs.check_image_processor(config)


def image(data: bytes) -> None:
    """An image that a video starts from."""
    decode_image(data, "x.png")


def prompt_images(data: bytes) -> None:
    """Prompts with an image each; ``x.png`` is one."""
    named_file("x.png", _picture("PNG"))
    for path in read_images(named_file("images.jsonl", data)):
        if path is not None:
            check_image(path)


def request(data: bytes) -> None:
    """The body of a request to the server."""
    try:
        fields = parse_body(data)
        for form in (False, True):
            settle(read_request(fields, (SERVED,), form=form), (SERVED,), 4000)
    except RequestProblem as error:
        raise UserError(str(error)) from error


def votes(data: bytes) -> None:
    """Parses votes as a rater's browser sends them."""
    study = _study()
    try:
        parse_submission(data, study)
    except ValueError as error:
        raise UserError(str(error)) from error


def run_log(data: bytes) -> None:
    """The log of a watched run, and what the page gets of it."""
    run = _run()
    (run.folder / METRICS).write_bytes(data)
    run._seen = (0, 0)
    json.dumps(run.state(), allow_nan=False)


@cache
def _study() -> StudyKey:
    pair = Pair(
        id=PAIR,
        prompt="a",
        first=f"{'3' * 16}.mp4",
        second=f"{'4' * 16}.mp4",
        a="first",
        good=None,
        source=("a", "b"),
    )
    return StudyKey(
        format_version=1,
        study=STUDY,
        names=("a", "b"),
        folders=("a", "b"),
        questions=(Question(name="quality", title="Quality", text="Which?", checked=True),),
        pairs=(pair,),
    )


@cache
def _run() -> WatchedRun:
    own = folder() / "run"
    own.mkdir(exist_ok=True)
    text = b"teacher: {path: sprites, guidance_scale: 3.0}\ndata: {prompts: sprites}\n"
    text += b"video: {height: 32, width: 32, num_frames: 9}\ntrain: {iterations: 20}\n"
    (own / "job.yaml").write_bytes(text + b"output: {dir: run}\n")
    return WatchedRun(own, load_job(own / "job.yaml"))


TARGETS = (
    cogvideox_transformer,
    cogvideox_vae,
    cogvideox_scheduler,
    sd3_transformer,
    sd3_vae,
    sd3_clip,
    sdxl_unet,
    sdxl_vae,
    sdxl_scheduler,
    image_encoder,
    image,
    prompt_images,
    request,
    votes,
    run_log,
)


def _picture(kind: str, **more: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, kind, **more)
    return buffer.getvalue()


def seeds() -> Mapping[str, tuple[bytes, ...]]:
    """Small inputs to start from, for each target."""
    text = partial(json.dumps, separators=(",", ":"))
    deep = b"[" * 5_000
    vote: dict[str, Any] = {"pair": PAIR, "left": "first", "answers": {"quality": "tie"}}
    vote |= {"seconds": 2.5, "skipped": False}
    submission = {"format_version": 1, "study": STUDY, "rater": "a", "submission": "2" * 16}
    line = {"step": 1, "seconds": 0.5, "fisher": 1.0, "grad_norm": {"student": 1.0}}
    line |= {"warnings": {"nr": "grows"}, "samples": {"brightness": 0.5}}
    huge = _picture("PNG").replace(b"\0\0\0\x14\0\0\0\x14", b"\x7f\0\0\0\x7f\0\0\0")
    image_vae: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [4],
        "norm_num_groups": 2,
    }
    given = {
        "cogvideox_transformer": {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
        },
        "cogvideox_vae": {
            "_class_name": "AutoencoderKLCogVideoX",
            "down_block_types": ["CogVideoXDownBlock3D"] * 2,
            "up_block_types": ["CogVideoXUpBlock3D"] * 2,
            "block_out_channels": [4, 8],
            "norm_num_groups": 2,
            "layers_per_block": 1,
        },
        "cogvideox_scheduler": {
            "_class_name": "CogVideoXDDIMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "snr_shift_scale": 3.0,
        },
        "sd3_transformer": {
            "sample_size": 16,
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 16,
        },
        "sd3_vae": image_vae,
        "sd3_clip": {
            "model_type": "clip_text_model",
            "architectures": ["CLIPTextModelWithProjection"],
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "vocab_size": 99,
        },
        "sdxl_unet": {
            "_class_name": "UNet2DConditionModel",
            "block_out_channels": [8, 16],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2],
            "attention_head_dim": [1, 2],
            "layers_per_block": 1,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": 8,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 60,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_num_groups": 4,
        },
        "sdxl_vae": image_vae | {"scaling_factor": 0.13025},
        "sdxl_scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
        "image_encoder": {"model_type": "clip_vision_model", "hidden_size": 8, "image_size": 28},
        "request": {"prompt": "a", "size": "32x32", "seconds": "1", "seed": 3, "model": "tiny"},
        "votes": {**submission, "votes": [vote]},
        "run_log": line,
    }
    many: dict[str, tuple[bytes, ...]] = {
        name: (text(content).encode() + b"\n", deep, b"[]") for name, content in given.items()
    }
    many["run_log"] += (b'{"step":1,"seconds":1e999,"fisher":NaN}\n', b'{"step":2}\n\xff\n{"st')
    return {
        **many,
        "image": (
            _picture("PNG"),
            _picture("JPEG"),
            _picture("WEBP"),
            huge,
            _picture("PNG")[:60],
            b"GIF89a",
        ),
        "prompt_images": (
            b'{"prompt":"a","image":"x.png"}\n',
            b'{"prompt":"a","image":"../x"}\n',
            b'{"prompt":"a","image":"\\u0000"}\n',
            b'{"prompt":"a","image":1}\n' + deep,
        ),
    }
