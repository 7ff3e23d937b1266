"""Optimizer state in files: nothing is computed otherwise, and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.utils.cpp_extension
from torch import Tensor

from distill import distill
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, connect, disconnect
from lightx2v_sgmd.parallel.zero3 import engines, nvme, strategy
from lightx2v_sgmd.parallel.zero3.nvme import CheckedFiles, SwapFolder, check_offload_dir
from lightx2v_sgmd.system.errors import RunError, UserError
from tests.parallel.ranks import run_ranks
from tests.training import make_job, make_trainer, needs_deepspeed, read_trace, weights_of

SWAPPING = "deepspeed.runtime.swap_tensor"
CPU = torch.device("cpu")


class Handle:
    """DeepSpeed's ``aio_handle``, at once and by Python.

    Like it, it does nothing with memory that does not begin at a disk sector, and says nothing.
    """

    def __init__(self, **options: Any) -> None:
        self.done, self.given = 0, set[int]()

    def new_cpu_locked_tensor(self, count: int, like: Tensor) -> Tensor:
        room = torch.empty(count + 128, dtype=like.dtype)
        start = -room.data_ptr() % 512 // 4
        buffer = room[start : start + count]
        self.given.add(buffer.untyped_storage().data_ptr())
        return buffer

    def free_cpu_locked_tensor(self, buffer: Tensor) -> None:
        self.given.discard(buffer.untyped_storage().data_ptr())

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.given

    def works_with(self, buffer: Tensor) -> bool:
        return not self.is_pinned(buffer) or buffer.data_ptr() % 512 == 0

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        if self.works_with(buffer):
            Path(path).write_bytes(buffer.numpy().tobytes())
        self.done += 1
        return 0

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        content = bytearray(Path(path).read_bytes())
        assert len(content) == 4 * buffer.numel()
        if self.works_with(buffer):
            buffer.copy_(torch.frombuffer(content, dtype=buffer.dtype))
        self.done += 1
        return 0

    def wait(self) -> int:
        done, self.done = self.done, 0
        return done


@contextmanager
def small_groups(built: bool) -> Iterator[None]:
    """Inside, a tiny network has several groups, all but the last of them large enough to swap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{SWAPPING}.optimizer_utils.MIN_AIO_BYTES", 8192)
        patch.setattr(engines, "BLOCK", 8192)
        patch.setattr(engines, "SUB_GROUP", 7000)
        # The same groups without files: a norm is a sum over groups, rounded as they are.
        config = strategy.Zero3._config
        patch.setattr(strategy.Zero3, "_config", lambda *args: _grouped(config(*args)))
        if not built:
            builder = SimpleNamespace(load=lambda: SimpleNamespace(aio_handle=Handle))
            name = f"{SWAPPING}.partitioned_optimizer_swapper.AsyncIOBuilder"
            patch.setattr(name, lambda: builder)
            patch.setattr(nvme, "libaio_problem", str)
        yield


def _grouped(config: dict[str, Any]) -> dict[str, Any]:
    zero = {**config["zero_optimization"], "sub_group_size": engines.SUB_GROUP}  # type: ignore[attr-defined]
    return {**config, "zero_optimization": zero}


@pytest.fixture(params=["built", "stand-in"])
def operation(request: pytest.FixtureRequest) -> Iterator[None]:
    """DeepSpeed's own and one that needs no libaio."""
    if request.param == "built" and "LIGHTX2V_SGMD_TEST_NVME" not in os.environ:
        pytest.skip("set LIGHTX2V_SGMD_TEST_NVME=1: building DeepSpeed's async_io takes minutes")
    with small_groups(request.param == "built"):
        yield
    disconnect("zero3")


@pytest.fixture
def stand_in() -> Iterator[None]:
    with small_groups(built=False):
        yield
    disconnect("zero3")


def job(teacher: Path, folder: Path, offload: str, *settings: str) -> Job:
    layout = ["parallel.strategy=zero3", f"parallel.offload={offload}"]
    if offload == "nvme":
        layout.append(f"parallel.offload_dir={folder / 'disk'}")
        (folder / "disk").mkdir(parents=True, exist_ok=True)
    return make_job(teacher, folder, *layout, *settings)


def build(teacher: Path, folder: Path, offload: str, *settings: str) -> Any:
    made = job(teacher, folder, offload, *settings)
    return make_trainer(made, connect("zero3", CPU), "zero3")


def everything(strategy: Any) -> dict[str, Tensor]:
    """Weights, average and what a checkpoint has besides, by kind and name."""
    found: dict[str, dict[str, Tensor]] = {
        "student": dict(strategy.whole_tensors(STUDENT)),
        "average": dict(strategy.whole_tensors(STUDENT, averaged=True)),
        **{f"{role} state": strategy.save_slices(role) for role in (STUDENT, FAKE_SCORE)},
    }
    return {f"{kind}/{name}": t for kind, ts in found.items() for name, t in ts.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, t in expected.items() if not torch.equal(found[name], t)] == []


