"""Small students of each kind of Wan, and what they make: the parent's half of ``client_programs``.

A student is its teacher with noise added, as large as training's changes. The models have the sizes
that programs fix (``tools.models.standard_wan``). Videos that start from an image get one of the
video's own size, so that no program has to scale it, and CLIP's rows and the VAE are the same for
everybody: what is compared is the network, its conditioning and the steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer import Options, Student, load_student
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.lora_folder import lora_file_in
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.schedule import Schedule
from tools.models.standard_wan import BOUNDARIES, Kind, make_standard_wan
from weights import export
from weights.formats.comfyui import PREFIX
from weights.formats.wan import EXPERTS, original_config

PROMPT: Final = "a red circle moving left slowly"
LAYERS: Final = 3
SIZES: Final[dict[Kind, tuple[int, int, int]]] = {"ti2v": (64, 96, 9)}
"""Height, width and frames of a kind's video; ``_SIZE`` for all others."""
_SIZE: Final = (32, 48, 9)
_JOB: Final = """\
teacher: {{path: {teacher}, guidance_scale: 3.0}}
method: {{name: sgmd, lambda: 0.1}}
schedule: {{shift: {shift}}}
data: {{prompts: sprites}}
video: {{height: {height}, width: {width}, num_frames: {frames}}}
train: {{iterations: 1}}
output: {{dir: {run}}}
"""
_OPTIONS: Final = Options(device="cpu", dtype="fp32", compile=False)
_WAN22_LATENT: Final = "Wan22ImageToVideoLatent"


