"""The student of a job: one of the served weights, alone or with a LoRA of the server's folder.

Students stay loaded as long as all of them, and the video that is being made, fit into the memory
limit together; then the least recently used one is put out. Imports no PyTorch by itself.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from infer.options import Lora, Options
from lightx2v_sgmd.families.size_rules import Size
from lightx2v_sgmd.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from infer.checks import Checked
    from infer.engine import Student
    from infer.engine_plan import EnginePlan
    from infer.memory_mode import Workload
    from infer.stopping import OnStep
    from lightx2v_sgmd.families.base import Model
    from lightx2v_sgmd.families.conditioning import Embedding
    from lightx2v_sgmd.files.video import Frames
    from lightx2v_sgmd.parallel.ranks import Ranks
    from lightx2v_sgmd.schedule import Schedule


class WorkingStudent(Protocol):
    """The part of ``infer.engine.Student`` that a worker uses."""

    @property
    def model(self) -> Model:
        """The model that it runs as."""

    @property
    def schedule(self) -> Schedule:
        """The steps it runs."""

    @property
    def suffix(self) -> str:
        """The suffix of the files that show what it makes."""

    def latent_shape(self, height: int, width: int, num_frames: int) -> tuple[int, int, int, int]:
        """``(C, T, h, w)`` of a video's latents."""

    def noise(self, seed: int, shape: tuple[int, int, int, int]) -> Tensor:
        """The start of one video."""

    def encode(self, prompts: Sequence[str], quiet: bool = False) -> list[Embedding]:
        """Each prompt's embedding."""

    def with_images(
        self,
        rows: Sequence[Embedding],
        images: Sequence[tuple[Path | None, Size]],
        quiet: bool = True,
        cached: bool = True,
    ) -> Sequence[Embedding]:
        """The same beside what is made of the images that the videos start from."""

    def denoise(
        self, rows: Sequence[Embedding], seeds: Sequence[int], size: Size, on_step: OnStep
    ) -> Tensor:
        """Latents of a batch."""

    def decode_each(self, latents: Tensor) -> Iterator[Iterator[Frames]]:
        """Each video's frames, chunk by chunk."""


class StudentSource(Protocol):
    """Gives the student that makes the videos of a job."""

    def get(
        self, model: str, lora: str | None, size: Size | None = None, count: int = 1
    ) -> WorkingStudent:
        """The student of that name, with a LoRA of that name or without.

        Args:
            model: The name of the weights.
            lora: The name of a LoRA.
            size: The size of the videos that it will make.
            count: The number of videos that it will make together.

        Raises:
            UserError: it is not served any more, or its files do not fit or cannot be loaded.
        """

    def batch_for(self, model: str, size: Size) -> int:
        """The number of videos of a size that are made together."""


@dataclass(frozen=True)
class Fit:
    """Weights that were checked, and the names of the LoRAs that fit them."""

    checked: Checked
    loras: tuple[str, ...]


@dataclass(frozen=True)
class _Loaded:
    """A student, and the memory that it takes while it makes nothing; None if unknown."""

    student: Student
    checked: Checked
    rest_gib: float | None


