"""The plan of a run: memory, operations, traffic and time of a job on so many GPUs, before it runs.

Nothing is loaded but configurations. ``nearest`` looks for a job that fits if one does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from distill.model_checks import check_against_model
from distill.planning.flops import (
    NetworkSize,
    Operations,
    RolePasses,
    Traffic,
    holds_weights_in_cpu_memory,
    iteration_passes,
    iteration_traffic,
    stop_intervals,
)
from distill.planning.model_meter import ModelMeter
from distill.planning.rank_memory import Memory, rank_memory
from distill.running.saving import checkpoint_copies
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import with_defaults
from lightx2v_sgmd.files.student_weights import file_count
from lightx2v_sgmd.files.tensors.dtypes import torch_type
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods.base import pair_iterations
from lightx2v_sgmd.networks.gradient_checkpointing import Checkpointing
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER
from lightx2v_sgmd.parallel.sequence import check_degree
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.host_memory import GIB

H100_FLOPS = 989e12
"""Dense bfloat16 operations per second of an H100 SXM, by NVIDIA's data sheet."""
PCIE_BANDWIDTH: Final = 25e9
"""Bytes per second over 16 lanes of PCIe 4.0, assumed: their limit is 31.5e9, and copies from
pinned memory come near 80 % of it.
"""
CHECKPOINTING: Final[dict[str, Checkpointing]] = {
    "without checkpointing": False,
    "with selective checkpointing": "selective",
    "with checkpointing": True,
}


@dataclass(frozen=True)
class Machine:
    """The GPUs that a job would run on.

    Attributes:
        gpus: Number of GPUs on all nodes.
        memory_gib: Memory of a GPU.
        node_gpus: Number of GPUs on a node.
        peak_flops: Peak operations per second of a GPU.
        mfu: The share of the peak that training reaches, communication between GPUs included.
        host_bandwidth: Bytes per second that a GPU receives from the machine's memory.
        reserve_gib: Memory of a GPU that stays free for what the plan does not count: the CUDA
            context, NCCL's buffers, fragmentation. An allowance, not a measurement.
    """

    gpus: int
    memory_gib: float = 80.0
    node_gpus: int = 8
    peak_flops: float = H100_FLOPS
    mfu: float = 0.4
    host_bandwidth: float = PCIE_BANDWIDTH
    reserve_gib: float = 4.0


@dataclass(frozen=True)
class Preemption:
    """The cost of stopping a run in the middle of an iteration without losing work.

    Attributes:
        longest: The longest work between two checks for a request to stop.
        seconds: The time of that work; see ``JobPlan.seconds``.
        checkpoint_bytes: Bytes of the checkpoint that all ranks together then write.
        rank_bytes: Bytes that the rank with the largest part writes.
    """

    longest: str
    seconds: float
    checkpoint_bytes: int
    rank_bytes: int


