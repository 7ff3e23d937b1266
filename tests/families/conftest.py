"""A tiny model of every family, as a teacher and as a student, for what all families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from torch import Tensor

from infer.checks import Checked
from infer.engine import Student
from infer.engine_plan import make_plan
from infer.options import Options
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.schedule import Schedule, even_timesteps
from tests.families.test_every_family import FAMILIES, Family
from tests.families.test_one_device import MAKERS
from tests.families.wan.test_image_to_video import write_prompts
from tests.families.wan.test_images import picture
from tests.tiny import make_tiny_experts, make_tiny_wan
from tests.training import make_job

STARTING_FROM_IMAGES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "wan2.1-i2v-14b": (partial(make_tiny_wan, kind="image"), "wan"),
    "wan2.2-i2v-a14b": (partial(make_tiny_experts, boundary=0.9, kind="image latents"), "wan"),
}
TEACHERS = {**MAKERS, **STARTING_FROM_IMAGES}
PROMPTS = ["a red circle", "a blue square moving slowly left"]
SEEDS = [5, 11]
FEED_FORWARD = {"wan": "ffn.net.2", "cogvideox": "ff.net.2", "sd": "ff.net.2"}
"""A layer behind the attention of each family's blocks."""


@dataclass(frozen=True)
class Tiny:
    """A tiny random teacher, its name in ``TEACHERS``, and the row that says how it is run."""

    folder: Path
    name: str
    family: Family

    def student(self, **options: Any) -> Student:
        """The teacher in a student's steps."""
        model = open_model(self.folder)
        steps, solver = even_timesteps(self.family.steps), cast(Any, self.family.solver)
        schedule = Schedule(steps, model.student_shifts[0], solver)
        plan = make_plan(model, Options(device="cpu", fuse_qkv=False, **options), None)
        return Student(Checked(model, None, schedule), plan)

    def told(
        self, student: Student, size: tuple[int, int, int] | None = None
    ) -> Sequence[Embedding]:
        """The conditioning of two videos: their prompts, and the images of those."""
        rows = student.encode(PROMPTS)
        if student.model.takes_image != "always":
            return rows
        file = self.folder.parent / "image.png"
        picture().save(file)
        return student.with_images(
            rows, [(file, size or self.family.size)] * len(rows), cached=False
        )

    def latents(self, student: Student) -> Tensor:
        """The latents of two videos."""
        return student.denoise(self.told(student), SEEDS, self.family.size)

    def job(self, at: Path, *settings: str) -> Job:
        """A job that trains adapters beside weights in 8 bits."""
        layer = next(layer for name, layer in FEED_FORWARD.items() if self.name.startswith(name))
        model = open_model(self.folder)
        images: Path | None = None
        if model.takes_image == "always":
            at.mkdir(exist_ok=True)
            images = write_prompts(at / "in", "a.png", "b.jpg")
        lora = f"{{train: lora, lora: {{rank: 4, targets: [to_q, to_k, to_v, {layer}]}}}}"
        return make_job(
            self.folder,
            at,
            *self.family.settings,
            *((f"data.prompts={images}",) if images is not None else ()),
            f"student={lora}",
            f"fake_score={lora}",
            "teacher.quantize=fp8-storage",
            "teacher.guidance_scale=3",
            *settings,
        )


@pytest.fixture(scope="module", params=TEACHERS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    make, family = TEACHERS[request.param]
    folder = make(tmp_path_factory.mktemp(request.param) / "teacher")
    return Tiny(folder, request.param, FAMILIES[family])
