"""The options of a generation: the one place that names, documents and defaults them.

``lightx2v-sgmd generate``, ``load_student``, ``generate`` and docs/reference/generate.md are made
from these fields. Importing this imports no PyTorch, so that ``--help`` stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.networks.kernel_names import Attention

if TYPE_CHECKING:
    import torch

Dtype = Literal["bf16", "fp16", "fp32"]
Quantize = Literal["none", "fp8", "int8", "fp8-storage"]

Lora = WeightedLora
"""The class under the name that callers of this application use."""


def option(
    default: Any,
    meaning: str,
    *,
    kind: Any,
    flag: str = "",
    metavar: str = "",
    least: float | None = None,
) -> Any:
    """A field with everything that the command line and the reference page say of it.

    Args:
        default: The default.
        meaning: A sentence; the text of ``--help``.
        kind: The type on the command line; ``list[str]`` may be repeated.
        flag: The option's name if it is not the field's, such as ``--lora``.
        metavar: The placeholder of the value.
        least: The smallest value.
    """
    metadata = {"meaning": meaning, "kind": kind, "flag": flag, "metavar": metavar, "least": least}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """The options of an engine; every default is the fastest that is exact."""

    attention: str = option(
        "auto",
        "Attention kernel; auto takes the fastest exact one that works here. sage is approximate.",
        kind=Attention,
    )
    dtype: Dtype | torch.dtype | None = option(
        None, "Precision of the network; default bf16 on a GPU, fp32 on a CPU.", kind=Dtype
    )
    vae_dtype: Dtype | torch.dtype = option(
        "fp32",
        "Precision of the VAE. bf16 is faster and shows as banding. On a GPU, PyTorch runs fp32 "
        "convolutions in TF32 by default.",
        kind=Dtype,
    )
    device: str | torch.device | None = option(
        None,
        "Device: cpu, cuda or cuda:1; default a GPU if there is one.",
        kind=str,
        metavar="DEVICE",
    )
    quantize: Quantize = option(
        "none",
        "Quantisation of the network's blocks. fp8: weights and activations, GPU only. int8: "
        "weights. fp8-storage: weights, cast back layer by layer.",
        kind=Quantize,
    )
    max_memory_gib: float | None = option(
        None,
        "Memory limit in GiB. The next five options, --quantize and, on a CPU, --dtype are set as "
        "needed to stay below it. Default: the memory that is available, in a container within its "
        "limits.",
        kind=float,
        metavar="G",
    )
    offload: bool = option(
        False,
        "Keep the network's blocks in main memory and fetch them one ahead; GPU only.",
        kind=bool,
    )
    one_at_a_time: bool = option(
        False, "Keep only one of text encoder, network and VAE on the device at a time.", kind=bool
    )
    tile_vae: bool = option(False, "Decode in tiles, which needs less memory.", kind=bool)
    text_on_cpu: bool = option(False, "Encode prompts on the CPU.", kind=bool)
    stream_text: bool = option(
        False,
        "Encode prompts on the CPU with one block of the text encoder in memory at a time, read "
        "from its file; the embeddings are the same.",
        kind=bool,
    )
    compile: bool | None = option(
        None,
        "Compile the network's blocks; the first video is slower. On by default when all weights "
        "fit on the GPU; a CPU gains nothing.",
        kind=bool,
    )
    compile_cache: Path | None = option(
        None,
        "Folder of compiled kernels; default TORCHINDUCTOR_CACHE_DIR or the user's cache.",
        kind=Path,
        metavar="DIR",
    )
    fuse_qkv: bool = option(
        True, "Compute queries, keys and values by one matrix product.", kind=bool
    )
    text_cache: Path | None = option(
        None,
        "Folder of text embeddings (at most 4 GiB), or none; default the user's cache. Python "
        "keeps none by default.",
        kind=str,
        metavar="DIR|none",
    )
    base: str | Path | None = option(
        None,
        "Model whose VAE and text encoder are used, for weights that are a single file; default "
        "the file's folder.",
        kind=Path,
        metavar="DIR",
    )
    loras: tuple[Lora, ...] = option(
        (),
        "LoRA file or folder to add to the weights, with a strength (default 1); repeatable.",
        kind=list[str],
        flag="--lora",
        metavar="FILE[:STRENGTH]",
    )
    merge_lora: bool = option(
        False, "Merge LoRAs into the weights: faster, and rounded once.", kind=bool
    )
    skip_image_layers: bool = option(
        False,
        "Apply LoRAs of image-to-video models without the layers that only those models have.",
        kind=bool,
    )
    assume_schedule: str | None = option(
        None,
        "Schedule of weights that carry none: sgmd (4 steps), sgmd:N, or that of another trainer's "
        "students: lightx2v, self-forcing, fastwan or rcm. A teacher runs undistilled, without "
        "guidance.",
        kind=str,
        metavar="NAME[:N]",
    )


@dataclass(frozen=True)
class GenerateOptions(Options):
    """The options of a generation: those of the engine, and those of the videos."""

    seed: int = option(
        0,
        "Random seed of the first video; later videos use seed+1, seed+2, ...",
        kind=int,
        metavar="N",
        least=0,
    )
    height: int | None = option(
        None, "Height of the videos; default as trained.", kind=int, metavar="PIXELS"
    )
    width: int | None = option(
        None, "Width of the videos; default as trained.", kind=int, metavar="PIXELS"
    )
    num_frames: int | None = option(
        None, "Frames of the videos; default as trained.", kind=int, metavar="4k+1"
    )
    image: Path | None = option(
        None,
        "Image that the videos start from (PNG, JPEG or WebP), for image-to-video models; what "
        "does not fit the video's shape is cut off.",
        kind=Path,
        metavar="FILE",
    )
    fps: float | None = option(
        None,
        "Frames per second of the mp4; default that of the teacher's videos.",
        kind=float,
        metavar="RATE",
    )
    batch_size: int | None = option(
        None,
        "Number of videos of one size made together; changes them by rounding only.",
        kind=int,
        flag="--batch",
        metavar="N",
        least=1,
    )
    profile: Path | None = option(
        None,
        "File for a trace of the run (.json or .json.gz; open it in ui.perfetto.dev).",
        kind=Path,
        metavar="FILE",
    )
    ray: str | None = option(
        None,
        "Address of a Ray cluster whose machines make the videos, or local for one of this machine "
        "alone. Weights, LoRAs and images have the same path on all of them.",
        kind=str,
        metavar="ADDRESS|local",
    )


def flag_of(name: str, flag: str = "") -> str:
    """The option's name on the command line."""
    return flag or "--" + name.replace("_", "-")


def choices_of(kind: Any) -> tuple[str, ...]:
    """The values of an option that has a few, else none."""
    return get_args(kind) if getattr(kind, "__origin__", None) is Literal else ()