@dataclass(frozen=True)
class JobPlan:
    """The needs of a job on a machine.

    Attributes:
        job: The job.
        machine: The machine.
        tokens: Number of patches of a video.
        tokens_per_rank: The largest share of the tokens that a rank has (sequence parallelism).
        global_batch: Number of videos of an update.
        parameters: Number of parameters of one network of the teacher, of which a model with
            experts has several.
        memory: The memory of a rank.
        activations: Bytes of a forward and backward pass of the student, with and without
            checkpointing.
        passes: The passes of an iteration, by role.
        forward: The operations of a forward pass of the teacher for one video.
        forwards: The same of each role's network, which may start from another model.
        traffic: The traffic of a GPU in an iteration.
        preemption: The cost of stopping the run early.
        pixel_operations: The operations of the pixel discriminator's VAE and vision encoder in an
            iteration, for one video on one rank.
    """

    job: Job
    machine: Machine
    tokens: int
    tokens_per_rank: int
    global_batch: int
    parameters: int
    memory: Memory
    activations: dict[str, int]
    passes: dict[str, RolePasses]
    forward: Operations
    forwards: dict[str, Operations]
    traffic: Traffic
    preemption: Preemption
    pixel_operations: float = 0.0

    @property
    def flops(self) -> dict[str, float]:
        """The operations of an iteration on all GPUs, by role, and of decoding frames."""
        found = {
            role: self.global_batch * passes.operations(self.forwards[role])
            for role, passes in self.passes.items()
        }
        if self.pixel_operations:
            copies = self.global_batch * self.job.parallel.sequence
            found["decoded frames"] = copies * self.pixel_operations
        return found

    @property
    def seconds(self) -> float:
        """The time of an iteration: that of its operations, or of fetching if that is longer.

        Weights in CPU memory are fetched ahead, while the layers before them compute.
        """
        return max(self.compute_seconds, self.fetch_seconds)

    @property
    def compute_seconds(self) -> float:
        """The time of an iteration's operations, at the machine's MFU."""
        per_second = self.machine.gpus * self.machine.mfu * self.machine.peak_flops
        return sum(self.flops.values()) / per_second

    @property
    def fetch_seconds(self) -> float:
        """The time in which a GPU fetches weights from CPU memory in an iteration; 0 if none."""
        return self.traffic.fetch / self.machine.host_bandwidth

    @property
    def gpu_hours(self) -> float:
        """The GPU-hours of the whole run."""
        return self.seconds * self.job.train.iterations * self.machine.gpus / 3600

    @property
    def memory_gib(self) -> float:
        """The memory of a GPU, the reserve included."""
        return total_gib(self.memory, self.machine)

    @property
    def fits(self) -> bool:
        """True if the job fits on the given GPUs."""
        return self.memory_gib <= self.machine.memory_gib

    def per_node(self, parts: dict[str, int]) -> dict[str, float]:
        """The memory of all ranks of a node in GiB, by part."""
        ranks = min(self.machine.gpus, self.machine.node_gpus)
        return {name: ranks * value for name, value in _gib(parts).items()}

    def to_dict(self) -> dict[str, Any]:
        """The whole plan for JSON; memory in GiB, traffic in bytes."""
        job = self.job
        return {
            "model": job.teacher.path,
            **{
                f"{role}_model": path
                for role, path in (
                    (STUDENT, job.student.path),
                    (FAKE_SCORE, job.fake_score.path),
                )
                if path is not None
            },
            "method": job.method.name,
            "machine": asdict(self.machine),
            "strategy": job.parallel.strategy,
            "sequence": job.parallel.sequence,
            "offload": job.parallel.offload,
            "gradient_checkpointing": job.parallel.gradient_checkpointing,
            "parameters": self.parameters,
            "tokens": self.tokens,
            "tokens_per_rank": self.tokens_per_rank,
            "global_batch": self.global_batch,
            "memory_gib": {
                "total": self.memory_gib,
                "reserve": self.machine.reserve_gib,
                "peak_phase": self.memory.peak_phase,
                "components": _gib(self.memory.components),
                "phases": {name: _gib(parts) for name, parts in self.memory.phases.items()},
                "activations": _gib(self.activations),
                "host_per_node": self.per_node(self.memory.host),
                "disk_per_node": self.per_node(self.memory.disk),
                "text_encoder_at_start": self.memory.start / GIB,
            },
            "passes": {role: asdict(passes) for role, passes in self.passes.items()},
            "forward_flops": asdict(self.forward),
            "iteration_flops": self.flops,
            "traffic_bytes": asdict(self.traffic),
            "iteration_seconds": self.seconds,
            "compute_seconds": self.compute_seconds,
            "fetch_seconds": self.fetch_seconds,
            "gpu_hours": self.gpu_hours,
            "preemption": asdict(self.preemption),
            "fits": self.fits,
        }


def _gib(parts: dict[str, int]) -> dict[str, float]:
    return {name: value / GIB for name, value in parts.items() if value}


