"""Decides what a file or folder of weights is, and says it.

One function, ``inspect_weights``, answers for a network, a LoRA, a text encoder, a VAE, a model's
folder, an export and a training run: who wrote it, under which names, of which size and types, for
which steps, and what is missing to run it. It reads headers and small files alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightx2v_sgmd.families.experts import LOW_NOISE, boundary_of
from lightx2v_sgmd.families.inspection.facts import (
    SHOWN,
    Inspection,
    size_text,
    some_of,
    steps_text,
    types_text,
)
from lightx2v_sgmd.families.inspection.loras import lora_facts, pickled_lora_facts
from lightx2v_sgmd.families.inspection.network_size import (
    shapes_of,
)
from lightx2v_sgmd.families.inspection.networks import (
    add_differences,
    add_network_facts,
    add_other_network_facts,
    header_and_shapes,
    network_name,
)
from lightx2v_sgmd.families.inspection.other_networks import lone_network, other_family
from lightx2v_sgmd.families.lora.keys import is_lora_key
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.sources.parts import Part
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import WEIGHT_FILES, open_wan
from lightx2v_sgmd.families.wan.sources import ORIGINAL_EXPERTS, is_whole_model, network_in
from lightx2v_sgmd.files.lora_folder import lora_file_in
from lightx2v_sgmd.files.manifest import FILE_NAME, Manifest, read_manifest
from lightx2v_sgmd.files.run_files import is_checkpoint, is_run
from lightx2v_sgmd.files.tensors.safetensors_files import (
    SHARD,
    Header,
    read_header,
    refuse_outside_links,
)
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.errors import UserError, shortened


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
    if is_run(folder):
        return _run(Inspection(folder, "training run"), folder)
    if is_checkpoint(folder):
        return _run(Inspection(folder, "checkpoint"), folder)
    manifest = read_manifest(folder)
    if is_whole_model(folder) or (folder / "model_index.json").is_file():
        return _model(folder, manifest)
    lora = lora_file_in(folder)
    if lora is not None and any(is_lora_key(name) for name in read_header(lora).tensors):
        if base is None and manifest is not None and Path(manifest.teacher).is_dir():
            base = manifest.teacher
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
    if is_run(folder):
        facts["checkpoints"] = some_of([path.name for path in checkpoints]) or "none yet"
    files = [path / "job.yaml" for path in (folder, *reversed(checkpoints))]
    job_file = next((file for file in files if file.is_file()), None)
    if job_file is None:
        found.missing.append("its job.yaml")
    else:
        job = load_job(job_file)
        adapters, video = job.student.adapters, job.video
        facts["method"], facts["teacher"] = job.method.name, job.teacher.path
        facts["student"] = "all weights" if adapters is None else f"LoRA of rank {adapters.rank}"
        facts["trained for"] = size_text(video.height, video.width, video.frames)
        if job.schedule.shift is not None and job.schedule.solver is not None:
            facts["schedule"] = f"{steps_text(job.steps)} (job.yaml)"
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
            found.missing.append(f"the weights of the {network_name(expert.name)}")
    parts: tuple[Part, ...] = ("vae", "text_encoder")
    for part in parts:
        if not model.source.has(part):
            found.missing.append(f"the weights of the {part.replace('_', ' ')}")
    first, *others = model.experts
    if first.model.source.has("transformer"):
        if isinstance(model, WanModel):
            weights = first.model.transformer_weights()
            add_network_facts(found, weights, model.transformer_config)
        else:
            add_other_network_facts(found, model)
    for expert in others:
        if expert.model.source.has("transformer"):
            header, expected = header_and_shapes(expert.model)
            add_differences(found, header, expected, f" in the {network_name(expert.name)}")
    return _exported(found, manifest)


def _expert_folders(folder: Path, base: str | Path | None) -> Inspection:
    """Two experts' folders without the model's other parts, as ``export --format wan`` has them."""
    refuse_outside_links(folder, [folder / name for name in ORIGINAL_EXPERTS])
    (files, config), (others, _) = (network_in(folder / name) for name in ORIGINAL_EXPERTS)
    found = _files(folder, files, base, config)
    if config is not None:
        header = WholeTensors(others, wan_original.transformer_names).header
        add_differences(found, header, shapes_of(config), f" in the {network_name(LOW_NOISE)}")
    found.facts["experts"] = "high-noise and low-noise"
    return found


def _exported(found: Inspection, manifest: Manifest | None) -> Inspection:
    """Adds what an export's manifest says."""
    if manifest is None:
        return found
    video = manifest.video
    facts = {
        "written by": "lightx2v-sgmd",
        "format": f"{manifest.format}, {manifest.dtype}",
        "method": str(manifest.method.get("name")),
        "teacher": manifest.teacher,
        **({"started from": manifest.student_base} if manifest.student_base else {}),
        "trained for": size_text(video.height, video.width, video.num_frames),
    }
    found.facts = facts | found.facts
    found.facts["schedule"] = f"{steps_text(manifest.schedule)} ({FILE_NAME})"
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
        return lora_facts(path, files[0], base) if not pickled else pickled_lora_facts(path, header)
    if not names:
        return Inspection(path, "unknown", {"holds": "no tensors"})
    tail = {name.rsplit(".", 2)[-2] for name in names if "." in name}
    if any("relative_attention_bias" in n or "pos_embedding.embedding" in n for n in names):
        return _other(path, "text encoder", header, "T5 or umT5, for the prompts; no student")
    if any(re.search(r"decoder\.(up_blocks|upsamples)\.", name) for name in names):
        return _other(path, "VAE", header, "for decoding latents; no student")
    family = other_family(names)
    if family is not None:
        return lone_network(path, header, *family)
    reader = WholeTensors(files, wan_original.transformer_names)
    if "patch_embedding.weight" not in reader.header.tensors:
        shown = ", ".join(map(shortened, names[:SHOWN]))
        shard = SHARD.fullmatch(path.name)
        if shard is not None and int(shard[3]) > 1:
            told = f"one of {int(shard[3])} shards of a network; give the folder {path.parent}"
            return Inspection(
                path, "part of a network", {"holds": told, "types": types_text(header)}
            )
        kinds = f"{len(names)} tensors, such as {shown}; {len(tail)} kinds of layers"
        return Inspection(path, "unknown", {"holds": kinds, "types": types_text(header)})
    found = Inspection(path, "network")
    model = open_wan(base) if base is not None else None
    add_network_facts(found, reader, config or (model.transformer_config if model else None), names)
    found.missing.append("VAE, text encoder and tokenizer: add --base MODEL")
    return found


def _other(path: Path, kind: str, header: Header, use: str) -> Inspection:
    return Inspection(path, kind, {"use": use, "types": types_text(header)})
