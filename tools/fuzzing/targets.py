"""The fuzz targets: every parser of strangers' files, each as a function of bytes.

A target returns for any bytes, or raises ``UserError``; anything else is a defect. ``seeds`` gives
for each target small inputs to start from, among them those that once were answered badly.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from infer.batch.requests import make_requests
from infer.options import Lora
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.opening import bundled_teacher
from lightx2v_sgmd.files.manifest import read_manifest
from lightx2v_sgmd.files.prompts import read_prompts
from lightx2v_sgmd.files.tensors.safetensors_files import read_header, schedule_of, weight_files
from lightx2v_sgmd.files.tensors.torch_files import load_torch_file
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.networks.adapters import adapters_in
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import building, configs
from lightx2v_sgmd.untrusted.tokenizer import load_tokenizer
from tools.fuzzing import others, records
from tools.fuzzing.files import check_lines, folder, json_object, named_file

JOB = """teacher: {path: sprites, guidance_scale: 3.0}
data: {prompts: sprites}
video: {height: 32, width: 32, num_frames: 9}
train: {iterations: 20}
output: {dir: run}
"""


def job(data: bytes) -> None:
    """A job's file."""
    load_job(named_file("job.yaml", data))


def setting(data: bytes) -> None:
    """The text after ``--set``."""
    text = data.replace(b"\0", b" ").decode("utf-8", "surrogateescape")
    load_job(named_file("good.yaml", JOB.encode()), [text])


def prompts_jsonl(data: bytes) -> None:
    """Prompts with their options."""
    path = named_file("prompts.jsonl", data)
    _both(lambda: read_prompts(path), lambda: make_requests(path, 0))


def prompts_csv(data: bytes) -> None:
    """Prompts in a table."""
    read_prompts(named_file("prompts.csv", data))


def prompts_txt(data: bytes) -> None:
    """Prompts, one a line."""
    path = named_file("prompts.txt", data)
    _both(lambda: read_prompts(path), lambda: make_requests(path, 0))


def lora_option(data: bytes) -> None:
    """The text after ``--lora``."""
    Lora.parse(data.replace(b"\0", b" ").decode("utf-8", "surrogateescape"))


def tensor_header(data: bytes) -> None:
    """A safetensors file."""
    header = read_header(named_file("x.safetensors", data))
    schedule_of(header.metadata)
    adapters_in(header.metadata)


def header_text(data: bytes) -> None:
    """The JSON of a safetensors header with the right length before it."""
    tensor_header(struct.pack("<Q", len(data)) + data)


def torch_file(data: bytes) -> None:
    """A file of ``torch.save``."""
    load_torch_file(named_file("x.pth", data))


def shard_index(data: bytes) -> None:
    """The index that says which shard has which tensor."""
    named_file("model.safetensors.index.json", data)
    weight_files(folder(), "model")


def manifest(data: bytes) -> None:
    """The manifest of exported weights."""
    named_file("lightx2v_sgmd.json", data)
    read_manifest(folder())


def schedule(data: bytes) -> None:
    """The steps in the metadata of a weights file."""
    text = data.decode("utf-8", "surrogateescape")
    schedule_of({"lightx2v_sgmd": text})


def transformer(data: bytes) -> None:
    """A transformer's configuration, and the network of one that is accepted."""
    config = json_object(data)
    if config.get("_class_name") == "WanModel":
        config = wan_original.diffusers_config(config)
    configs.check_transformer(config)
    with torch.device("meta"):
        building.build_transformer(config)


def vae(data: bytes) -> None:
    """A VAE's configuration, and the network of one that is accepted."""
    config = json_object(data)
    configs.check_vae(config)
    with torch.device("meta"):
        building.build_vae(config)


def text_encoder(data: bytes) -> None:
    """A text encoder's configuration, and the network of one that is accepted."""
    config = json_object(data)
    configs.check_text_encoder(config)
    with torch.device("meta"):
        building.build_text_encoder(config)


def vision_encoder(data: bytes) -> None:
    """A vision encoder's configuration."""
    config = json_object(data)
    configs.check_vision_encoder(config)
    building.vision_config(config)


def video(data: bytes) -> None:
    """The size, length and frame rate that a model was made for."""
    configs.check_video(json_object(data))


def model_index(data: bytes) -> None:
    """The file that names the class of each part."""
    configs.check_model_index(json_object(data))


def scheduler(data: bytes) -> None:
    """A scheduler's configuration."""
    configs.check_scheduler(json_object(data))


def tokenizer(data: bytes) -> None:
    """A ``tokenizer.json``, and the tokens of a prompt by one that is accepted."""
    own = _tokenizer_folder()
    (own / "tokenizer.json").write_bytes(data)
    loaded = load_tokenizer(own)
    try:
        loaded(["a red circle", "é" * 200], truncation=True, max_length=512)
    except Exception as error:  # as ``TextEncoder.tokenize`` answers it
        raise UserError(f"cannot be used: {type(error).__name__}") from error


def tokenizer_config(data: bytes) -> None:
    """A ``tokenizer_config.json``."""
    own = _tokenizer_folder()
    source = bundled_teacher() / "tokenizer" / "tokenizer.json"
    (own / "tokenizer.json").write_bytes(source.read_bytes())
    (own / "tokenizer_config.json").write_bytes(data)
    try:
        load_tokenizer(own)
    finally:
        _tokenizer_folder.cache_clear()


@cache
def _tokenizer_folder() -> Path:
    own = folder() / "tokenizer"
    own.mkdir(exist_ok=True)
    source = bundled_teacher() / "tokenizer" / "tokenizer_config.json"
    (own / "tokenizer_config.json").write_bytes(source.read_bytes())
    return own


