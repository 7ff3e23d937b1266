"""Counts what an iteration computes and sends: passes by role, operations, bytes. Formulas only.

The passes are those that ``counting.PassCounter`` counts while a run trains; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods.base import pair_iterations
from lightx2v_sgmd.networks.gradient_checkpointing import Checkpointing, recomputes_attention
from lightx2v_sgmd.parallel import DISCRIMINATOR, FAKE_SCORE, STUDENT, TEACHER

# S tokens, D width of a token, F width inside the feed-forward, L text rows


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one forward of one video; a product and a sum are two.

    Attributes:
        linear: Operations of layers with weights.
        attention: Operations of the products of queries, keys and values.
    """

    linear: int
    attention: int


def forward_operations(config: Mapping[str, Any], tokens: int, text_rows: int) -> Operations:
    """The operations of a forward of a ``WanTransformer3DModel``.

    Args:
        config: The network's configuration.
        tokens: Patches of the video.
        text_rows: Text rows that it attends to, padding included.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch = prod(config["patch_size"])
    block = tokens * (6 * width**2 + 2 * width * config["ffn_dim"]) + 2 * text_rows * width**2
    linear = (
        config["num_layers"] * block
        + tokens * width * patch * (config["in_channels"] + config["out_channels"])
        + config["freq_dim"] * width
        + 7 * width**2
        + text_rows * width * (config["text_dim"] + width)
    )
    attention = config["num_layers"] * 2 * tokens * (tokens + text_rows) * width
    return Operations(2 * linear, 2 * attention)


@dataclass(frozen=True)
class RolePasses:
    """Passes of one network in an iteration, for each video of a rank's batch, on average.

    Attributes:
        forwards: Forwards, with or without gradient.
        recomputed: Forwards once more, for a backward pass under gradient checkpointing.
        attention_recomputed: The part of ``recomputed`` that computes attention as well.
        backwards: Backward passes to the inputs.
        weight_backwards: Backward passes to the weights; adapters count by their share of them.
        forward_calls: Forwards, several videos' in one call (the two of guidance) counted once.
        backward_calls: Backward passes, likewise.
    """

    forwards: float = 0
    recomputed: float = 0
    attention_recomputed: float = 0
    backwards: float = 0
    weight_backwards: float = 0
    forward_calls: float = 0
    backward_calls: float = 0

    def __add__(self, other: RolePasses) -> RolePasses:
        return self.blend(other, 1, 1)

    def blend(self, other: RolePasses, own: float, others: float) -> RolePasses:
        """``own`` times this and ``others`` times the other."""
        mine, theirs = vars(self), vars(other)
        return RolePasses(**{name: own * mine[name] + others * theirs[name] for name in mine})

    def operations(self, forward: Operations) -> float:
        """An attention's backward pass costs two forwards of it, a linear layer's one for each."""
        linear = self.forwards + self.recomputed + self.backwards + self.weight_backwards
        attention = self.forwards + self.attention_recomputed + 2 * self.backwards
        return linear * forward.linear + attention * forward.attention


def forward(rows: float = 1, calls: float = 1) -> RolePasses:
    """Forwards without gradient."""
    return RolePasses(forwards=rows, forward_calls=calls)


def training_pass(
    checkpointing: Checkpointing, forwards: int = 1, weights: float = 1
) -> RolePasses:
    """A forward with its backward pass.

    Args:
        checkpointing: The activations that are computed again for the backward pass.
        forwards: 0 if an earlier forward's graph serves.
        weights: The share of the weights that get gradient.
    """
    return RolePasses(
        forwards=forwards,
        recomputed=float(bool(checkpointing)),
        attention_recomputed=float(recomputes_attention(checkpointing)),
        backwards=1,
        weight_backwards=weights,
        forward_calls=forwards,
        backward_calls=1,
    )


def _backward_of(rows: int, checkpointing: Checkpointing) -> RolePasses:
    """One backward pass to the inputs of a forward of several videos that is counted elsewhere."""
    return RolePasses(
        recomputed=rows * float(bool(checkpointing)),
        attention_recomputed=rows * float(recomputes_attention(checkpointing)),
        backwards=rows,
        backward_calls=1,
    )


def iteration_passes(job: Job, shares: Mapping[str, float] | None = None) -> dict[str, RolePasses]:
    """The passes of an iteration by role: means over a run's iterations and exit steps.

    Args:
        job: The job.
        shares: By role, numbers that are trained for each one of the network; default all.
    """
    shares = {STUDENT: 1.0, FAKE_SCORE: 1.0, **(shares or {})}
    distilling = _distillation(job, shares)
    if DISCRIMINATOR not in job.method.roles:
        return distilling
    share = pair_iterations(job.method, job.train.iterations) / job.train.iterations
    first, none = _pretraining(job, shares[STUDENT]), RolePasses()
    return {
        role: first.get(role, none).blend(distilling.get(role, none), share, 1 - share)
        for role in (STUDENT, FAKE_SCORE, TEACHER)
    }


def _distillation(job: Job, shares: Mapping[str, float]) -> dict[str, RolePasses]:
    method, again = job.method, job.parallel.gradient_checkpointing
    guided = _guided(job)
    steps = len(job.steps)
    # Up to the exit step, which is uniform and the only one with gradient.
    student = forward((steps - 1) / 2, (steps - 1) / 2)
    student += training_pass(again, weights=shares[STUDENT])
    teacher = forward(guided, 1)
    if method.through_teacher:
        teacher += _backward_of(guided, again)
    if DISCRIMINATOR in method.roles:  # the generator's loss, and generated beside real
        teacher += training_pass(again, weights=0) + forward(2, 1)
    if method.through_fake_score:
        fake_score = training_pass(again, weights=0)
    else:
        fake_score = forward()
    if method.fresh_rollouts:
        updates = method.fake_score_updates
        student = student.blend(forward(_own_steps(job), _own_steps(job)), 1, updates)
        update = training_pass(again, weights=shares[FAKE_SCORE])
        fake_score = fake_score.blend(update, 1, updates)
    else:
        fake_score += training_pass(again, 0 if _one_forward(job) else 1, shares[FAKE_SCORE])
    return {STUDENT: student, FAKE_SCORE: fake_score, TEACHER: teacher}


def stop_intervals(
    job: Job, shares: Mapping[str, float] | None = None
) -> dict[str, tuple[float, RolePasses]]:
    """The work of a rank in an iteration between two places where it may stop on request.

    By name: how often, on average over the exit steps, and the passes of each time. The places are
    those of ``observed.StopOnRequest``; iterations on ODE pairs are not in it.

    Args:
        job: The job.
        shares: As for ``iteration_passes``.
    """
    shares = {STUDENT: 1.0, FAKE_SCORE: 1.0, **(shares or {})}
    method, again = job.method, job.parallel.gradient_checkpointing
    guided = _guided(job)
    own = method.fake_score_updates if method.fresh_rollouts else 0
    generator = training_pass(again, weights=0) if method.through_fake_score else forward()
    rollouts = (len(job.steps) + 1) / 2 + own * _own_steps(job)
    found = {"a step of the rollout": (rollouts, forward())}
    if method.through_teacher:
        generator += forward(guided, 1) + _backward_of(guided, again)
    else:
        found["the teacher"] = (1, forward(guided, 1))
    if DISCRIMINATOR in method.roles:
        generator += training_pass(again, weights=0)
        found["the discriminator's update"] = (1, forward(2, 1))
    update = training_pass(again, 0 if _one_forward(job) else 1, shares[FAKE_SCORE])
    found["the generator's gradient"] = (1, generator)
    found["an update of the fake score"] = (own or 1, update)
    found["the student's backward pass"] = (1, training_pass(again, 0, shares[STUDENT]))
    return found


def _own_steps(job: Job) -> float:
    """The mean number of steps of a rollout that is the fake score's own."""
    steps = len(job.steps)
    return steps if job.method.whole_rollouts else (steps + 1) / 2