class Bench:
    """A student and its teacher, their exports (each made once) and the latents that are right.

    Attributes:
        kind: The published model whose layout the student has.
        latents: The latents that our engine makes in float32.
    """

    def __init__(self, folder: Path, kind: Kind = "t2v") -> None:
        self.folder, self.kind = folder, kind
        self.schedule = Schedule(shift=5.0) if kind in BOUNDARIES else Schedule()
        self.size = SIZES.get(kind, _SIZE)
        self.teacher = make_standard_wan(folder / "teacher", layers=LAYERS, kind=kind)
        self.config = original_config(open_wan(self.teacher).transformer_config)
        self._checkpoint("run", 0.02)
        self._checkpoint("untrained", 0.0)
        self.latents = self._made()

    @cached_property
    def latents_of_lora(self) -> Tensor:
        """The same of the teacher with the exported adapters, which may lose something."""
        loras = tuple(
            WeightedLora(file) for file in _adapters(self.exported("run", "lora", "fp32"))
        )
        return self._generated(load_student(self.teacher, replace(_OPTIONS, loras=loras)))

    def _made(self) -> Tensor:
        """Our latents; writes what programs are given beside them."""
        student = load_student(self.exported("run", "diffusers", "fp32"), _OPTIONS)
        image = self.folder / "image.png"
        height, width, _ = self.size
        generator = torch.Generator().manual_seed(2)
        small = torch.randint(0, 256, (4, 6, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(small.numpy()).resize((width, height), Image.Resampling.BICUBIC).save(image)
        told = dict(student.model.conditioning(self._told(student)))
        tensors = {"text": told["text"][0].contiguous(), "sigmas": self.schedule.times}
        tensors["noise"] = student.noise(0, student.latent_shape(*self.size))
        if "image_rows" in told:
            tensors["image_rows"] = told["image_rows"][0].contiguous()
        save_file(tensors, self.folder / "inputs.safetensors")
        return self._generated(student)

    def _told(self, student: Student) -> Sequence[Embedding]:
        rows = student.encode([PROMPT], quiet=True)
        if student.model.takes_image == "never":
            return rows
        image = self.folder / "image.png"
        return student.with_images(rows, [(image, self.size)], cached=False)

    def _generated(self, student: Student) -> Tensor:
        return student.denoise(self._told(student), [0], self.size)[0]

    def _checkpoint(self, name: str, change: float) -> None:
        """A run whose student is the teacher with noise added."""
        folder = self.folder / name / "checkpoints" / "step_000001"
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(1)
        for index, expert in enumerate(open_wan(self.teacher).experts):
            state = expert.model.load_transformer().state_dict()
            moved = {
                k: t + change * t.std() * torch.randn(t.shape, generator=generator)
                for k, t in state.items()
            }
            file = folder / f"student{'_2' if index else ''}.safetensors"
            save_file(moved, file, schedule_metadata(self.schedule))
        height, width, frames = self.size
        job = _JOB.format(
            teacher=self.teacher,
            run=self.folder / name,
            shift=self.schedule.shift,
            height=height,
            width=width,
            frames=frames,
        )
        (folder / "job.yaml").write_text(job)
        (folder / "trainer.json").write_text(json.dumps({"step": 1}))
        files = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(folder.iterdir())
        }
        (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))

    def exported(self, run: str, format: str, dtype: str) -> Path:
        """The export of ``run`` or of the ``untrained`` student, which is the teacher."""
        out = self.folder / f"{run}_{format}_{dtype}"
        if not out.exists():
            rank = 64 if format == "lora" else None
            export(self.folder / run, format, out, dtype=dtype, rank=rank, quiet=True)
        return out

    def request(self, program: str, format: str, dtype: str, lora: bool) -> dict[str, Any]:
        """The request that the child reads.

        Args:
            program: The program.
            format: The format of the network that it loads.
            dtype: The network's precision.
            lora: True to load the teacher, and the adapters on top.
        """
        folder = self._base(format, dtype) if lora else self.exported("run", format, dtype)
        adapters = self.exported("run", "lora", "fp32") if lora else None
        weights, loras = _each_expert(folder), [] if adapters is None else _adapters(adapters)
        workflow = None
        if program == "comfyui":
            workflow = self._workflow(adapters or self.exported("run", "comfyui", dtype))
        return {
            "inputs": str(self.folder / "inputs.safetensors"),
            "weights": [str(folder)] if program == "wan" else [str(file) for file in weights],
            "loras": [str(file) for file in loras],
            "settings": str(adapters or folder),
            "workflow": workflow,
            "image": str(self.folder / "image.png"),
            "vae": str(self.teacher / "vae"),
            "config": self.config,
            "shift": self.schedule.shift,
            "out": str(self.folder / "latents.safetensors"),
        }

    def _base(self, format: str, dtype: str) -> Path:
        """The teacher in a format, for adapters."""
        if self.kind != "ti2v":
            return self.exported("untrained", format, dtype)
        out = self.folder / "base"  # an export in ComfyUI's format is refused: it has no workflow
        if not out.exists():
            out.mkdir()
            state = open_wan(self.teacher).load_transformer().state_dict()
            named = {PREFIX + transformer_to_original(k): t for k, t in state.items()}
            save_file(named, out / "base.safetensors")
        return out

    def _workflow(self, folder: Path) -> dict[str, Any]:
        """The exported workflow; for Wan2.2-TI2V-5B, the nodes that its card describes."""
        file = folder / "workflow_api.json"
        if file.is_file():
            workflow: dict[str, Any] = json.loads(file.read_text())
            return workflow
        height, width, frames = self.size
        lora = lora_file_in(folder)
        assert lora is not None, "an export of adapters has the file for other programs"

        def node(kind: str, **inputs: Any) -> dict[str, Any]:
            return {"class_type": kind, "inputs": inputs}

        return {
            "1": node("UNETLoader", unet_name="base.safetensors", weight_dtype="default"),
            "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name=lora.name, strength_model=1),
            "3": node("ModelSamplingSD3", model=["2", 0], shift=self.schedule.shift),
            "4": node("CLIPTextEncode", clip=None, text=PROMPT),
            "5": node("LoadImage", image="image.png"),
            "6": node("VAELoader", vae_name="vae"),
            "7": node(
                _WAN22_LATENT,
                vae=["6", 0],
                start_image=["5", 0],
                width=width,
                height=height,
                length=frames,
                batch_size=1,
            ),
            "8": node(
                "KSampler",
                model=["3", 0],
                positive=["4", 0],
                negative=["4", 0],
                latent_image=["7", 0],
                seed=0,
                steps=len(self.schedule),
                cfg=1.0,
                sampler_name="euler",
                scheduler="simple",
                denoise=1.0,
            ),
            "9": node("VAEDecode", samples=["8", 0], vae=["6", 0]),
        }

    def error(self, out: Path, lora: bool) -> float:
        """The relative distance of a program's latents from ours, of the same file."""
        got, ours = load_file(out)["latents"], self.latents_of_lora if lora else self.latents
        return ((got - ours).norm() / ours.norm()).item()


def _each_expert(folder: Path) -> list[Path]:
    """The weights of an export: a file, or one for each of two experts, high noise first."""
    if (folder / EXPERTS[0]).is_dir():
        return [next((folder / name).glob("*.safetensors")) for name in EXPERTS]
    return sorted(folder.glob("*.safetensors"))  # "high" comes before "low"


def _adapters(folder: Path) -> list[Path]:
    pair = (folder / EXPERTS[0]).is_dir()
    found = [lora_file_in(folder / name) for name in EXPERTS] if pair else [lora_file_in(folder)]
    files = [file for file in found if file is not None]
    assert len(files) == len(found), "an export of adapters has the file for other programs"
    return files