def _both(*calls: Callable[[], object]) -> None:
    problems: list[str] = []
    for call in calls:
        try:
            call()
        except UserError as error:
            problems.extend(error.lines)
    if problems:
        raise UserError(*problems)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        job,
        setting,
        prompts_jsonl,
        prompts_csv,
        prompts_txt,
        lora_option,
        tensor_header,
        header_text,
        torch_file,
        shard_index,
        manifest,
        schedule,
        transformer,
        vae,
        text_encoder,
        vision_encoder,
        model_index,
        video,
        scheduler,
        tokenizer,
        tokenizer_config,
        *others.TARGETS,
        *records.TARGETS,
    )
}


def run_target(name: str, data: bytes) -> bool:
    """Runs a target on one input; returns True if the input was accepted.

    Raises:
        AssertionError: a refusal has no line, too many, or a line of more than 300 characters.
    """
    try:
        TARGETS[name](data)
    except UserError as error:
        check_lines(error)
        return False
    return True


def _bundled(*names: str) -> bytes:
    return bundled_teacher().joinpath(*names).read_bytes()


def _torch_bytes() -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    return buffer.getvalue()


def _metadata(key: str, content: Mapping[str, Any]) -> bytes:
    return json.dumps({"__metadata__": {key: json.dumps(content)}}).encode()


_TENSOR = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"a":"b"}}'
_SCHEDULE = {"schedule": Schedule().to_dict()}
_MANIFEST = {
    "format_version": 1,
    "format": "diffusers",
    "method": {"name": "sgmd", "options": {}},
    "teacher": "sprites",
    **_SCHEDULE,
    "guidance_scale": 3.0,
    "video": {"height": 32, "width": 32, "num_frames": 9, "fps": 8},
    "step": 1,
    "ema": False,
    "dtype": "fp32",
    "sha256": {"a": "b"},
}
_VISION = b"""{"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2,
"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "architectures": ["Dinov2Model"]}"""
_LORA = {"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.target_modules": ["to_q"]}


@cache
def seeds() -> Mapping[str, tuple[bytes, ...]]:
    """Small inputs for each target: a good one, and those that once were answered badly."""
    deep = b"[" * 5_000
    return {
        "job": (
            JOB.encode(),
            b"a: !!int abc",
            b"a: &a [*a]",
            b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]",
            b"a: !!timestamp x",
            b'output: {dir: "a\\0b"}',
            b'a: "\\ud800"',
            b"- " * 1_000,
            deep,
            JOB.encode() + b"schedule: {base: [" + b"1," * 3_000 + b"1]}",
        ),
        "setting": (
            b"train.seed=1",
            b"data.prompts=" + deep,
            b"train.seed=" + b"9" * 5_000,
            b"train.seed=!!int abc",
            b"output.dir=" + b"x" * 300,
            b"teacher.path=~" + b"\0" * 252 + b"nobody/x",
            b"\xff=1",
            b"teacher.path=~nobody/x",
        ),
        "prompts_jsonl": (
            b'{"prompt": "a", "seed": 1, "height": 32, "name": "x"}',
            b'{"prompt": "a \\ud800 circle"}',
            b'{"prompt": "a", "name": "' + "😀".encode() * 100 + b'"}',
            b'{"prompt": "a", "name": "' + "字".encode() * 100 + b'"}',
            b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}",
            deep,
        ),
        "prompts_csv": (b'prompt,b\n"a ""x""",1\n', b"prompt\n\0\n", b'prompt\n"', b"a,a\n1,2"),
        "prompts_txt": (b"a red circle\n# no\n\n", b"a\0b\n", b"\xff", "a\u2028b".encode()),
        "lora_option": (b"x.safetensors:0.8", b":", b"x:nan", b"x" * 300, b"x:1e400"),
        "tensor_header": (struct.pack("<Q", len(_TENSOR)) + _TENSOR + b"1234", b"\xff" * 9),
        "header_text": (
            b"{}",
            _TENSOR.replace(b"[0,4]", b"[0,0]").replace(b"[1]", b"[0]"),
            deep,
            _metadata("lightx2v_sgmd", _SCHEDULE),
            _metadata("lora_adapter_metadata", _LORA),
        ),
        "torch_file": (_torch_bytes(), b"PK\x03\x04"),
        "shard_index": (b'{"weight_map": {"a": "x.safetensors"}}', deep),
        "manifest": (json.dumps(_MANIFEST).encode(), deep, b"[]"),
        "schedule": (json.dumps(_SCHEDULE).encode(), deep),
        "transformer": (
            _bundled("transformer", "config.json"),
            b'{"_class_name": "WanModel", "dim": 48, "num_heads": 4, "num_layers": 1, '
            b'"ffn_dim": 64, "in_dim": 4, "out_dim": 4}',
        ),
        "vae": (_bundled("vae", "config.json"), b"{}"),
        "text_encoder": (_bundled("text_encoder", "config.json"),),
        "vision_encoder": (_VISION, _VISION.replace(b'["Dinov2Model"]', b"true")),
        "model_index": (_bundled("model_index.json"),),
        "video": (_bundled("video.json"),),
        "scheduler": (_bundled("scheduler", "scheduler_config.json"),),
        "tokenizer": (_bundled("tokenizer", "tokenizer.json"), deep),
        "tokenizer_config": (_bundled("tokenizer", "tokenizer_config.json"),),
        **others.seeds(),
        **records.seeds(),
    }
