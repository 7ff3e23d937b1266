"""wan: the original names, for LightX2V and the original code, with a ready LightX2V job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.families.text_rows import TEXT_LENGTH
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.files.tensors.safetensors_files import Header, weight_files
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.base import STEM, NetworkFormat
from weights.formats.layout import Layout
from weights.formats.programs import LIGHTX2V as LIGHTX2V_PROGRAM
from weights.formats.programs import PATCH, TEXT_WIDTH, section
from weights.io.json_files import json_problems, write_json
from weights.io.network import network_problems, write_network
from weights.io.quantize import LIGHTX2V

LIGHTX2V_FILE: Final = "lightx2v.json"
EXPERTS: Final = ("high_noise_model", "low_noise_model")
"""The folders of two experts, as Wan2.2's release names them."""

_USAGE: Final = """\
## LightX2V

```
cd THIS_FOLDER
python -m lightx2v.infer --model_cls wan2.1_distill --task {task_name} \\
    --model_path /path/to/Wan2.1-{task_folder} --config_json {file} \\{image_line}
    --prompt "a prompt" --negative_prompt "" --save_result_path "$OLDPWD/video.mp4"
```

`/path/to/Wan2.1-{task_folder}` is the original folder of the teacher, for its encoders and VAE. Do
not put these weights into it: LightX2V would mix the two. `{file}` holds the steps, turns guidance
off, and names the weights as files of the folder that the command runs in. The video goes to the
folder that you came from.
"""


_TWO_EXPERTS: Final = """\
## LightX2V

```
cd THIS_FOLDER
python -m lightx2v.infer --model_cls wan2.2_moe_distill --task {task_name} \\
    --model_path /path/to/Wan2.2-{task_folder}-A14B --config_json {file} \\{image_line}
    --prompt "a prompt" --negative_prompt "" --save_result_path "$OLDPWD/video.mp4"
```

`/path/to/Wan2.2-{task_folder}-A14B` is the original folder of the teacher, for its encoders and
VAE. `{file}` holds the steps, says how many of them are the high-noise expert's, turns guidance
off, and names both experts' weights as files of the folder that the command runs in. The video goes
to the folder that you came from.
"""


