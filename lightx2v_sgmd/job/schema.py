"""The job: what to distil, how, and where to. YAML in, one frozen object out.

A job is strict. Unknown keys, wrong types, values out of range and settings that do not go
together are all refused before anything is loaded, every mistake of a file in one go. The comment
on a field is its documentation; ``configs/`` has complete jobs.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SkipValidation, TypeAdapter
from pydantic.dataclasses import dataclass

from lightx2v_sgmd.files.prompts import MOST_CHARACTERS
from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.files.yaml_loader import dump_tree
from lightx2v_sgmd.job.checking import yaml_name
from lightx2v_sgmd.methods import SGMD, Method
from lightx2v_sgmd.methods.base import STRICT
from lightx2v_sgmd.schedule import Schedule, SolverName
from lightx2v_sgmd.system.errors import UserError

LoraText = Annotated[str, Field(min_length=1, max_length=4096)]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Beta = Annotated[float, Field(ge=0, lt=1)]
LATENTS = "latents"
"""The value of ``data.prompts`` that stands for the captions of ``data.latents``."""


@dataclass(frozen=True, config=STRICT)
class Teacher:
    """The model that is distilled; student and fake score start from it unless they name others."""

    # The model: "sprites" or "motions" (the bundled ones), a folder in diffusers' or the original
    # layout, a hub id of either, or one file of a transformer's weights.
    path: Annotated[str, Field(min_length=1)]
    # Guidance scale w in the Ho-Salimans form, uncond + w (cond - uncond): 1 is no guidance. A text
    # that writes cond + s (cond - uncond) means w = s + 1.
    guidance_scale: Annotated[float, Field(ge=1)]
    # Guidance scale of the second expert, for a teacher that has two (Wan2.2-A14B), whose first one
    # has guidance_scale; null is the same for both. Wan2.2's authors use 4 and 3.
    guidance_scale_2: Annotated[float, Field(ge=1)] | None = None
    # Precision of the teacher's weights and of the trained networks' computation; master weights,
    # schedules and losses are float32 always. bfloat16 halves the teacher's memory.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Prompt that guidance leads away from, in training, in ODE pairs and where the teacher is
    # measured. null is the one that the teacher's authors use: for Wan2.1 their own list of
    # defects, for the bundled teacher "". "" is the unconditional prediction.
    negative_prompt: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    # Model whose VAE, text encoder and tokenizer go with a single file of weights; null looks in
    # the file's own folder.
    base: str | None = None
    # Storage of the frozen weights. "fp8-storage" keeps the blocks' matrices in 8 bits with a scale
    # for each row, and computes in dtype as before: half of bfloat16's memory. Adapters of student
    # and fake score then learn beside the rounded weights. Only with parallel.strategy: local.
    quantize: Literal["none", "fp8-storage"] = "none"
    # LoRA files that make the model the teacher to distil, each as FILE or FILE:STRENGTH, relative
    # to the job file (from --set: to the current folder). They are merged into the weights that
    # teacher, student and fake score start from.
    loras: Annotated[tuple[LoraText, ...], Field(max_length=16)] = ()

    def guidance_of(self, expert: int) -> float:
        """The guidance scale of an expert of the teacher, by the expert's index."""
        second = self.guidance_scale_2
        return self.guidance_scale if expert == 0 or second is None else second

    @property
    def lora_files(self) -> tuple[WeightedLora, ...]:
        """The files and strengths of ``loras``.

        Raises:
            UserError: a strength is no number.
        """
        try:
            return tuple(WeightedLora.parse(text) for text in self.loras)
        except UserError as error:
            raise UserError(f"teacher.loras: {str(error).removeprefix('lora: ')}") from error


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    """AdamW's settings; the defaults are the paper's (arXiv 2605.30116, Sec. 4.1)."""

    # Learning rate.
    lr: Annotated[float, Field(gt=0)] = 1e-6
    # Decay rates of the two moments. beta1 is 0 because the target moves every iteration: momentum
    # would point at where it was.
    betas: tuple[Beta, Beta] = (0.0, 0.999)
    # Term in the denominator of the update, for numerical stability.
    eps: Annotated[float, Field(gt=0)] = 1e-8
    # Decoupled weight decay.
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True, config=STRICT)
class AdapterSettings:
    """Low-rank adapters (arXiv 2106.09685): ``W + alpha / rank * B A``, of which A and B learn."""

    # Rank of the adapters: rows of A and columns of B.
    rank: Annotated[int, Field(ge=1, le=2**16)] = 64
    # Numerator of the adapters' scale, alpha / rank; null is the rank, which makes the scale 1.
    alpha: Annotated[float, Field(gt=0)] | None = None
    # Linear layers that get adapters, by the ends of their names in diffusers. null is
    # those of a block's attentions and feed-forwards in the teacher's family.
    targets: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that get adapters; the job has the defaults of its teacher's family."""
        assert self.targets is not None, "the targets are not filled in from the teacher's family"
        return self.targets

    @property
    def scale(self) -> float:
        """The factor of the product of the two matrices."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, config=STRICT)
class Role:
    """The training of one network, the student or the fake score."""

    # Model that the network starts from, in place of the teacher: one of another size in the same
    # latent space (14B teaches 1.3B), or other weights of the same size. A folder or a hub id, as
    # teacher.path. null is the teacher, its LoRAs included.
    path: Annotated[str, Field(min_length=1)] | None = None
    # Trained weights: "full" is all of them, "lora" is adapters beside the weights that it starts
    # from, which stay as they are. Adapters need a learning rate that is ten to a hundred times
    # higher.
    train: Literal["full", "lora"] = "full"
    # Settings of the adapters; only with train: lora.
    lora: AdapterSettings | None = None
    # Settings of AdamW.
    optimizer: Optimizer = Optimizer()

    @property
    def adapters(self) -> AdapterSettings | None:
        """The adapters that are trained; None if all weights are."""
        return (self.lora or AdapterSettings()) if self.train == "lora" else None


@dataclass(frozen=True, config=STRICT)
class Data:
    """The training data: prompts, and for a few methods latents."""

    # A .txt, .jsonl or .csv file, relative to the job file (from --set: to the
    # current folder), "sprites" or "motions" for the captions of a bundled world, or "latents"
    # for those of the latents below.
    prompts: Annotated[str, Field(min_length=1)]
    # A folder that keeps the prompts' text embeddings between runs and jobs (`lightx2v-sgmd embed`
    # fills it); null computes them each time.
    embeddings: Path | None = None
    # A folder of latents with captions, for the methods that read them: a teacher's ODE pairs
    # (from `collect-pairs`) for adp and dmdx, encoded videos (from `encode-videos`) for
    # dmd2's GAN term.
    latents: Path | None = None


@dataclass(frozen=True, config=STRICT)
class VideoSize:
    """The size of the videos that the student learns to make."""

    # Height in pixels, divisible by 16 (the VAE's 8 times the network's patch of 2).
    height: Annotated[int, Field(ge=16, le=2**14)]
    # Width in pixels, divisible by 16.
    width: Annotated[int, Field(ge=16, le=2**14)]
    # Number of frames, 4k + 1: the causal VAE keeps the first frame and then takes four at a time.
    # null is the length of the teacher's own videos, such as 81 for Wan2.1; models that make images
    # have none.
    num_frames: Annotated[int, Field(ge=1, le=100_001)] | None = None

    @property
    def frames(self) -> int:
        """Number of frames of a video; an image is one frame."""
        return 1 if self.num_frames is None else self.num_frames


@dataclass(frozen=True, config=STRICT)
class Steps:
    """The student's steps, which the engine and the exports run and which travel with the weights.

    They are evenly spaced, under a shift that the teacher's family has; see ``Schedule``.
    """

    # Evenly spaced timesteps, falling from 1000, before the shift.
    base: tuple[float, ...] = Schedule.base
    # Flow shift of the steps: 8 (the paper's) or 5 (LightX2V's trainer) for Wan, 5 for Wan2.2's two
    # experts, 3 for SD3, 1 for CogVideoX and SDXL. null is that of the teacher's family, 8 for Wan.
    shift: float | None = None
    # Solver of the rollout. "euler": along the straight line of flow matching, the paper's choice.
    # "renoise": the data prediction with new noise, as in DMD2 and FastWan. "ddim": for teachers
    # with a variance-preserving diffusion, as CogVideoX is. null is euler or ddim, by the teacher.
    solver: SolverName | None = None

    def __post_init__(self) -> None:
        Schedule(self.base, 1.0 if self.shift is None else self.shift, self.solver or "euler")


@dataclass(frozen=True, config=STRICT)
class Train:
    """The loop. An iteration is one update of the student and those that go with it."""

    # Number of iterations.
    iterations: Annotated[int, Field(ge=1, le=10**9)]
    # Videos per rank and forward pass. The global batch is micro_batch * accumulation * ranks,
    # divided by parallel.sequence.
    micro_batch: Annotated[int, Field(ge=1, le=2**16)] = 1
    # Micro-batches whose gradients are averaged into one update.
    accumulation: Annotated[int, Field(ge=1, le=2**20)] = 1
    # Largest norm of a network's gradient; a larger one is scaled down to it.
    clip: Annotated[float, Field(gt=0)] = 1.0
    # Decay of the student's moving average, which is what gets exported; 0 keeps none.
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Iteration after which the moving average begins; until then it equals the student. A late
    # start keeps the undistilled weights out of what is exported. Of an expert that is trained in a
    # later phase, iterations count from that phase's first one.
    ema_start: Annotated[int, Field(ge=0, le=10**9)] = 0
    # Iterations over which a network's learning rate rises to its value, from its first update on:
    # with beta1 = 0 the first steps would otherwise be as large as the sign of the gradient.
    warmup: Annotated[int, Field(ge=0, le=10**9)] = 10
    # Last iterations over which the learning rate falls linearly to zero, which settles the
    # student; 0 keeps it constant, as the paper does.
    decay: Annotated[int, Field(ge=0, le=10**9)] = 0
    # Videos that share one exit step, the step of the rollout that carries gradient. "update": all
    # of an update, so that each costs the same. "micro_batch": those of a micro-batch, on all
    # ranks, as in LightX2V; an update with accumulation then mixes several steps.
    exit_step_per: Literal["update", "micro_batch"] = "update"
    # Flow shift of the score times: they are uniform in [0, 1], moved towards noise by this shift,
    # then clamped to [sigma_min, sigma_max].
    score_shift: Annotated[float, Field(ge=1, le=1000)] = 5.0
    # Smallest score time.
    sigma_min: Annotated[float, Field(gt=0, lt=1)] = 0.02
    # Largest score time.
    sigma_max: Annotated[float, Field(gt=0, lt=1)] = 0.98
    # Random seed of noise, score times, exit steps and the order of the prompts.
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    # Iterations between checkpoints; the last iteration always makes one.
    checkpoint_every: Annotated[int, Field(ge=1, le=10**9)] = 100
    # Minutes after which an iteration makes a checkpoint as well; null counts iterations only.
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None
    # Iterations between sample videos.
    sample_every: Annotated[int, Field(ge=1, le=10**9)] = 100
    # Number of sample videos, of the first prompts. Their measures go to metrics.jsonl; the Frechet
    # distance among them needs two videos, and more of them make it steadier.
    sample_videos: Annotated[int, Field(ge=1, le=256)] = 4
    # Steps of the teacher's own sampler for the videos that the samples are compared with. They are
    # made once, at the first sample videos, in steps * sample_videos * 2 passes of the teacher. 0
    # makes none, and then there is no Frechet distance.
    teacher_sample_steps: Annotated[int, Field(ge=0, le=1000)] = 20
    # Number of checkpoints that stay; older ones are deleted.
    keep_checkpoints: Annotated[int, Field(ge=1, le=10**6)] = 2


@dataclass(frozen=True, config=STRICT)
class Parallel:
    """The layout of the networks over processes."""

    # Strategy. "local": one process holds everything. "zero3": DeepSpeed ZeRO-3 shards student,
    # fake score and the frozen teacher over all ranks.
    strategy: Literal["local", "zero3"] = "local"
    # Sequence degree: ranks that share one video's tokens. It must divide the network's attention
    # heads.
    sequence: Annotated[int, Field(ge=1, le=2**16)] = 1
    # State that zero3 keeps in CPU memory: "optimizer" is the Adam state, "all" the parameters as
    # well. "nvme" is "all", but with Adam's state and the float32 weights in files of offload_dir
    # (groups of weights below 1 MiB and the moving average stay in CPU memory). Slow: each update
    # reads and writes all of them.
    offload: Literal["none", "optimizer", "all", "nvme"] = "none"
    # Folder on a fast local disk of each machine for offload: nvme; relative to the current folder.
    offload_dir: Path | None = None
    # Activations that the backward pass computes again. true: all but the blocks' inputs, which
    # costs one more forward and saves most memory. "selective": all but the attention's output too,
    # which costs a little memory and saves half or more of that forward for long videos.
    gradient_checkpointing: Literal[False, "selective", True] = False
    # torch.compile makes few kernels of what a block computes between its matrix products.
    # "auto": on a GPU with Triton, for Wan. "always": on a CPU, too, which needs a C++ compiler and
    # pays for large networks only; other families than Wan compile whole blocks then, under
    # parallel.strategy local. "never": PyTorch's own operations. The numbers agree to rounding.
    compile: Literal["auto", "always", "never"] = "auto"
    # Minutes without a sign of progress after which the run ends and names the process that hangs.
    # A forward pass is a sign; loading, sampling and saving may take ten times as long. null waits
    # for ever.
    timeout_minutes: Annotated[float, Field(gt=0, le=1e6)] | None = 10.0


@dataclass(frozen=True, config=STRICT)
class Output:
    """The run folder."""

    # The run folder, relative to the current folder. The same command run again resumes it.
    dir: Path
    # Programs that get the curves and sample videos, beside metrics.jsonl, which always does:
    # tensorboard, wandb, trackio, mlflow. All but the first need the extra of their name.
    trackers: Annotated[tuple[TrackerName, ...], Field(max_length=8)] = ("tensorboard",)


@dataclass(frozen=True, kw_only=True, config={**STRICT, "arbitrary_types_allowed": True})
class Job:
    """One distillation run, complete and checked. ``load_job`` makes it."""

    teacher: Teacher
    student: Role = Role()
    fake_score: Role = Role()
    # The distillation method, of lightx2v_sgmd.methods or of an installed package, and its options.
    method: Annotated[Method, SkipValidation] = field(default_factory=SGMD)
    # The student's steps; for Wan2.1 by default 1000, 750, 500 and 250 under shift 8.
    schedule: Steps = Steps()
    data: Data
    video: VideoSize
    train: Train
    parallel: Parallel = Parallel()
    output: Output

    @property
    def steps(self) -> Schedule:
        """The student's schedule; the job has the defaults of its teacher's family."""
        shift, solver = self.schedule.shift, self.schedule.solver
        assert shift is not None and solver is not None, "the schedule is not filled in"
        return Schedule(self.schedule.base, shift, solver)

    def to_yaml(self, width: int = 100) -> str:
        """The resolved job, every default written out; ``load_job`` reads it back unchanged.

        What the teacher's family decides is null unless ``families.teacher.with_defaults`` was
        called.
        """
        tree = TypeAdapter(Job).dump_python(self, mode="json")
        return dump_tree(_yaml_names(tree), width)


def _yaml_names(tree: Any) -> Any:
    """The same tree with every field under its YAML key."""
    if isinstance(tree, dict):
        return {yaml_name(key): _yaml_names(value) for key, value in tree.items()}
    return tree
