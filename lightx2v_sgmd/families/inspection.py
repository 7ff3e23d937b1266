"""Decides what a file or folder of weights is, and says it.

One function, ``inspect_weights``, answers for a network, a LoRA, a text encoder, a VAE, a model's
folder, an export and a training run: who wrote it, under which names, of which size and types, for
which steps, and what is missing to run it. It reads headers and small files alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import LOW_NOISE, boundary_of
from lightx2v_sgmd.families.hub_configs import known_hub_ids
from lightx2v_sgmd.families.lora.keys import is_lora_key, lora_kind, programs_of, unsupported_kind
from lightx2v_sgmd.families.lora.reading import alpha_source, open_lora
from lightx2v_sgmd.families.network_size import config_from, shapes_of, size_of
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.sources import (
    ORIGINAL_EXPERTS,
    Part,
    is_whole_model,
    network_in,
)
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.model import BUNDLED, WEIGHT_FILES, WanModel, open_wan
from lightx2v_sgmd.families.wan.variants import variant_of
from lightx2v_sgmd.files.dtypes import FILE_NAMES, OPTIONS
from lightx2v_sgmd.files.lora_folder import lora_file_in
from lightx2v_sgmd.files.manifest import FILE_NAME, Manifest, read_manifest
from lightx2v_sgmd.files.safetensors_files import (
    METADATA_KEY,
    SHARD,
    Header,
    read_header,
    refuse_outside_links,
    schedule_of,
)
from lightx2v_sgmd.files.tensor_reader import WholeTensors
from lightx2v_sgmd.interpolants import FlowMatching
from lightx2v_sgmd.job.schema import load_job
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError, shortened

_SHOWN: Final = 4


@dataclass
class Inspection:
    """What a file or folder of weights is.

    Attributes:
        path: The file or folder.
        kind: ``network``, ``LoRA``, ``text encoder``, ``VAE``, ``model``, ``export``, ``training
            run``, ``checkpoint`` or ``unknown``.
        facts: What is known, by label, in the order in which it is printed.
        missing: What is missing to generate with it; one line for each thing.
    """

    path: Path
    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The inspection as text, a fact a line."""
        told = [f"{self.path}: {self.kind}", *(f"  {k}: {v}" for k, v in self.facts.items())]
        return told + [f"  missing: {line}" for line in self.missing]

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON holds it."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            **{label.replace(" ", "_"): value for label, value in self.facts.items()},
            "missing": self.missing,
        }