def make_plan(job: Job, model: Model, machine: Machine, meter: ModelMeter | None = None) -> JobPlan:
    """Plans a job on a machine, whether it fits or not.

    Args:
        job: The job.
        model: The job's opened teacher.
        machine: The machine on which it would run.
        meter: A meter with earlier measurements of the model, which are used again.

    Raises:
        UserError: the job cannot run there, whatever the memory.
    """
    job = with_defaults(job, model)
    check_against_model(job, model)
    check_layout(job, model, machine)
    meter = meter or ModelMeter(model)
    video = job.video
    tokens = model.token_count(video.height, video.width, video.frames)
    degree, train = job.parallel.sequence, job.train
    passes = iteration_passes(job, meter.shares(job))
    meters = {role: meter if role == TEACHER else meter.of(job, role) for role in passes}
    forwards = {role: each.operations(job) for role, each in meters.items()}
    return JobPlan(
        job=job,
        machine=machine,
        tokens=tokens,
        tokens_per_rank=-(-tokens // degree),
        global_batch=train.micro_batch * train.accumulation * machine.gpus // degree,
        parameters=meter.weights.count,
        memory=rank_memory(job, meter, machine.gpus),
        activations={
            name: meter.of(job, STUDENT).passes(job, train.micro_batch, kind, False).backward
            for name, kind in CHECKPOINTING.items()
        },
        passes=passes,
        forward=meter.operations(job),
        forwards=forwards,
        traffic=iteration_traffic(
            job,
            passes,
            {
                role: NetworkSize(each.weights.count, each.model.num_blocks, each.model.width)
                for role, each in meters.items()
            },
            tokens=tokens,
            gpus=machine.gpus,
            size=torch_type(job.teacher.dtype).itemsize,
        ),
        preemption=_preemption(job, machine, meter, forwards),
        pixel_operations=_pixel_operations(job, meter),
    )


def _pixel_operations(job: Job, meter: ModelMeter) -> float:
    """The operations on decoded frames for a video, averaged over the iterations of a run."""
    pixels = meter.discriminators.pixels(job, meter.latents(job))
    if pixels is None:
        return 0.0
    share = pair_iterations(job.method, job.train.iterations) / job.train.iterations
    return share * pixels.operations


def _preemption(
    job: Job, machine: Machine, meter: ModelMeter, forwards: Mapping[str, Operations]
) -> Preemption:
    # Some of the work is of several networks; all of it is counted as the largest one's.
    forward = max(forwards.values(), key=lambda each: each.linear + each.attention)
    per_second = job.parallel.sequence * machine.mfu * machine.peak_flops
    fetched = torch_type(job.teacher.dtype).itemsize * meter.weights.count / machine.gpus
    fetch_seconds = fetched / machine.host_bandwidth if holds_weights_in_cpu_memory(job) else 0
    found = {
        name: max(
            job.train.micro_batch * passes.operations(forward) / per_second,
            fetch_seconds * (passes.forward_calls + passes.backward_calls),
        )
        for name, (_, passes) in stop_intervals(job, meter.shares(job)).items()
    }
    longest = max(found, key=lambda name: found[name])
    trained, copies = meter.trained(job), checkpoint_copies(job)
    networks, experts = copies[STUDENT][0], len(meter.model.experts)
    student = 4 * trained[STUDENT].count
    files = 1 if job.student.adapters else file_count(student, machine.gpus)
    slices = sum(4 * trained[role].count * states for role, (_, states) in copies.items())
    return Preemption(
        longest=longest,
        seconds=found[longest],
        checkpoint_bytes=experts * (networks * student + slices),
        rank_bytes=-(-experts * networks * files // machine.gpus) * student // files
        + experts * slices // machine.gpus,
    )


def check_layout(job: Job, model: Model, machine: Machine) -> None:
    """Raises ``UserError`` for a layout that cannot run, whatever the memory."""
    gpus, node = machine.gpus, machine.node_gpus
    if job.parallel.strategy == "local" and gpus != 1:
        raise UserError(
            f"--gpus: {gpus}, and parallel.strategy local is one process; use --gpus 1 or "
            "--set parallel.strategy=zero3"
        )
    if gpus > node and gpus % node:
        raise UserError(
            f"--gpus: {gpus} is not a whole number of nodes of {node} GPUs; use "
            f"{gpus // node * node} or {-(-gpus // node) * node}, or another --node-gpus"
        )
    check_degree(job.parallel.sequence, model.num_heads, job.teacher.path, ranks=gpus)


def total_gib(memory: Memory, machine: Machine) -> float:
    """The memory of a GPU, the reserve included."""
    return memory.peak / GIB + machine.reserve_gib