def swapped_files(disk: Path) -> set[str]:
    return {f"{file.parents[3].name}/{file.name.split('-')[0]}" for file in disk.rglob("*.swp")}


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.usefixtures("operation")
def test_files_change_no_number(tiny_teacher: Path, tmp_path: Path) -> None:
    results, states = {}, {}
    for offload in ("all", "nvme"):
        trainer = build(tiny_teacher, tmp_path, offload)
        strategy = trainer.strategy
        steps = [trainer.iterate(iteration) for iteration in range(2)]
        batch = trainer.batches.micro_batch(0, 0)
        with torch.no_grad(), strategy.averaged_student():
            averaged = strategy.predict(STUDENT, batch.noise, batch.time, batch.conditioning)
        steps.append(trainer.iterate(2))
        results[offload] = [(step.losses, step.grad_norm) for step in steps]
        states[offload] = everything(strategy) | {"averaged velocity": averaged}
        if offload == "nvme":
            for role in (STUDENT, FAKE_SCORE):
                sharded = strategy._engines[role].optimizer
                swapped = [flat.numel() == 0 for flat in sharded.fp32_partitioned_groups_flat]
                assert all(swapped[:-1]) and not swapped[-1]
            kinds = {name.partition("/")[2] for name in swapped_files(tmp_path / "disk")}
            assert {"exp_avg", "exp_avg_sq"} < kinds
            assert any("gradient" in kind for kind in kinds)
        strategy.close()
    assert results["nvme"] == results["all"]
    assert_equal(states["nvme"], states["all"])
    assert list((tmp_path / "disk").iterdir()) == []


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("adapters", [False, True])
def test_masters_in_files_are_float32(tiny_teacher: Path, tmp_path: Path, adapters: bool) -> None:
    """They begin with the values of a bfloat16 teacher's file, or with adapters' first ones."""
    settings = ["teacher.dtype=bfloat16"]
    if adapters:
        settings += ["student.train=lora", "fake_score.train=lora"]
        engines.SUB_GROUP = 2000  # type: ignore[attr-defined]
    states = []
    for offload in ("all", "nvme"):
        trainer = build(tiny_teacher, tmp_path, offload, *settings)
        first = {f"first {n}": t for n, t in trainer.strategy.whole_tensors(STUDENT)}
        if not adapters:
            exact = open_wan(tiny_teacher).load_transformer().state_dict()
            assert all(torch.equal(t, exact[n.removeprefix("first ")]) for n, t in first.items())
        trainer.iterate(0)
        states.append(everything(trainer.strategy) | first)
        assert offload == "all" or swapped_files(tmp_path / "disk")
        trainer.strategy.close()
    assert_equal(states[1], states[0])


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_a_checkpoint_is_taken_up(tiny_teacher: Path, tmp_path: Path) -> None:
    """Bit for bit, whatever was and is in files."""
    for iterations, offload in enumerate(["nvme", "nvme", "all"], start=1):
        settings = f"train.iterations={iterations}"
        parts = distill(job(tiny_teacher, tmp_path / "parts", offload, settings), quiet=True)
    whole = distill(job(tiny_teacher, tmp_path / "whole", "all", settings), quiet=True)
    assert read_trace(parts) == read_trace(whole)
    assert_equal(weights_of(find_checkpoint(parts)), weights_of(find_checkpoint(whole)))


def _run(teacher: Path, folder: Path, offload: str) -> Path:
    """On each of several ranks."""
    with small_groups(built=False):
        return distill(job(teacher, folder / offload, offload, "train.iterations=2"), quiet=True)


@needs_deepspeed
@pytest.mark.slow
def test_ranks_have_files_of_their_own(tiny_teacher: Path, tmp_path: Path) -> None:
    runs = [run_ranks(2, _run, tiny_teacher, tmp_path, offload) for offload in ("all", "nvme")]
    assert read_trace(runs[1]) == read_trace(runs[0])
    assert_equal(*(weights_of(find_checkpoint(run)) for run in runs))
    assert list((tmp_path / "nvme" / "disk").iterdir()) == []


def test_failed_reads_and_writes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's handle itself says of neither that it failed."""
    handle, path = Handle(), str(tmp_path / "state.swp")
    checked = CheckedFiles(handle)
    buffer = checked.new_cpu_locked_tensor(4096, torch.empty(0))
    values = torch.randn(3072)
    for first in (0, 48):  # 48: not at a sector
        part = buffer[first : first + 3072]
        part.copy_(values)
        checked.async_pwrite(part, path, 0)
        assert checked.wait() == 1
        part.zero_()
        checked.async_pread(part, path, 0)
        assert checked.wait() == 1 and torch.equal(part, values)
    monkeypatch.setattr(handle, "async_pread", lambda *_: 0)
    checked.async_pread(part, path, 0)
    with pytest.raises(RunError, match=r"reading .*state\.swp failed; check the disk"):
        checked.wait()
    monkeypatch.setattr(handle, "async_pwrite", lambda _, path, offset: 0)
    checked.async_pwrite(buffer, path, 0)
    with pytest.raises(RunError, match=r"has 12288 bytes, not 16384; free some space"):
        checked.wait()


def test_a_folder_goes_with_its_process(tmp_path: Path) -> None:
    """At ``close`` or, if the process was killed, when the next one comes; not a living one's."""
    killed = tmp_path / "lightx2v-sgmd-killed"
    killed.mkdir()
    (killed / "state.swp").write_bytes(b"state")
    (tmp_path / "other").mkdir()
    ours, theirs = SwapFolder(tmp_path), SwapFolder(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"other", ours.path.name, theirs.path.name}
    ours.close()
    theirs.close()
    assert [f.name for f in tmp_path.iterdir()] == ["other"]


def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(UserError, match=r"^parallel.offload: nvme .*apt install libaio-dev\)$"):
        check_offload_dir(tmp_path, False, CPU)
    monkeypatch.setattr(nvme, "libaio_problem", str)
    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", None)
    with pytest.raises(UserError, match="needs the CUDA toolkit"):
        check_offload_dir(tmp_path, False, torch.device("cuda"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^parallel.offload_dir: .*file/swap cannot be read"):
        check_offload_dir(tmp_path / "file" / "swap", True, CPU)
    check_offload_dir(tmp_path / "new" / "swap", True, CPU)
    assert list((tmp_path / "new" / "swap").iterdir()) == []