def inspect_weights(path: str | Path, base: str | Path | None = None) -> Inspection:
    """Says what a file or folder of weights is.

    Args:
        path: The file or folder.
        base: The model that it is a variant of; default: whichever known model it fits.

    Raises:
        UserError: the path does not exist, or a file is damaged or not to be trusted.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, base)
    if not path.is_file():
        raise UserError(f"{path}: does not exist; give a file or a folder of weights")
    if path.suffix not in WEIGHT_FILES:
        endings = ", ".join(WEIGHT_FILES)
        raise UserError(f"{path}: is not a file of weights; give a folder, or a {endings} file")
    return _files(path, [path], base, None)


def _folder(folder: Path, base: str | Path | None) -> Inspection:
    if (folder / "checkpoints").is_dir():
        return _run(Inspection(folder, "training run"), folder)
    if (folder / "trainer.json").is_file():
        return _run(Inspection(folder, "checkpoint"), folder)
    manifest = read_manifest(folder)
    if is_whole_model(folder) or (folder / "model_index.json").is_file():
        return _model(folder, manifest)
    lora = lora_file_in(folder)
    if lora is not None and any(is_lora_key(name) for name in read_header(lora).tensors):
        return _exported(_files(folder, [lora], base, None), manifest)
    if all((folder / name).is_dir() for name in ORIGINAL_EXPERTS):
        return _exported(_expert_folders(folder, base), manifest)
    files, config = network_in(folder)
    return _exported(_files(folder, files, base, config), manifest)


def _run(found: Inspection, folder: Path) -> Inspection:
    """Adds what the job of a run or a checkpoint says."""
    facts = found.facts
    facts["written by"] = "lightx2v-sgmd"
    checkpoints = sorted(folder.glob("checkpoints/step_*"))
    if (folder / "checkpoints").is_dir():
        facts["checkpoints"] = _some([path.name for path in checkpoints]) or "none yet"
    files = [path / "job.yaml" for path in (folder, *reversed(checkpoints))]
    job_file = next((file for file in files if file.is_file()), None)
    if job_file is None:
        found.missing.append("its job.yaml")
    else:
        job = load_job(job_file)
        adapters, video = job.student.adapters, job.video
        facts["method"], facts["teacher"] = job.method.name, job.teacher.path
        facts["student"] = "all weights" if adapters is None else f"LoRA of rank {adapters.rank}"
        facts["trained for"] = f"{video.height}x{video.width}, {video.num_frames} frames"
        facts["schedule"] = f"{_steps(job.schedule)} (job.yaml)"
    facts["next"] = f"lightx2v-sgmd export {folder} ..."
    return found


def _model(folder: Path, manifest: Manifest | None) -> Inspection:
    model = open_model(folder)
    found = Inspection(folder, "model", {"layout": model.source.layout})
    boundary = boundary_of(model.experts)
    if boundary is not None:
        names = " and ".join(expert.name for expert in model.experts)
        found.facts["experts"] = f"{names}, which meet at time {boundary:g}"
    for expert in model.experts:
        if not expert.model.source.has("transformer"):
            found.missing.append(f"the weights of the {_network_name(expert.name)}")
    parts: tuple[Part, ...] = ("vae", "text_encoder")
    for part in parts:
        if not model.source.has(part):
            found.missing.append(f"the weights of the {part.replace('_', ' ')}")
    first, *others = model.experts
    if first.model.source.has("transformer"):
        if isinstance(model, WanModel):
            weights = first.model.transformer_weights()
            _network_facts(found, weights, model.transformer_config)
        else:
            _other_network_facts(found, model)
    for expert in others:
        if expert.model.source.has("transformer"):
            header, expected = _header_and_shapes(expert.model)
            _differences(found, header, expected, f" in the {_network_name(expert.name)}")
    return _exported(found, manifest)


def _expert_folders(folder: Path, base: str | Path | None) -> Inspection:
    """Two experts' folders without the model's other parts, as ``export --format wan`` has them."""
    refuse_outside_links(folder, [folder / name for name in ORIGINAL_EXPERTS])
    (files, config), (others, _) = (network_in(folder / name) for name in ORIGINAL_EXPERTS)
    found = _files(folder, files, base, config)
    if config is not None:
        header = WholeTensors(others, wan_original.transformer_names).header
        _differences(found, header, shapes_of(config), f" in the {_network_name(LOW_NOISE)}")
    found.facts["experts"] = "high-noise and low-noise"
    return found


def _network_name(expert: str) -> str:
    return f"{expert} expert" if expert else "transformer"


def _header_and_shapes(model: Model) -> tuple[Header, Mapping[str, tuple[int, ...]]]:
    return model.transformer_weights().header, model.transformer_shapes()


def _other_network_facts(found: Inspection, model: Model) -> None:
    """Adds the facts of a network that is not Wan's, whose configuration is at hand."""
    header, expected = _header_and_shapes(model)
    count = sum(prod(info.shape) for info in header.tensors.values())
    found.facts["names"] = "diffusers"
    found.facts["size"] = (
        f"{model.num_blocks} layers of width {model.width}, {count:,} weights ({model.family})"
    )
    found.facts["types"] = _types(header)
    _schedule_fact(found, header, isinstance(model.interpolant, FlowMatching))
    _differences(found, header, expected)


def _exported(found: Inspection, manifest: Manifest | None) -> Inspection:
    """Adds what an export's manifest says."""
    if manifest is None:
        return found
    facts = {
        "written by": "lightx2v-sgmd",
        "format": f"{manifest.format}, {manifest.dtype}",
        "method": str(manifest.method.get("name")),
        "teacher": manifest.teacher,
        "trained for": f"{manifest.video.height}x{manifest.video.width}, "
        f"{manifest.video.num_frames} frames",
    }
    found.facts = facts | found.facts
    found.facts["schedule"] = f"{_steps(manifest.schedule)} ({FILE_NAME})"
    found.missing = [line for line in found.missing if not line.startswith("a schedule")]
    found.kind = f"export of a {found.kind}" if found.kind != "model" else "export of a whole model"
    return found


