"""Every family computes on the device that it is given; nothing of it stays on the CPU.

No GPU is needed: the meta device stands for one, and an operation on tensors of two devices is an
error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infer import engine_plan
from infer.checks import Checked
from infer.engine import Student
from infer.options import Options
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.networks import attention
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.schedule import Schedule, even_timesteps
from tests.distill.test_methods import METHODS, name_of
from tests.families.test_every_family import FAMILIES
from tests.tiny import make_tiny_experts, make_tiny_wan
from tests.training import make_job, make_trainer

CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten.index.Tensor, aten.index_put_.default)
PROMPTS = ["a red circle", "a blue square moving slowly left"]
MAKERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    **{name: (family.make, name) for name, family in FAMILIES.items()},
    "wan2.2-ti2v-5b": (partial(make_tiny_wan, kind="text and image"), "wan"),
    "wan2.2-a14b": (make_tiny_experts, "wan"),
}
"""The function that writes a tiny model, and the row of ``FAMILIES`` that says how it runs."""
SETTINGS: tuple[dict[str, bool], ...] = (
    {},
    {"one_at_a_time": True, "tile_vae": True},
)


@pytest.fixture(scope="module", params=MAKERS)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make, family = MAKERS[request.param]
    return make(tmp_path_factory.mktemp(request.param) / "teacher"), FAMILIES[family]


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, as a GPU does.

    The meta device stands for the GPU. It has no numbers: where the code looks at one it sees 0 or
    True, and what is copied to the CPU is zeros.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 0
        if func is aten._to_copy.default:
            if args[0].is_meta and kwargs.get("device") == CPU:
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif func is aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0]
        elif func not in COPIES:
            # A GPU takes numbers, and indices, from the CPU.
            devices = {x.device for x in given if x.ndim}
            assert len(devices) < 2, f"{func} of tensors on {devices}"
        return func(*args, **kwargs)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device; PyTorch has no autocast for it, the engine no memory to plan, and no trial."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(engine_plan, "memory_limit_gib", lambda *_: None)
    monkeypatch.setattr(attention, "choose", lambda *_: "sdpa")
    with OneDevice():
        yield torch.device("meta")


def test_tensors_of_two_devices_are_refused(device: torch.device) -> None:
    there, here = torch.zeros(3, device=device), torch.zeros(3)
    assert (there + there[0] + 1).is_meta and there.cpu().device == CPU and bool(there.any())
    with pytest.raises(AssertionError, match="tensors on"):
        torch.nn.functional.linear(there, here[None])


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: next(iter(each), "defaults"))
def test_a_video_is_made_on_the_device(
    teacher: Any, settings: dict[str, Any], device: torch.device
) -> None:
    folder, family = teacher
    model = open_model(folder)
    schedule = Schedule(even_timesteps(family.steps), family.shift, family.solver)
    options = Options(device=device, compile=False, **settings)
    plan = engine_plan.make_plan(model, options, None)
    student = Student(Checked(model, None, schedule), plan)
    latents = student.denoise(student.encode(PROMPTS), [1, 2], family.size)
    assert latents.device == CPU
    assert all(p.is_meta for p in student.transformer.parameters())
    assert sum(chunk.shape[1] for chunk in student._decode(latents)) == family.frames


def add_gradients(job: Job, device: torch.device) -> None:
    """All updates of the first iteration, without a step of an optimizer."""
    trainer = make_trainer(job, Ranks(device=device))
    batch = trainer.batches.micro_batch

    def with_real(number: int, micro: int) -> Any:
        made = batch(number, micro)
        return replace(made, real=torch.empty_like(made.noise))

    vars(trainer.batches)["micro_batch"] = with_real
    for _, update in trainer.updates(0):
        for role in update(0):
            gradients = [p.grad for p in trainer.strategy.networks[role].parameters()]
            assert any(each is not None for each in gradients), role
            assert all(each is None or each.is_meta for each in gradients), role


@pytest.mark.slow
def test_gradients_are_made_on_the_device(
    teacher: Any, tmp_path: Path, device: torch.device
) -> None:
    folder, family = teacher
    if len(open_model(folder).experts) > 1:
        pytest.skip("times without numbers choose no expert")
    settings = (*family.settings, "teacher.guidance_scale=3")
    add_gradients(make_job(folder, tmp_path, *settings), device)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_every_method_computes_on_the_device(
    tiny_teacher: Path, tmp_path: Path, method: Any, device: torch.device
) -> None:
    add_gradients(replace(make_job(tiny_teacher, tmp_path), method=method), device)