class Students:
    """Loads the served weights, with and without LoRAs, and keeps those that fit together.

    Args:
        weights: The served weights by name.
        engine: The engine's options; its LoRAs are always applied.
        loras: The files of LoRAs by name.
        batch: Videos that memory is planned for.
        ranks: The processes that share a video; default one.
    """

    def __init__(
        self,
        weights: Mapping[str, Path],
        engine: Options,
        loras: Mapping[str, Path],
        batch: int,
        ranks: Ranks | None = None,
    ) -> None:
        self._weights, self._engine, self._loras, self._batch = weights, engine, loras, batch
        self._ranks = ranks
        self._loaded: dict[tuple[str, str | None], _Loaded] = {}
        self._fits: dict[str, Fit] = {}
        self._limit_gib: float | None = None

    def check(self) -> dict[str, Fit]:
        """Checks all weights, and every LoRA against them, and plans memory; loads nothing.

        Each of the weights is planned as if it were alone. A LoRA must fit one of the weights.

        Returns:
            The weights by name, as they were given.

        Raises:
            UserError: a file does not fit or was distilled for other steps, or the memory does not
                suffice.
        """
        from infer.multi_gpu import check_ranks
        from lightx2v_sgmd.families.features import require_feature

        self._set_limit()
        alone: dict[str, Checked] = {}
        for model in self._weights:
            alone[model] = self._check(model, None)
            if self._ranks is not None:
                processes = f"--nproc {self._ranks.size}: {model}: sharing a video"
                require_feature(alone[model].model, "sequence", processes, "one process")
                check_ranks(self._ranks, alone[model].model.num_heads, "--nproc")
            self._plan(alone[model], None)
        fitting = {lora: self._models_of(lora, alone) for lora in self._loras}
        self._fits = {
            model: Fit(checked, tuple(lora for lora in fitting if model in fitting[lora]))
            for model, checked in alone.items()
        }
        return self._fits

    def _set_limit(self) -> None:
        """Takes what is free before anything is loaded, or what the user allows.

        What is loaded later must not count as taken when others are planned.
        """
        from infer.engine_plan import device_of, memory_limit_gib

        device = device_of(self._engine.device) if self._ranks is None else self._ranks.device
        self._limit_gib = memory_limit_gib(self._engine, device)

    def _models_of(self, lora: str, alone: Mapping[str, Checked]) -> set[str]:
        """The weights that a LoRA fits.

        Raises:
            UserError: there are none; says why it does not fit the first.
        """
        fitting, reasons = set(), []
        for model, checked in alone.items():
            try:
                if self._check(model, lora).schedule != checked.schedule:
                    raise UserError(
                        f"--lora-folder: {lora} was distilled for other steps than the weights; "
                        "serve it by itself with --lora"
                    )
                fitting.add(model)
            except UserError as error:
                reasons.append(error)
        if not fitting:
            raise reasons[0]
        return fitting

    def _check(self, model: str, lora: str | None) -> Checked:
        from infer.checks import check_student

        engine = self._options(lora)
        checked = check_student(
            self._weights[model],
            engine.assume_schedule,
            engine.loras,
            engine.base,
            engine.skip_image_layers,
        )
        if checked.model.takes_image == "always" and self._ranks is not None:
            raise UserError(
                f"{self._weights[model]}: starts videos from an image, which several processes do "
                "not share yet; leave --nproc out"
            )
        return checked

    def _options(self, lora: str | None) -> Options:
        if lora is None:
            return self._engine
        return replace(self._engine, loras=(*self._engine.loras, Lora(self._loras[lora])))

    def get(
        self, model: str, lora: str | None, size: Size | None = None, count: int = 1
    ) -> Student:
        """The student of a name; others are put out first where the memory demands it."""
        if model not in self._weights:
            raise UserError(f"model: {model!r} is not served any more; ask for another one")
        if lora is not None and lora not in self._loras:
            raise UserError(
                f"lora: {lora!r} is not in the server's folder any more; ask for another one"
            )
        key = (model, lora)
        found = self._loaded.pop(key, None)
        if found is None:
            found = self._load(model, lora, size, count)
        elif self._loaded:
            self._make_room(self._peak_gib(found.checked, found.student.plan, size, count))
        self._loaded[key] = found  # the last one is the one that was used last
        return found.student

    @property
    def loaded(self) -> list[tuple[str, str | None]]:
        """Names of weights and LoRA of each loaded student, the least recently used first."""
        return list(self._loaded)

    def _load(self, model: str, lora: str | None, size: Size | None, count: int) -> _Loaded:
        from infer.engine import Student
        from infer.memory_mode import resting_gib

        checked = self._check(model, lora)
        if "planned_memory" not in checked.model.features:
            self._make_room(None)  # first: what is free now decides if it may be loaded
        plan = self._plan(checked, lora)
        if self._loaded:
            self._make_room(self._peak_gib(checked, plan, size, count))
        work = self._work(checked, plan, size, count)
        rest = None if work is None else resting_gib(work, plan.memory_mode)
        return _Loaded(Student(checked, plan, self._ranks), checked, rest)

    def _make_room(self, needed_gib: float | None) -> None:
        """Puts students out until the rest and what is needed fit; all of them if nobody knows."""
        limit, put_out = self._limit_gib, False
        while self._loaded:
            parts = [needed_gib, *(one.rest_gib for one in self._loaded.values())]
            known = [part for part in parts if part is not None]
            if limit is not None and len(known) == len(parts) and sum(known) <= limit:
                break
            del self._loaded[next(iter(self._loaded))]
            put_out = True
        if put_out:
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _peak_gib(
        self, checked: Checked, plan: EnginePlan, size: Size | None, count: int
    ) -> float | None:
        """The most memory that a student takes while it makes such videos; None if unknown."""
        from infer.memory_mode import needed_gib

        work = self._work(checked, plan, size, count)
        return None if work is None else max(needed_gib(work, plan.memory_mode).values())

    def _work(
        self, checked: Checked, plan: EnginePlan, size: Size | None, count: int
    ) -> Workload | None:
        from infer.memory_mode import Workload

        size = size or _trained(checked)
        if size is None or "planned_memory" not in checked.model.features:
            return None
        return Workload(
            checked.model,
            *size,
            max(count, self._batch),
            plan.dtype.itemsize,
            plan.device.type == "cuda",
            1 if self._ranks is None else self._ranks.size,
            str(plan.text_dtype).removeprefix("torch."),
        )

    def _plan(self, checked: Checked, lora: str | None) -> EnginePlan:
        from infer.engine_plan import make_plan

        return make_plan(
            checked.model,
            self._options(lora),
            _trained(checked),
            self._batch,
            self._ranks,
            teacher_dtype=checked.teacher_dtype,
            limit_gib=self._limit_gib,
        )

    def batch_for(self, model: str, size: Size) -> int:
        """The number of videos that the engine makes together; 1 if the weights are not served."""
        from infer.engine import videos_together

        fit = self._fits.get(model)
        return 1 if fit is None else videos_together(fit.checked.model.latent_shape(*size))


def _trained(checked: Checked) -> Size | None:
    video = checked.video
    return (video.height, video.width, video.num_frames) if video else None