def _files(
    path: Path, files: list[Path], base: str | Path | None, config: dict[str, Any] | None
) -> Inspection:
    """One network's or one LoRA's files."""
    pickled = files[0].suffix != ".safetensors"
    header = WholeTensors(files).header if pickled else read_header(files[0])
    names = list(header.tensors)
    if any(is_lora_key(name) for name in names):
        return _lora(path, files[0], base) if not pickled else _pickled_lora(path, header)
    if not names:
        return Inspection(path, "unknown", {"holds": "no tensors"})
    tail = {name.rsplit(".", 2)[-2] for name in names if "." in name}
    if any("relative_attention_bias" in n or "pos_embedding.embedding" in n for n in names):
        return _other(path, "text encoder", header, "T5 or umT5, for the prompts; no student")
    if any(re.search(r"decoder\.(up_blocks|upsamples)\.", name) for name in names):
        return _other(path, "VAE", header, "for decoding latents; no student")
    reader = WholeTensors(files, wan_original.transformer_names)
    if "patch_embedding.weight" not in reader.header.tensors:
        shown = ", ".join(map(shortened, names[:_SHOWN]))
        shard = SHARD.fullmatch(path.name)
        if shard is not None and int(shard[3]) > 1:
            told = f"one of {int(shard[3])} shards of a network; give the folder {path.parent}"
            return Inspection(path, "part of a network", {"holds": told, "types": _types(header)})
        kinds = f"{len(names)} tensors, such as {shown}; {len(tail)} kinds of layers"
        return Inspection(path, "unknown", {"holds": kinds, "types": _types(header)})
    found = Inspection(path, "network")
    model = open_wan(base) if base is not None else None
    _network_facts(found, reader, config or (model.transformer_config if model else None), names)
    found.missing.append("VAE, text encoder and tokenizer: add --base MODEL")
    return found


def _other(path: Path, kind: str, header: Header, use: str) -> Inspection:
    return Inspection(path, kind, {"use": use, "types": _types(header)})


def _network_facts(
    found: Inspection,
    reader: WholeTensors,
    config: Mapping[str, Any] | None,
    markers: Iterable[str] = (),
) -> None:
    """Adds names, size, types, schedule and what does not fit of a network's weights."""
    stored, header = list(reader.stored_names.values()), reader.header
    prefix = wan_original.transformer_prefix(stored)
    facts = found.facts
    origin = _origin([*stored, *markers], prefix, reader.convention or "")
    if origin is not None:
        facts["program"] = origin
    facts["names"] = _naming(reader, prefix)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    facts["size"] = size_of(shapes)
    facts["types"] = reader.convention or _types(header)
    _schedule_fact(found, header)
    config = config or config_from(shapes)
    if config is None:
        found.missing.append("weights of the first block or the embeddings; the file is a part")
        return
    _differences(found, header, shapes_of(config))


def _differences(
    found: Inspection,
    header: Header,
    expected: Mapping[str, tuple[int, ...]],
    where: str = "",
) -> None:
    """Adds the weights that a network lacks, has too much, or has in other shapes.

    Args:
        found: The inspection, which is changed.
        header: The network's weights.
        expected: The shapes of the weights that its configuration describes.
        where: Text after the names of the facts: the expert that the network is.
    """
    facts = found.facts
    shapes = {name: info.shape for name, info in header.tensors.items()}
    strange = [name for name in shapes if name not in expected]
    variant = variant_of(strange)
    if variant is not None:
        facts[f"variant{where}"] = f"{variant}, which is not supported"
    elif strange:
        facts[f"unexpected{where}"] = _some(strange)
    absent = [name for name in expected if name not in shapes]
    if absent:
        found.missing.append(f"{len(absent)} weights{where}: {_some(absent)}")
    other = [name for name in shapes if name in expected and shapes[name] != expected[name]]
    if other:
        facts[f"other shapes than the configuration's{where}"] = _some(other)


def _origin(stored: list[str], prefix: str, convention: str) -> str | None:
    """The program that weights look to be from; None where only the names of layers tell."""
    if not {"generator", "generator_ema"}.isdisjoint(prefix.split(".")):
        return "a trainer of few-step students (CausVid, Self-Forcing and their kin)"
    if prefix.split(".")[0] in ("net", "net_ema"):
        return "rCM or another trainer that saves `net`"
    if any(name.endswith(".comfy_quant") for name in stored):
        return "ComfyUI of December 2025 or newer"
    if ".scale_weight" in convention:
        return "ComfyUI before December 2025"
    if ".weight_scale" in convention:
        return "LightX2V, or ComfyUI"
    return "ComfyUI" if prefix.endswith("diffusion_model.") else None