def _guided(job: Job) -> int:
    """The teacher's forwards of a video."""
    scale, draws = job.teacher.guidance_scale, job.method.guidance_range
    return 2 if scale != 1 or draws is not None else 1


def _one_forward(job: Job) -> bool:
    """True if one forward of the fake score serves the generator's gradient and its own update."""
    shared = not job.method.fresh_rollouts and job.method.through_fake_score
    return shared and job.parallel.strategy == "local"


def _pretraining(job: Job, share: float) -> dict[str, RolePasses]:
    return {
        STUDENT: training_pass(job.parallel.gradient_checkpointing, weights=share),
        TEACHER: training_pass(job.parallel.gradient_checkpointing, weights=0) + forward(2, 1),
    }


@dataclass(frozen=True)
class Traffic:
    """Bytes that a GPU receives in an iteration.

    Attributes:
        gather: Weights, from the ranks that hold them (ZeRO-3).
        reduce: Gradients, to the ranks that hold their share (ZeRO-3).
        exchange: Tokens and heads within the ranks that share a video (Ulysses).
        fetch: Weights, from CPU memory (``parallel.offload`` all or nvme).
    """

    gather: float = 0
    reduce: float = 0
    exchange: float = 0
    fetch: float = 0


class NetworkSize(NamedTuple):
    """The size of one network.

    Attributes:
        parameters: Number of its parameters.
        blocks: Number of its blocks.
        width: Channels of a token.
    """

    parameters: int
    blocks: int
    width: int


def iteration_traffic(
    job: Job,
    passes: Mapping[str, RolePasses],
    networks: Mapping[str, NetworkSize],
    *,
    tokens: int,
    gpus: int,
    size: int,
) -> Traffic:
    """The bytes that a GPU receives in the passes of an iteration.

    Weights are gathered once in a forward and once in a backward pass: a block that is computed
    again keeps them for its backward pass. Where they are in CPU memory, each rank fetches its own
    share of them as often.

    Args:
        job: The job.
        passes: From ``iteration_passes``.
        networks: The size of each role's network.
        tokens: Patches of a video.
        gpus: Number of GPUs of the run.
        size: Bytes of a number.
    """
    if job.parallel.strategy != "zero3":
        return Traffic()
    batches, degree = job.train.accumulation, job.parallel.sequence
    own, videos = -(-tokens // degree), batches * job.train.micro_batch
    gather = reduce = exchange = fetch = 0.0
    for role, each in passes.items():
        network = networks[role]
        own_share = network.parameters * size / gpus * batches
        others = own_share * (gpus - 1)
        calls = each.forward_calls + each.backward_calls
        gather += others * calls
        fetch += own_share * calls if holds_weights_in_cpu_memory(job) else 0
        reduce += others * each.weight_backwards
        # Queries, keys, values and the output of each block; all but one's own part comes from
        # others.
        sent = 4 * network.blocks * own * network.width * size * (degree - 1) / degree
        exchange += videos * sent * (each.forwards + each.recomputed + each.backwards)
    return Traffic(gather=gather, reduce=reduce, exchange=exchange, fetch=fetch)


def holds_weights_in_cpu_memory(job: Job) -> bool:
    """True if networks fetch their weights from the machine's memory for each pass."""
    return job.parallel.offload in ("all", "nvme")
