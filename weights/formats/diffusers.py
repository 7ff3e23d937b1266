"""diffusers: a folder that a stock pipeline runs in the student's few steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import boundary_of
from lightx2v_sgmd.families.loading import stays_float32
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.sources.parts import UNET
from lightx2v_sgmd.files.tensors.safetensors_files import weight_files
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.base import STEM, NetworkFormat
from weights.formats.layout import Layout
from weights.io.json_files import write_json
from weights.io.network import network_problems, write_network
from weights.io.shared import shared_bytes, write_shared

_NETWORKS: Final = ("transformer", "transformer_2")
"""The folders of the networks of a model with one expert, or two; see ``Pipeline.folder``."""
_USAGE: Final = """\
## diffusers

```python
import torch
from diffusers import {pipeline}{image_import}

pipe = {pipeline}.from_pretrained("THIS_FOLDER", torch_dtype=torch.{torch_dtype})
video = pipe(
{image_argument}    prompt="a prompt",
    height={height},
    width={width},
    num_frames={num_frames},
    num_inference_steps={count},
    guidance_scale=1.0,
).frames[0]
```

## lightx2v-sgmd, with the fastest attention kernel of the machine

```
lightx2v-sgmd generate --weights THIS_FOLDER --prompt "a prompt"{image_option} --out video.mp4
```

## Servers

`lightx2v-sgmd serve --weights THIS_FOLDER` runs these steps.{servers}
"""
_USAGE_OF_IMAGES: Final = """\
## diffusers

```python
import torch
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("THIS_FOLDER", torch_dtype=torch.{torch_dtype})
image = pipe(
    prompt="a prompt",
    height={height},
    width={width},
    num_inference_steps={count},
    guidance_scale=1.0,
).images[0]
```

## lightx2v-sgmd

```
lightx2v-sgmd generate --weights THIS_FOLDER --prompt "a prompt" --out image.png
```
"""
_IMAGE_WORDS: Final = {
    "image_import": "\nfrom diffusers.utils import load_image",
    "image_argument": '    image=load_image("first_frame.png"),\n',
    "image_option": " --image first_frame.png",
}
_ALSO_FROM_IMAGE: Final = """
With `WanImageToVideoPipeline` and `image=`, or with `--image first_frame.png`, a video starts from
an image.
"""
_SERVERS: Final = {
    "euler": """ \
Other servers do not take them from
`scheduler/`, so they must be asked for:

- vLLM-Omni: send `num_inference_steps` {count}, `guidance_scale` 1 and the `extra_args`
  `{{"sample_solver": "euler", "flow_shift": {shift:g}}}`; its default is UniPC with shift 5.
- SGLang: start it with `--backend diffusers`, and ask for {count} steps with guidance scale 1; its
  own pipeline for Wan always samples by UniPC.
- FastVideo cannot run them: its `WanPipeline` samples by UniPC, and its `WanDMDPipeline` draws new
  noise in every step.
""",
    "renoise": """ \
