"""Memory of a rank: what is there all the time, and what each phase of an iteration adds.

Weights, gradients and optimizer state follow from the strategy's layout, DeepSpeed's buffers from
its defaults, which ``parallel.deepspeed_engines`` leaves as they are. Activations are metered
(``model_meter``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from distill.planning.flops import holds_weights_in_cpu_memory
from distill.planning.metering import PassMemory
from distill.planning.model_meter import ModelMeter, Weights
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.files.tensors.dtypes import torch_type
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.networks.vision_encoder import vision_is_here
from lightx2v_sgmd.parallel import DISCRIMINATOR, FAKE_SCORE, STUDENT, TEACHER
from lightx2v_sgmd.parallel.zero3 import nvme

Parts = dict[str, int]
"""Bytes by component."""

BUCKET = 500_000_000
"""Numbers in DeepSpeed's buffer for gradients (``reduce_bucket_size``), of each trained role."""
PREFETCH = 50_000_000
"""Number of weights that are gathered together (``stage3_prefetch_bucket_size``)."""
GATHERED = 1_000_000_000 + PREFETCH
"""Most numbers of gathered weights: ``stage3_max_live_parameters`` and what comes next."""
STEPPED = 1_000_000_000
"""Most numbers that the optimizer updates at once (``sub_group_size``)."""
LATENT_COPIES = 24
"""Float32 tensors of a video's size that an iteration holds at most: noises, x_t, losses' terms."""

TEXT_ENCODER = "text encoder"
"""The phase at the start in which prompts are encoded."""


@dataclass(frozen=True)
class Memory:
    """The memory of the rank that needs most, in bytes.

    Attributes:
        always: Parts that stay in memory after the first iteration.
        phases: The parts that each phase adds while it lasts.
        host: Parts that offloading puts into CPU memory, of a rank.
        start: Bytes of the text encoder, which is freed before the networks are loaded.
        disk: Parts that offloading puts into files, of a rank.
    """

    always: Parts
    phases: Mapping[str, Parts]
    host: Parts
    start: int
    disk: Parts = field(default_factory=dict)

    @property
    def peak_phase(self) -> str:
        """The phase that needs most, the text encoder's at the start included."""
        phase = max(self.phases, key=lambda name: sum(self.phases[name].values()))
        trained = sum(self.always.values()) + sum(self.phases[phase].values())
        return phase if trained > self.start else TEXT_ENCODER

    @property
    def components(self) -> Parts:
        """The parts in memory during the peak phase."""
        if self.peak_phase == TEXT_ENCODER:
            return {TEXT_ENCODER: self.start}
        return self.always | self.phases[self.peak_phase]

    @property
    def least_peak(self) -> int:
        """The same without the buffers of a layout: no layout with as many activations has less."""
        activations = max(parts.get("activations", 0) for parts in self.phases.values())
        return sum(self.always.values()) + activations

    @property
    def peak(self) -> int:
        """The memory of the peak phase in bytes: the sum of its components."""
        return sum(self.components.values())


def rank_memory(job: Job, meter: ModelMeter, gpus: int) -> Memory:
    """The memory of a job's rank, if there are so many ranks."""
    always, host, disk = _lasting_parts(job, meter, gpus)
    local = job.parallel.strategy == "local"
    phases = _local_phases(job, meter) if local else _sharded_phases(job, meter, gpus)
    start = meter.text_encoder * _size(job)
    return Memory(always, phases, host, start, disk)


def lasting_bytes(job: Job, meter: ModelMeter, gpus: int) -> int:
    """Counts what a rank holds during the whole iteration: all but activations and buffers."""
    return sum(_lasting_parts(job, meter, gpus)[0].values())


def least_bytes(job: Job, meter: ModelMeter, gpus: int) -> int:
    """Counts what a rank holds at least: ``lasting_bytes`` and ``block_inputs``; meters nothing."""
    student = meter.of(job, STUDENT).model
    return lasting_bytes(job, meter, gpus) + block_inputs(job, student)


def untouched_bytes(job: Job, meter: ModelMeter) -> int:
    """Counts the bytes of DeepSpeed's buckets that a small network never writes to.

    A GPU has them reserved; the main memory gives a page when it is written to.
    """
    if job.parallel.strategy == "local":
        return 0
    trained = (meter.trained(job) | _heads(job, meter)).values()
    empty = sum(max(0, BUCKET - weights.count) for weights in trained)
    return len(meter.model.experts) * _size(job) * empty


