"""Inspects LoRA files: their kind, and the known model that they fit."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from lightx2v_sgmd.families.inspection.facts import SHOWN, Inspection, add_schedule_fact, types_text
from lightx2v_sgmd.families.lora.keys import lora_kind, programs_of, unsupported_kind
from lightx2v_sgmd.families.lora.reading import alpha_source, open_lora
from lightx2v_sgmd.families.opening import BUNDLED, open_model
from lightx2v_sgmd.families.sources.hub_configs import known_hub_ids
from lightx2v_sgmd.files.lora_folder import lora_file_in
from lightx2v_sgmd.files.tensors.safetensors_files import Header, read_header
from lightx2v_sgmd.system.errors import UserError, shortened


def lora_facts(path: Path, file: Path, base: str | Path | None) -> Inspection:
    """Says what a LoRA file is, and whether it fits.

    Args:
        path: The path that was asked for: the file, or its folder.
        file: The file.
        base: The model that it is for; default: whichever known model it fits.
    """
    header = read_header(file)
    found = Inspection(path, "LoRA", {"names": programs_of(header.tensors)})
    found.facts["types"] = types_text(header)
    other = unsupported_kind(header.tensors)
    if other is not None:
        found.kind = other[0].removeprefix("an ").removeprefix("a ")
        found.facts["refused"] = f"{other[0]} is not supported ({shortened(other[1])})"
        return found
    refusals = []
    wan = True
    names = [BUNDLED, *known_hub_ids()] if base is None else [str(base)]
    for name in names:
        try:
            model = open_model(name)
            lora = open_lora(file, model.transformer_shapes(), skip_image_layers=True)
        except UserError as error:
            refusals.append(str(error).removeprefix(f"lora: {file}: "))
            continue
        found.facts["fits"] = name
        wan = "wan" in model.formats
        ranks = Counter(lora.rank(layer) for layer in lora.layers)
        counts = ", ".join(f"{rank}" for rank, _ in ranks.most_common(SHOWN))
        blocks = {m[1] for n in lora.layers if (m := re.match(r"(.*blocks\.\d+)\.", n))}
        found.facts["layers"] = f"{len(lora.layers)} in {len(blocks)} blocks, rank {counts or '-'}"
        if lora.differences:
            found.facts["differences"] = f"of {len(lora.differences)} other weights"
        found.facts["alpha"] = alpha_source(lora)
        if lora.image_layers:
            count = f"{len(lora.image_layers)} tensors"
            found.facts["variant"] = f"{count} of image-to-video layers (--skip-image-layers)"
        break
    else:
        if base is None:  # the last refusal would speak of a model that nobody named
            found.facts["fits"] = "none of the published sizes; name its base model by --base MODEL"
        else:
            found.facts["refused"] = shortened(refusals[-1], 300)
    add_schedule_fact(found, header, sgmd=wan)
    found.missing.append("a base model: give it as --weights, and this as --lora")
    return found


def pickled_lora_facts(path: Path, header: Header) -> Inspection:
    """Says what a LoRA in a pickle is, which nothing here reads further."""
    facts = {"names": programs_of(header.tensors), "types": types_text(header)}
    facts["refused"] = "a LoRA is read from a .safetensors file alone; convert it first"
    return Inspection(path, "LoRA", facts)


def lora_at(path: Path) -> str | None:
    """The kind of LoRA at a path, in words; None if none does, or if it cannot be read.

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
