"""The nodes, with stand-ins for ComfyUI's modules; ``tools/checks/check_comfyui.py`` runs ComfyUI.

The stand-ins have the names and arguments of ComfyUI 0.3.64, in which that script was run.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightx2v_sgmd.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from lightx2v_sgmd.comfyui.nodes import LoadStudent, Record, Sampler, SaveVideo
from lightx2v_sgmd.comfyui.student import StudentFile
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError

SCHEDULE = Schedule()
STUDENT = StudentFile("student.safetensors", None, SCHEDULE)


class Model:
    """A flow-matching model of ComfyUI, as far as the nodes look at it."""

    def __init__(self, factor: float = 1000.0) -> None:
        self.factor, self.shift, self.sampler = factor, 0.0, ""

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return SimpleNamespace(timestep=lambda sigma: sigma * self.factor)


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stand-ins for ComfyUI's modules; returns its folder."""

    def module(name: str, **members: Any) -> None:
        stand_in = ModuleType(name)
        for key, value in members.items():
            setattr(stand_in, key, value)
        monkeypatch.setitem(sys.modules, name, stand_in)

    def patch(model: Model, shift: float) -> tuple[Model]:
        model.shift = shift
        return (model,)

    def sample_custom(
        model: Model,
        noise: Tensor,
        cfg: float,
        sampler: str,
        sigmas: Tensor,
        positive: Any,
        negative: Any,
        latent_image: Tensor,
        callback: Any = None,
        seed: int | None = None,
    ) -> Tensor:
        assert (cfg, callback, seed) == (1.0, "4 steps", 3) and sampler in ("euler", "lcm")
        model.sampler = sampler
        assert positive is negative and not latent_image.any()
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            noise = noise + (following - sigma)
        return noise

    (tmp_path / "models").mkdir()
    names = {"get_filename_list": lambda kind: [kind]}
    full = {"get_full_path_or_raise": lambda kind, name: str(tmp_path / "models" / name)}
    saved = {
        "get_output_directory": lambda: str(tmp_path),
        "get_save_image_path": lambda prefix, folder, *size: (folder, prefix, 7, "", prefix),
    }
    module("folder_paths", **names, **full, **saved)
    module("comfy")
    module("comfy.sd", load_diffusion_model=lambda path: Model())
    module(
        "comfy.sample",
        fix_empty_latent_channels=lambda model, latent: latent,
        prepare_noise=lambda latent, seed, batch: torch.full_like(latent, seed),
        sample_custom=sample_custom,
    )
    module("comfy.samplers", sampler_object=lambda name: name)
    module("latent_preview", prepare_callback=lambda model, steps: f"{steps} steps")
    module("comfy_extras")
    advanced = SimpleNamespace(patch=patch)
    module("comfy_extras.nodes_model_advanced", ModelSamplingSD3=lambda: advanced)

    class Video:
        def __init__(self, components: Any) -> None:
            self.components = components

        def save_to(self, path: str, metadata: dict[str, Any]) -> None:
            Path(path).write_text(json.dumps(metadata))

    module("comfy_api")
    module(
        "comfy_api.latest",
        Types=SimpleNamespace(VideoComponents=SimpleNamespace),
        InputImpl=SimpleNamespace(VideoFromComponents=Video),
    )
    return tmp_path


def test_the_loader_gives_the_steps_and_refuses_files_without(comfy: Path) -> None:
    models, tensors = comfy / "models", {"weight": torch.zeros(2)}
    save_file(tensors, models / "student.safetensors", metadata=schedule_metadata(SCHEDULE))
    save_file(tensors, models / "plain.safetensors", metadata={"format": "pt"})
    inputs = LoadStudent.INPUT_TYPES()["required"]
    assert inputs == {"weights": (["diffusion_models"],), "lora": (["none", "loras"],)}
    assert LoadStudent.VALIDATE_INPUTS("student.safetensors", "none") is True
    refusal = LoadStudent.VALIDATE_INPUTS("plain.safetensors", "none")
    assert isinstance(refusal, str) and "carries no schedule" in refusal
    model, student = LoadStudent().load("student.safetensors", "none")
    assert student == STUDENT and model.shift == 8.0
    with pytest.raises(UserError, match="carries no schedule"):
        LoadStudent().load("plain.safetensors", "none")


def test_the_sampler_takes_the_students_steps(comfy: Path) -> None:
    latent = {"samples": torch.zeros(1, 16, 2, 4, 4), "noise_mask": None}
    model = Model()
    made, record = Sampler().sample(model, STUDENT, "text", latent, 3)
    assert record == Record(STUDENT, 3) and made["noise_mask"] is None
    assert model.sampler == "euler"
    # From sigma 1 to 0: the noise, which is the seed, and the way of -1.
    assert torch.allclose(made["samples"], torch.full((1, 16, 2, 4, 4), 2.0))


def test_a_student_that_is_noised_anew_is_sampled_so(comfy: Path) -> None:
    model, student = Model(), replace(STUDENT, schedule=Schedule(solver="renoise"))
    Sampler().sample(model, student, "text", {"samples": torch.zeros(1, 16, 2, 4, 4)}, 3)
    assert model.sampler == "lcm"


def test_a_model_with_other_times_is_refused(comfy: Path) -> None:
    latent = {"samples": torch.zeros(1, 16, 2, 4, 4)}
    with pytest.raises(UserError, match="was patched to other times"):
        Sampler().sample(Model(1.0), STUDENT, "text", latent, 3)


def test_a_video_is_saved_with_what_it_was_made_from(comfy: Path) -> None:
    frames = torch.zeros(5, 32, 48, 3)
    graph: dict[str, Any] = {"1": {"class_type": "SGMDLoadStudent"}}
    more: dict[str, Any] = {"workflow": {"nodes": []}}
    shown = SaveVideo().save(frames, Record(STUDENT, 3), 16.0, "film", graph, more)
    assert shown["ui"]["images"] == [
        {"filename": "film_00007_.mp4", "subfolder": "", "type": "output"}
    ]
    inside = json.loads((comfy / "film_00007_.mp4").read_text())
    beside = json.loads((comfy / "film_00007_.json").read_text())
    assert inside["workflow"] == more["workflow"] and inside["prompt"] == graph
    assert beside == {**inside["lightx2v_sgmd"], "prompt": graph}
    assert beside["schedule"] == SCHEDULE.to_dict() and beside["seed"] == 3
    assert (beside["width"], beside["height"], beside["num_frames"]) == (48, 32, 5)


def test_every_node_has_a_name_and_comfyui_finds_its_function() -> None:
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    for node in NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION)) and node.CATEGORY == "lightx2v-sgmd"