class WanFormat(NetworkFormat):
    """The network under the original names, with configurations for LightX2V and the original."""

    name = "wan"
    dtypes = ("bf16", "fp16", "fp32", "fp8")
    stored_as = "{dtype}, original names"
    library = "lightx2v"
    programs = (LIGHTX2V_PROGRAM,)
    holds_experts = True

    def check(self, spec: ExportSpec) -> None:
        """Refuses what the program cannot express; see ``Format.check``."""
        whole_steps(spec.source.schedule)

    def write(self, spec: ExportSpec, folder: Path, advance: Advance) -> Losses | None:
        """Writes weights and configurations into an empty folder; returns what was lost."""
        job, losses = lightx2v_job(spec), {}
        kind = "original"
        if spec.dtype == "fp8":
            job |= {"dit_quantized": True, "dit_quant_scheme": "fp8-sgl"}
            kind = "quantized"
        for each in spec.experts:
            pair = len(spec.experts) > 1
            within = EXPERTS[each.expert] if pair else "."
            network = folder / within
            network.mkdir(exist_ok=True)
            losses[within] = write_network(each, network, STEM, advance)
            config = original_config(each.source.model.transformer_config)
            write_json(network / "config.json", config)
            files = self.weight_files(folder, each.expert)
            location = files[0].relative_to(folder).as_posix() if len(files) == 1 else within
            part = within.removesuffix("_model") if pair else "dit"
            job[f"{part}_{kind}_ckpt"] = location
        write_json(folder / LIGHTX2V_FILE, job)
        return Losses.of_experts(losses) if spec.source.second else losses["."]

    def problems(
        self, spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """Lists what the program would read that differs from the source."""
        config = spec.source.model.transformer_config
        problems = json_problems(folder / LIGHTX2V_FILE, lightx2v_job(spec))
        for each in spec.experts:
            network = folder / EXPERTS[each.expert] if len(spec.experts) > 1 else folder
            problems += json_problems(network / "config.json", original_config(config))
            problems += network_problems(each, folder, config, losses, advance)
        return problems

    def usage(self, spec: ExportSpec, values: Mapping[str, Any]) -> str:
        """The model card's section on LightX2V."""
        return lightx2v_usage(spec, values)

    def weight_files(self, folder: Path, expert: int = 0) -> list[Path]:
        """The files in the folder, or in an expert's folder there, as their index lists them."""
        pair = (folder / EXPERTS[0]).is_dir() or (folder / EXPERTS[1]).is_dir()
        return weight_files(folder / EXPERTS[expert] if pair else folder, STEM)

    def expert_count(self, folder: Path) -> int:
        """The number of its networks: 2 where there is a folder for the second expert."""
        return 2 if (folder / EXPERTS[1]).is_dir() else 1

    def stored_names(self, header: Header | None = None) -> Callable[[str], str]:
        """The original names."""
        return transformer_to_original

    def layout_in(self, dtype: str, main: torch.dtype, model: Model | None = None) -> Layout:
        """The layout in one type, or with LightX2V's scales for 8-bit matrices."""
        scales = LIGHTX2V if dtype == "fp8" else None
        return Layout(self.stored_names(), lambda name: main, scales)


def lightx2v_usage(spec: ExportSpec, values: Mapping[str, Any], more: str = "") -> str:
    """The model card's section on LightX2V.

    Args:
        spec: The export.
        values: The card's values by name.
        more: Text that follows where LightX2V runs the student.
    """
    text = _USAGE if spec.source.second is None else _TWO_EXPERTS
    always, task = spec.source.model.takes_image == "always", short_task(spec.source.model)
    text = text.format(
        **values,
        file=LIGHTX2V_FILE,
        task_name=task,
        task_folder=task.upper(),
        image_line='\n    --image_path "$OLDPWD/first_frame.png" \\' if always else "",
    )
    return section(LIGHTX2V_PROGRAM, spec.source.model.transformer_config, text + more)


def short_task(model: Model) -> str:
    """The task of a video model in the words of Wan and LightX2V: ``t2v``, or ``i2v``."""
    return "i2v" if model.takes_image == "always" else "t2v"


def original_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The original's ``config.json`` from diffusers' configuration of the network."""
    out_channels = config["out_channels"] or config["in_channels"]
    original = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": int(config["num_attention_heads"]) * int(config["attention_head_dim"]),
        "eps": config["eps"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "model_type": "t2v" if config["in_channels"] == out_channels else "i2v",
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "out_dim": out_channels,
        "text_len": TEXT_LENGTH,
    }
    # The original leaves these out; every published Wan has the same.
    if config["text_dim"] != TEXT_WIDTH:
        original["text_dim"] = config["text_dim"]
    if tuple(config["patch_size"]) != PATCH:
        original["patch_size"] = list(config["patch_size"])
    return original


def whole_steps(schedule: Schedule) -> list[int]:
    """The unshifted timesteps, which LightX2V wants as whole numbers, and takes by Euler.

    Raises:
        UserError: they are not whole, or the student has another solver.
    """
    if schedule.solver != "euler":
        raise UserError(
            f"schedule.solver: LightX2V's few-step scheduler takes Euler's steps, not "
            f"{schedule.solver}; use --format diffusers or comfyui"
        )
    steps = [round(t) for t in schedule.base]
    if any(abs(a - b) > 1e-6 for a, b in zip(steps, schedule.base, strict=True)):
        raise UserError(
            f"schedule.base: LightX2V takes whole timesteps; use {steps} instead of "
            f"{list(schedule.base)}"
        )
    return steps


def high_noise_steps(spec: ExportSpec) -> int:
    """The number of steps of the first of two experts; all steps where there is one network."""
    boundary = boundary_of(spec.source.model.experts)
    return [expert_at(boundary, time) for time in spec.source.schedule.times[:-1]].count(0)


def lightx2v_job(spec: ExportSpec) -> dict[str, Any]:
    """LightX2V's configuration for the student; the caller adds the path of the weights."""
    video, schedule = spec.source.about.video, spec.source.schedule
    more: dict[str, Any] = {}
    if spec.source.second is not None:
        # The first so many steps are the high-noise expert's; guidance comes in the same order.
        more = {
            "boundary_step_index": high_noise_steps(spec),
            "sample_guide_scale": [1, 1],
        }
    model = spec.source.model
    if model.takes_image == "always" and model.transformer_config.get("image_dim") is None:
        more["use_image_encoder"] = False  # the image comes by its latents alone
    return {
        "infer_steps": len(schedule),
        "denoising_step_list": whole_steps(schedule),
        "sample_shift": int(schedule.shift) if schedule.shift.is_integer() else schedule.shift,
        "sample_guide_scale": 1,
        "enable_cfg": False,
        "target_video_length": video.num_frames,
        "target_height": video.height,
        "target_width": video.width,
        "fps": video.fps,
        "text_len": TEXT_LENGTH,
        # Of every attention and rotation that LightX2V knows, the ones that need nothing installed.
        "rope_type": "torch_complex_rope",
        "self_attn_1_type": "torch_sdpa",
        "cross_attn_1_type": "torch_sdpa",
        "cross_attn_2_type": "torch_sdpa",
        "cpu_offload": False,
        **more,
    }