def block_inputs(job: Job, model: Model) -> int:
    """Counts the bytes of the inputs of the student's blocks in a rank's micro-batch.

    The backward pass needs these inputs whatever is computed again. Only the configuration of the
    model that the student starts from is read.
    """
    video = job.video
    tokens = model.token_count(video.height, video.width, video.frames)
    inputs = model.num_blocks * (tokens // job.parallel.sequence) * model.width * _size(job)
    return job.train.micro_batch * inputs


def latent_bytes(job: Job, model: Model) -> int:
    """Counts the bytes of a micro-batch's latents, noises and terms of losses."""
    video = job.video
    shape = model.latent_shape(video.height, video.width, video.frames)
    return 4 * LATENT_COPIES * job.train.micro_batch * torch.Size(shape).numel()


def conditioning_bytes(job: Job, meter: ModelMeter, samples: int) -> int:
    """Counts the bytes of what a network is told of so many samples: texts, and images if any."""
    with torch.device("meta"):
        told = meter.model.empty_conditioning(samples, meter.text_rows)
        image = meter.image(job)
    images = samples * sum(tensor.numel() for tensor in image.values())
    return _size(job) * sum(told[name].numel() for name in told) + 4 * images


def _lasting_parts(job: Job, meter: ModelMeter, gpus: int) -> tuple[Parts, Parts, Parts]:
    local = job.parallel.strategy == "local"
    one = _local_state(job, meter) if local else _sharded_state(job, meter, gpus)
    # Every expert has networks, optimizers and buffers of its own; an iteration trains one of them.
    experts = len(meter.model.experts)
    always, host, disk = ({name: experts * n for name, n in parts.items()} for parts in one)
    always["latents"] = latent_bytes(job, meter.model)
    # One negative prompt serves all samples, unless each stands beside a sample's image.
    told = 2 * job.train.micro_batch if meter.image(job) else job.train.micro_batch + 1
    always["conditioning"] = conditioning_bytes(job, meter, told)
    frozen = meter.discriminators.pixel_weights(job)
    if frozen is not None:
        always[_frozen_pixels(job)] = frozen
    return always, host, disk


def _frozen_pixels(job: Job) -> str:
    """The name of the pixel discriminator's frozen networks."""
    pixels = job.method.pixel_discriminator
    assert pixels is not None, "the job has no pixel discriminator"
    assumed = "" if vision_is_here(pixels.vision_encoder) else " (SAM's ViT-B)"
    return f"VAE and vision encoder{assumed}"


def _size(job: Job) -> int:
    """Bytes of a number in the job's precision."""
    return torch_type(job.teacher.dtype).itemsize


def _gradient_size(job: Job) -> int:
    """Bytes of a number of a sharded gradient: micro-batches are added up in float32."""
    return 4 if job.train.accumulation > 1 else _size(job)


def _adapted(job: Job) -> list[str]:
    """The roles that are trained by adapters and have the teacher's own weights beside them."""
    settings = {STUDENT: job.student, FAKE_SCORE: job.fake_score}
    return [role for role in job.method.roles if role in settings and settings[role].adapters]


def _frozen_beside(job: Job, meter: ModelMeter) -> list[ModelMeter]:
    """The models that are there frozen beside the teacher, for the adapters of some role."""
    adapted = {id(each): each for role in _adapted(job) if (each := meter.of(job, role))}
    return [each for each in adapted.values() if each is not meter]


def _local_state(job: Job, meter: ModelMeter) -> tuple[Parts, Parts, Parts]:
    trained = meter.trained(job)
    numbers = sum(weights.count for weights in trained.values())
    numbers += sum(weights.count for weights in _heads(job, meter).values())
    frozen = meter.frozen(job) + sum(each.frozen(job) for each in _frozen_beside(job, meter))
    state = {
        "weights": 4 * numbers + frozen,
        "optimizer": 8 * numbers,
        "moving average": 4 * trained[STUDENT].count if job.train.ema else 0,
    }
    return state, {}, {}


def _sharded_state(job: Job, meter: ModelMeter, gpus: int) -> tuple[Parts, Parts, Parts]:
    size, offload = _size(job), job.parallel.offload
    networks, heads = meter.trained(job), _heads(job, meter)
    trained = networks | heads
    share = {role: -(-weights.count // gpus) for role, weights in trained.items()}
    numbers = sum(share.values())
    optimizer = {
        "master weights": 4 * numbers,  # beside the shards, in float32 too
        "optimizer": 8 * numbers,
        "gradients": _gradient_size(job) * numbers,
        "moving average": 4 * share[STUDENT] if job.train.ema else 0,
    }
    # Each network gathers for itself, even if it shares its weights with another one.
    whole = meter.weights.small + sum(meter.of(job, role).weights.small for role in networks)
    whole += sum(trained[role].small for role in (*_adapted(job), *heads))
    frozen = [meter, *_frozen_beside(job, meter)]
    weights = {"weights": size * (numbers + sum(-(-each.weights.count // gpus) for each in frozen))}
    state = {
        "small weights, whole": size * whole,
        "gradient buckets": size * len(trained) * BUCKET,
    }
    host: Parts = {}
    for parts, moved in (
        (weights, holds_weights_in_cpu_memory(job)),
        (optimizer, offload != "none"),
    ):
        (host if moved else state).update(parts)
    disk: Parts = {}
    if offload == "nvme":
        disk = {name: host.pop(name) for name in ("master weights", "optimizer")}
        disk["gradients"] = 4 * numbers
        most = sum(
            min(share[role], nvme.SUB_GROUP + -(-weights.largest // gpus))
            for role, weights in trained.items()
        )
        host["swap buffers"] = 4 * nvme.BUFFERS * most
    return state, host, disk


def _heads(job: Job, meter: ModelMeter) -> dict[str, Weights]:
    """The weights of a discriminator's heads, by role."""
    sizes = meter.discriminators.weights(job)
    return {role: Weights.of(numbers) for role, numbers in sizes.items()}


@dataclass(frozen=True)
class _Activations:
    """The activations of an iteration's passes, in bytes.

    Attributes:
        student: A pass of the student.
        fake_score: A pass of the fake score.
        teacher: A forward of the teacher.
        through: By phase, passes through frozen networks while the graphs of the student and the
            fake score wait.
        alone: By phase, those while the student's graph waits: of a discriminator's own update, or
            where there is no fake score.
    """

    student: PassMemory
    fake_score: PassMemory
    teacher: int
    through: Mapping[str, int]
    alone: Mapping[str, int]

    @classmethod
    def of(cls, job: Job, meter: ModelMeter) -> _Activations:
        """Metered."""
        batch, method = job.train.micro_batch, job.method
        guided = job.teacher.guidance_scale != 1 or method.guidance_range is not None
        rows = batch * (2 if guided or DISCRIMINATOR in method.roles else 1)
        local = job.parallel.strategy == "local"
        again = job.parallel.gradient_checkpointing
        through, alone = {}, {}
        if method.through_teacher:
            guided_pass = meter.passes(job, batch * (1 + guided), again, False)
            through["through the teacher"] = guided_pass.backward
        if DISCRIMINATOR in method.roles:
            what = replace(meter.planned_pass(job, batch), checkpointing=again)
            heads = meter.discriminators.heads(job, what)
            through["through the discriminator"] = heads.generator
            alone["discriminator's update"] = heads.update
        pixels = meter.discriminators.pixels(job, meter.latents(job))
        if pixels is not None:
            alone["through the pixel discriminator"] = pixels.generator
            alone["pixel discriminator's update"] = pixels.update
        keeping = local and job.train.accumulation == 1
        student, fake_score = (meter.of(job, role) for role in (STUDENT, FAKE_SCORE))
        return cls(
            student.passes(job, batch, again, keeping, job.student.adapters),
            fake_score.passes(job, batch, again, keeping, job.fake_score.adapters),
            meter.forward(job, rows) + conditioning_bytes(job, meter, rows),
            through,
            alone,
        )


def _sharded_phases(job: Job, meter: ModelMeter, gpus: int) -> dict[str, Parts]:
    found, size = _Activations.of(job, meter), _size(job)
    student, fake_score, fresh = found.student, found.fake_score, job.method.fresh_rollouts
    trained = meter.trained(job)
    most = max(weights.count for weights in trained.values())
    # Weights of several ranks arrive in a buffer together and are copied out of it. A single rank
    # has copies where its weights are in CPU memory.
    copies = gpus > 1 or holds_weights_in_cpu_memory(job)
    networks = {TEACHER: meter, STUDENT: meter.of(job, STUDENT)}
    networks[FAKE_SCORE] = meter.of(job, FAKE_SCORE)
    copied = {role: size * min(each.weights.count, GATHERED) for role, each in networks.items()}
    buffers = {
        role: size * min(each.weights.count, PREFETCH + each.weights.largest)
        for role, each in networks.items()
    }
    whole: dict[str, Parts] = {}
    gathered: dict[str, Parts] = {}
    for role in networks:
        whole[role] = {"gathered weights": copied[role]} if copies else {}
        gathered[role] = whole[role] | ({"gathering": buffers[role]} if gpus > 1 else {})
    # Gradients are copied side by side to be reduced: whenever a bucket is full, or at the end of
    # the backward pass, when no activations are left.
    reduction = {"reduction": size * min(most, BUCKET)}
    reducing = reduction if most > BUCKET else {}
    through = fake_score.backward if job.method.through_fake_score else fake_score.forward
    fake_activations = fake_score.activations if job.method.through_fake_score else 0
    # DeepSpeed holds the weights that the student's backward pass begins with, which comes last.
    waiting = {"student's weights, gathered": copied[STUDENT]} if copies else {}
    phases = {
        "teacher": gathered[TEACHER]
        | waiting
        | {"activations": student.activations + found.teacher},
        "generator's gradient": gathered[FAKE_SCORE]
        | waiting
        | {"activations": student.activations + through},
        "fake score's update": gathered[FAKE_SCORE]
        | reducing
        | ({} if fresh else waiting)
        | {"activations": fake_score.backward + (0 if fresh else student.activations)},
        "student's update": gathered[STUDENT] | reducing | {"activations": student.backward},
        "reduction": whole[_larger(networks)]
        | reduction
        | {"activations": 0 if fresh else student.activations},
        "samples": gathered[STUDENT] | {"activations": max(student.forward, meter.decoding(job))},
    }
    for name, through_frozen in found.through.items():
        activations = student.activations + fake_activations + through_frozen
        phases[name] = gathered[TEACHER] | waiting | {"activations": activations}
    for name, others in found.alone.items():
        phases[name] = gathered[TEACHER] | waiting | {"activations": student.activations + others}
    if job.parallel.offload == "none":
        # The gradient flattened, and in float32; fused AdamW needs nothing more.
        numbers = 4 + _gradient_size(job) % 4
        updated = min(-(-most // gpus), STEPPED)
        # DeepSpeed lets go of gathered weights late: often one network's are still there.
        phases["optimizer step"] = whole[_larger(networks)] | {
            "optimizer's temporaries": numbers * updated
        }
    return phases


def _larger(networks: Mapping[str, ModelMeter]) -> str:
    """The trained role with the larger network."""
    return max((STUDENT, FAKE_SCORE), key=lambda role: networks[role].weights.count)


def _local_phases(job: Job, meter: ModelMeter) -> dict[str, Parts]:
    found, fresh = _Activations.of(job, meter), job.method.fresh_rollouts
    passes = {STUDENT: found.student, FAKE_SCORE: found.fake_score}
    trained = {role: weights.count for role, weights in meter.trained(job).items()}
    trained = {STUDENT: trained[STUDENT], FAKE_SCORE: trained.get(FAKE_SCORE, trained[STUDENT])}
    # Autocast keeps bfloat16 copies of what is trained: in a graph, and in a forward.
    casts = {role: 2 * count if _size(job) == 2 else 0 for role, count in trained.items()}
    activations = {
        role: p.activations + (0 if job.parallel.gradient_checkpointing else casts[role])
        for role, p in passes.items()
    }
    through, fake_activations = passes[FAKE_SCORE].forward, 0
    if job.method.through_fake_score:
        through, fake_activations = passes[FAKE_SCORE].backward, activations[FAKE_SCORE]
    own = {role: 4 * count for role, count in trained.items()}
    both = max(own.values()) if fresh else sum(own.values())
    waiting = 0 if fresh else activations[STUDENT]
    if job.train.accumulation == 1:
        rest = {r: p.backward_keeping + casts[r] - own[r] for r, p in passes.items()}
        fake = {"gradients": own[FAKE_SCORE], "activations": rest[FAKE_SCORE] + waiting}
        student = {"gradients": both, "activations": rest[STUDENT]}
    else:  # all gradients are there from the first micro-batch on
        rest = {r: p.backward + casts[r] for r, p in passes.items()}
        fake = {"gradients": both, "activations": rest[FAKE_SCORE] + waiting}
        student = {"gradients": both, "activations": rest[STUDENT]}
    sampling = max(passes[STUDENT].forward + casts[STUDENT], meter.decoding(job))
    phases = {
        "teacher": {"activations": activations[STUDENT] + found.teacher},
        "generator's gradient": {"activations": activations[STUDENT] + through + casts[FAKE_SCORE]},
        "fake score's update": fake,
        "student's update": student,
        "optimizer step": {"gradients": both},
        "samples": {"activations": sampling},
    }
    for name, through_frozen in found.through.items():
        phases[name] = {"activations": activations[STUDENT] + fake_activations + through_frozen}
    for name, others in found.alone.items():
        phases[name] = {"activations": activations[STUDENT] + others}
    if job.train.accumulation > 1:
        for name in ("teacher", "generator's gradient", *found.through, *found.alone):
            phases[name] = {"gradients": both} | phases[name]
    return phases