They add new noise after
each step; other servers have not been tried with such a student.
""",
}


class DiffusersFormat(NetworkFormat):
    """A folder of a whole pipeline, under diffusers' names."""

    name = "diffusers"
    dtypes = ("bf16", "fp16", "fp32")
    stored_as = "{dtype}; layers that diffusers keeps in float32 are float32"
    library = "diffusers"
    holds_experts = True
    described = False  # model_index.json and the configurations do

    def check(self, spec: ExportSpec) -> None:
        """Refuses what the program cannot express; see ``Format.check``."""
        spec.source.model.scheduler_config(spec.source.schedule)
        shared_bytes(spec.source.model)

    def nbytes(self, spec: ExportSpec) -> int:
        """The approximate size of the export on disk, in bytes."""
        return super().nbytes(spec) + shared_bytes(spec.source.model)

    def write(self, spec: ExportSpec, folder: Path, advance: Advance) -> Losses | None:
        """Writes weights and configurations into an empty folder; returns what was lost."""
        prepare_libraries()
        from diffusers import __version__

        model = spec.source.model
        write_shared(model, folder, model.scheduler_config(spec.source.schedule)["_class_name"])
        for each in spec.experts:
            network = folder / (_NETWORKS[1] if each.expert else model.pipeline.folder)
            network.mkdir()
            config = {"_class_name": model.pipeline.transformer, "_diffusers_version": __version__}
            config |= each.source.model.transformer_config
            write_json(network / "config.json", config)
            write_network(each, network, STEM, advance)
        write_scheduler(folder, model, spec.source.schedule)
        return None

    def problems(
        self, spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """Lists what the program would read that differs from the source."""
        problems = [
            f"{part}/ is missing"
            for part in spec.source.model.pipeline.shared
            if not (folder / part).is_dir()
        ]
        problems += scheduler_problems(folder, spec.source.model, spec.source.schedule)
        try:
            model = open_model(folder)
        except UserError as error:
            return [*problems, str(error)]
        if boundary_of(model.experts) != boundary_of(spec.source.model.experts):
            problems.append("the experts meet at another time than the source's")
        for each in spec.experts:
            config = model.transformer_config
            problems += network_problems(each, folder, config, losses, advance)
        return problems

    def usage(self, spec: ExportSpec, values: Mapping[str, Any]) -> str:
        """Says how diffusers and ``lightx2v-sgmd generate`` run the folder."""
        servers = _SERVERS.get(spec.source.schedule.solver, "").format(**values)
        model = spec.source.model
        if model.size_rules.images:
            return _USAGE_OF_IMAGES.format(**values, pipeline=model.pipeline.name)
        usage = _USAGE.format(**values, **stock_words(model), servers=servers.rstrip())
        return usage + (_ALSO_FROM_IMAGE if model.takes_image == "optionally" else "")

    def weight_files(self, folder: Path, expert: int = 0) -> list[Path]:
        """The files in the network's folder, as its index lists them."""
        first = UNET if (folder / UNET).is_dir() else _NETWORKS[0]
        return weight_files(folder / (_NETWORKS[1] if expert else first), STEM)

    def expert_count(self, folder: Path) -> int:
        """The number of its networks: 2 where there is a folder for the second expert."""
        return 2 if (folder / _NETWORKS[1]).is_dir() else 1

    def layout_in(self, dtype: str, main: torch.dtype, model: Model | None = None) -> Layout:
        """The layout in which the weights that diffusers keeps in float32 stay float32."""
        assert model is not None, "diffusers keeps other weights in float32 for each network"
        with torch.device("meta"):
            is_float32 = stays_float32(model.build_transformer())
        return Layout(str, lambda name: torch.float32 if is_float32(name) else main)

    def open_model(self, folder: Path, teacher: Callable[[], Model]) -> Model:
        """The configuration in the folder itself: the export is a whole model."""
        return open_model(folder)


def stock_words(model: Model) -> dict[str, str]:
    """A card's words on the stock pipeline of a model of videos, and on the image that it takes."""
    always = model.takes_image == "always"
    words = {name: text if always else "" for name, text in _IMAGE_WORDS.items()}
    return {"pipeline": model.pipeline.name, **words}


def write_scheduler(folder: Path, model: Model, schedule: Schedule) -> None:
    """A scheduler with which stock diffusers takes the student's steps."""
    (folder / "scheduler").mkdir()
    config = model.scheduler_config(schedule)
    write_json(folder / "scheduler" / "scheduler_config.json", config)


def scheduler_problems(folder: Path, model: Model, schedule: Schedule) -> list[str]:
    """Lists the timesteps of diffusers' scheduler if they are not the student's."""
    prepare_libraries()
    import diffusers

    config = model.scheduler_config(schedule)
    kind: Any = getattr(diffusers, config["_class_name"])
    scheduler = kind.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(len(schedule))
    got, expected = scheduler.timesteps.float(), model.interpolant.timestep(schedule.times[:-1])
    if not torch.allclose(got, expected, atol=1e-2, rtol=0):
        return [f"the scheduler takes timesteps {got.tolist()}, not {expected.tolist()}"]
    wanted = {"stochastic_sampling": False} if schedule.solver == "euler" else {}
    wanted |= {key: value for key, value in config.items() if not key.startswith("_")}
    if any(scheduler.config[key] != value for key, value in wanted.items()):
        return [f"the scheduler does not take the steps of {schedule.solver}"]
    return []