def _naming(reader: WholeTensors, prefix: str) -> str:
    ours = any("condition_embedder." in name for name in reader.stored_names.values())
    layout = "diffusers" if ours else "original (Wan2.1, LightX2V)"
    if prefix.endswith("diffusion_model."):
        return f"{layout}, behind ComfyUI's prefix {prefix!r}"
    return f"{layout}, behind {shortened(prefix)!r}" if prefix else layout


def _lora(path: Path, file: Path, base: str | Path | None) -> Inspection:
    header = read_header(file)
    found = Inspection(path, "LoRA", {"names": programs_of(header.tensors)})
    found.facts["types"] = _types(header)
    other = unsupported_kind(header.tensors)
    if other is not None:
        found.kind = f"{other[0].removeprefix('an ').removeprefix('a ')} file"
        found.facts["refused"] = f"{found.kind}s are not supported ({shortened(other[1])})"
        return found
    refusals = []
    names = [BUNDLED, *known_hub_ids("WanTransformer3DModel")] if base is None else [str(base)]
    for name in names:
        try:
            model: WanModel = open_wan(name)
            lora = open_lora(file, model.transformer_shapes(), skip_image_layers=True)
        except UserError as error:
            refusals.append(str(error).removeprefix(f"lora: {file}: "))
            continue
        found.facts["fits"] = name
        ranks = Counter(lora.rank(layer) for layer in lora.layers)
        counts = ", ".join(f"{rank}" for rank, _ in ranks.most_common(_SHOWN))
        blocks = {m[1] for n in lora.layers if (m := re.match(r"blocks\.(\d+)\.", n))}
        found.facts["layers"] = f"{len(lora.layers)} in {len(blocks)} blocks, rank {counts or '-'}"
        if lora.differences:
            found.facts["differences"] = f"of {len(lora.differences)} other weights"
        found.facts["alpha"] = alpha_source(lora)
        if lora.image_layers:
            count = f"{len(lora.image_layers)} tensors"
            found.facts["variant"] = f"{count} of image-to-video layers (--skip-image-layers)"
        break
    else:
        found.facts["refused"] = shortened(refusals[-1], 300)
    _schedule_fact(found, header)
    found.missing.append("a base model: give it as --weights, and this as --lora")
    return found


def _pickled_lora(path: Path, header: Header) -> Inspection:
    facts = {"names": programs_of(header.tensors), "types": _types(header)}
    facts["refused"] = "a LoRA is read from a .safetensors file alone; convert it first"
    return Inspection(path, "LoRA", facts)


def lora_at(path: Path) -> str | None:
    """What kind of LoRA stands at a path, in words; None if none does, or if it cannot be read.

    Args:
        path: A file, or the folder of one.
    """
    file = path if path.is_file() else lora_file_in(path)
    if file is None or file.suffix != ".safetensors":
        return None
    try:
        return lora_kind(read_header(file).tensors)
    except UserError:
        return None


def _schedule_fact(found: Inspection, header: Header, sgmd: bool = True) -> None:
    """Adds the schedule that weights carry, or says that they lack one.

    Args:
        found: The inspection, which is changed.
        header: The weights.
        sgmd: True if the network can take the steps of SGMD's students, so that they may be
            assumed.
    """
    schedule = schedule_of(header.metadata)
    if schedule is not None:
        found.facts["schedule"] = f"{_steps(schedule)} (metadata {METADATA_KEY!r})"
    elif sgmd:
        found.missing.append("a schedule: add --assume-schedule sgmd if it is that of SGMD")
    else:
        found.missing.append("a schedule, which exports of `lightx2v-sgmd export` have")


def _steps(schedule: Schedule) -> str:
    steps = "/".join(f"{t:.0f}" for t in schedule.timesteps.tolist())
    return f"{steps}, shift {schedule.shift:g}, {schedule.solver}"


def _types(header: Header) -> str:
    options = {FILE_NAMES[dtype]: option for option, dtype in OPTIONS.items()}
    counts = Counter(info.dtype for info in header.tensors.values())
    return ", ".join(f"{n} in {options.get(kind, kind)}" for kind, n in counts.most_common())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shortened, names[:_SHOWN])) + more
