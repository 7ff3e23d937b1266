"""Reads an export back as a stranger's program would and compares it with its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.manifest import changed_files, read_manifest
from lightx2v_sgmd.models.wan import WanModel, open_wan, pad_text, velocity
from lightx2v_sgmd.quiet import no_library_bars
from lightx2v_sgmd.tensorfiles import check_keys, read_headers, schedule_of, weight_files
from weights.diffusers_format import COPIED, DTYPES, STEM, source_tensors
from weights.load import Source


class ExportError(RuntimeError):
    """An export is not what it should be; the message says what differs."""


def differences(
    source: Source, folder: Path, dtype: str, advance: Callable[[int], None] = lambda n: None
) -> list[str]:
    """What in an export is not as its checkpoint says: empty if all is well.

    Compared are the hashes, the schedule in all its places, the keys, shapes, types and values of
    the network, and one forward pass of the exported network, loaded by stock diffusers, against
    the checkpoint's at the same precision.

    Args:
        source: The checkpoint.
        folder: The export.
        dtype: The precision in which it was written.
        advance: Told of each tensor that is compared.
    """
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            return ["lightx2v_sgmd.json is missing"]
        header = read_headers(weight_files(folder / "transformer", STEM))
        check_keys(header, {k: t.shape for k, t in source.header.tensors.items()}, "transformer")
    except UserError as error:
        return [str(error)]
    problems = changed_files(folder, manifest.sha256)
    if manifest.schedule != source.schedule or schedule_of(header.metadata) != source.schedule:
        problems.append("the schedule is not the checkpoint's")
    problems += _scheduler_differences(source, folder)
    problems += [f"{part}/ is missing" for part in COPIED if not (folder / part).is_dir()]
    values = []
    for name, expected in source_tensors(source, dtype):
        with safe_open(header.tensors[name].file, framework="pt") as file:
            got = file.get_tensor(name)
        if got.dtype != expected.dtype:
            values.append(f"{name} is {got.dtype}, not {expected.dtype}")
        elif not torch.equal(got, expected):
            values.append(f"{name} has other values")
        advance(1)
    problems += values
    return problems if values else problems + _forward_differences(source, folder, dtype)


_ROUNDING: Final = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
"""Share of the largest output by which two runs of one network may differ (memory alignment alone
makes kernels add in another order)."""


def _scheduler_differences(source: Source, folder: Path) -> list[str]:
    """Whether diffusers' scheduler takes the student's steps from the exported configuration."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(len(source.schedule))
    got, expected = scheduler.timesteps, source.schedule.timesteps
    if torch.allclose(got, expected, atol=1e-2, rtol=0):
        return []
    return [f"the scheduler takes timesteps {got.tolist()}, not {expected.tolist()}"]


def _forward_differences(source: Source, folder: Path, dtype: str) -> list[str]:
    model = open_wan(source.teacher)
    try:
        with no_library_bars():
            exported = open_wan(folder).load_transformer(DTYPES[dtype])
        got = _forward(exported, model)
    except (UserError, RuntimeError) as error:
        return [f"the network does not run: {(str(error).splitlines() or [''])[0]}"]
    del exported  # one network in memory at a time: 28 GB each at 14B
    expected = _forward(_network_of(source, model, dtype), model)
    off = (got - expected).abs().max().item()
    scale = expected.abs().max().item()
    if off <= _ROUNDING[dtype] * scale:
        return []
    return [f"a forward pass is off by {off:.2g} of {scale:.2g}"]


def _network_of(source: Source, model: WanModel, dtype: str) -> Any:
    """The checkpoint's network, filled without first making random weights."""
    with torch.device("meta"):
        network = model.build_transformer()
    # The rotary tables are no weights: take real ones from the same network without its layers.
    layerless = {**model.transformer_config, "num_layers": 0}
    network.rope = type(network).from_config(layerless).rope
    network.load_state_dict(dict(source_tensors(source, dtype)), strict=True, assign=True)
    return network.eval()


@torch.no_grad()
def _forward(network: Any, model: WanModel) -> Tensor:
    """One evaluation on a few tokens, the same for every network of this configuration."""
    generator = torch.Generator("cpu").manual_seed(0)
    patch_t, patch_h, patch_w = model.transformer_config["patch_size"]
    channels = int(model.transformer_config["in_channels"])
    shape = (1, channels, 2 * patch_t, 2 * patch_h, 2 * patch_w)
    x_t = torch.randn(shape, generator=generator)
    text = pad_text([torch.randn(8, model.text_dim, generator=generator)])
    return velocity(network.eval(), x_t, torch.tensor([0.96]), text).float()
