"""The nodes: load a student, sample in its steps, save the video with what it was made from.

B videos, C channels, T latent frames, F frames, H, W.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from lightx2v_sgmd.comfyui.student import StudentFile, check_lora_fits, check_student
from lightx2v_sgmd.schedule import NUM_TRAIN_TIMESTEPS
from lightx2v_sgmd.system.errors import UserError

CATEGORY: Final = "lightx2v-sgmd"
NO_LORA: Final = "none"
_STUDENT: Final = "SGMD_STUDENT"
_RECORD: Final = "SGMD_RECORD"
_MODELS: Final = "diffusion_models"
_MOST_SEED: Final = 2**64 - 1


@dataclass(frozen=True)
class Record:
    """The things that latents were made from.

    Attributes:
        student: The weights and their steps.
        seed: The seed of the noise.
    """

    student: StudentFile
    seed: int


class LoadStudent:
    """Loads weights or a LoRA that carry their steps, and refuses files that carry none.

    The model is patched with the shift of these steps, so that ComfyUI's own KSampler (euler, or
    lcm for a student that is noised anew; simple, cfg 1) takes them too.
    """

    RETURN_TYPES = ("MODEL", _STUDENT)
    RETURN_NAMES = ("model", "student")
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Loads a student that lightx2v-sgmd exported, with the steps that it carries."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The files that ComfyUI knows."""
        paths = _comfy("folder_paths")
        return {
            "required": {
                "weights": (paths.get_filename_list(_MODELS),),
                "lora": ([NO_LORA, *paths.get_filename_list("loras")],),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, weights: str, lora: str) -> str | bool:
        """True, or the reason why the files are refused: asked before anything is loaded."""
        try:
            check_student(*_paths(weights, lora))
        except UserError as error:
            return str(error)
        return True

    def load(self, weights: str, lora: str) -> tuple[Any, StudentFile]:
        """Returns the patched model, and the student's file and steps.

        Raises:
            UserError: the files carry no steps, or the LoRA is for another network.
        """
        path, lora_path = _paths(weights, lora)
        schedule = check_student(path, lora_path)
        sd = _comfy("comfy.sd")
        model = sd.load_diffusion_model(str(path))
        if lora_path is not None:
            network = model.model.state_dict()
            layers = _comfy("comfy.lora").model_lora_keys_unet(model.model, {})
            shapes = {name: tuple(value.shape) for name, value in network.items()}
            check_lora_fits(lora_path, _names(layers), shapes)
            tensors = _comfy("comfy.utils").load_torch_file(str(lora_path), safe_load=True)
            model, _ = sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
        shifted = _comfy("comfy_extras.nodes_model_advanced").ModelSamplingSD3()
        (model,) = shifted.patch(model, schedule.shift)
        return model, StudentFile(weights, None if lora_path is None else lora, schedule)


class Sampler:
    """Makes latents in exactly the student's steps, by its solver, without guidance."""

    RETURN_TYPES = ("LATENT", _RECORD)
    RETURN_NAMES = ("latent", "record")
    FUNCTION = "sample"
    CATEGORY = CATEGORY
    DESCRIPTION = "Samples in the steps that the student carries. A student has no guidance."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The wires, and a seed."""
        seed = {"default": 0, "min": 0, "max": _MOST_SEED, "control_after_generate": True}
        return {
            "required": {
                "model": ("MODEL",),
                "student": (_STUDENT,),
                "positive": ("CONDITIONING",),
                "latent": ("LATENT",),
                "seed": ("INT", seed),
            }
        }

    def sample(
        self, model: Any, student: StudentFile, positive: Any, latent: Mapping[str, Any], seed: int
    ) -> tuple[dict[str, Any], Record]:
        """Samples.

        Args:
            model: The student's network, with other LoRAs if wanted.
            student: The student, which has the steps.
            positive: The text.
            latent: Empty latents ``[B, C, T, H, W]``.
            seed: The seed of the noise.
        """
        sampling, sigmas = _comfy("comfy.sample"), student.schedule.times
        _check_times(model, sigmas)
        empty = sampling.fix_empty_latent_channels(model, latent["samples"])
        noise = sampling.prepare_noise(empty, seed, latent.get("batch_index"))
        preview = _comfy("latent_preview").prepare_callback(model, len(student.schedule))
        made = sampling.sample_custom(
            model,
            noise,
            1.0,  # cfg: the student has learned its teacher's guidance
            _comfy("comfy.samplers").sampler_object(student.schedule.comfyui_sampler()),
            sigmas,
            positive,
            positive,
            empty,
            callback=preview,
            seed=seed,
        )
        return {**latent, "samples": made}, Record(student, seed)


class SaveVideo:
    """Writes frames as an mp4 with the workflow inside, and beside it what it was made from."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    FUNCTION = "save"
    CATEGORY = CATEGORY
    OUTPUT_NODE = True
    DESCRIPTION = "Saves an mp4, and a JSON file with weights, steps, seed and workflow."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Frames, the sampler's record, and the file."""
        fps = {"default": 16.0, "min": 0.1, "max": 240.0, "step": 0.1}
        return {
            "required": {
                "images": ("IMAGE",),
                "record": (_RECORD,),
                "fps": ("FLOAT", fps),
                "filename_prefix": ("STRING", {"default": "video/sgmd"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self,
        images: Tensor,
        record: Record,
        fps: float,
        filename_prefix: str,
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Saves frames ``[F, H, W, 3]`` in [0, 1] into ComfyUI's output folder."""
        from fractions import Fraction

        paths, api = _comfy("folder_paths"), _comfy("comfy_api.latest")
        height, width = images.shape[1], images.shape[2]
        folder, name, number, subfolder, _ = paths.get_save_image_path(
            filename_prefix, paths.get_output_directory(), width, height
        )
        made_from = {
            **record.student.record(),
            "seed": record.seed,
            "height": height,
            "width": width,
            "num_frames": images.shape[0],
            "fps": fps,
        }
        metadata = {**(extra_pnginfo or {}), "lightx2v_sgmd": made_from}
        if prompt is not None:
            metadata["prompt"] = prompt
        file = Path(folder) / f"{name}_{number:05}_.mp4"
        components = api.Types.VideoComponents(images=images, frame_rate=Fraction(fps))
        api.InputImpl.VideoFromComponents(components).save_to(str(file), metadata=metadata)
        text = json.dumps({**made_from, "prompt": prompt}, indent=2) + "\n"
        file.with_suffix(".json").write_text(text, encoding="utf-8")
        shown = {"filename": file.name, "subfolder": subfolder, "type": "output"}
        return {"ui": {"images": [shown], "animated": (True,)}}


NODE_CLASS_MAPPINGS: Final[Mapping[str, Any]] = {
    "SGMDLoadStudent": LoadStudent,
    "SGMDSampler": Sampler,
    "SGMDSaveVideo": SaveVideo,
}
NODE_DISPLAY_NAME_MAPPINGS: Final = {
    "SGMDLoadStudent": "Load Student (SGMD)",
    "SGMDSampler": "Few-Step Sampler (SGMD)",
    "SGMDSaveVideo": "Save Video with Steps (SGMD)",
}


def _comfy(name: str) -> Any:
    """A module of ComfyUI, which is there only when ComfyUI runs this."""
    return importlib.import_module(name)


def _paths(weights: str, lora: str) -> tuple[Path, Path | None]:
    """The files of the names that the editor shows."""
    paths = _comfy("folder_paths")
    path = Path(paths.get_full_path_or_raise(_MODELS, weights))
    if lora == NO_LORA:
        return path, None
    return path, Path(paths.get_full_path_or_raise("loras", lora))


def _names(layers: Mapping[Any, Any]) -> dict[str, str]:
    """The layers whose weight is one matrix of its own."""
    return {str(name): weight for name, weight in layers.items() if isinstance(weight, str)}


def _check_times(model: Any, sigmas: Tensor) -> None:
    """Refuses a model that would be given other times than the student was trained with.

    Raises:
        UserError: the model's times are not 1000 times the noise level, as flow matching has them.
    """
    times = model.get_model_object("model_sampling").timestep(sigmas[:-1])
    expected = sigmas[:-1] * NUM_TRAIN_TIMESTEPS
    if not torch.allclose(torch.as_tensor(times).float().cpu(), expected, atol=0.5):
        raise UserError(
            "model: is not a flow-matching model, or was patched to other times; wire the model of "
            "Load Student (SGMD) to the sampler"
        )
