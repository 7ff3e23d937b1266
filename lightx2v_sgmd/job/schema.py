"""The job: what to distil, how, and where to. YAML in, one frozen object out.

A job is strict. Unknown keys, wrong types, values out of range and settings that do not go
together are all refused before anything is loaded, every mistake of a file in one go. The comment
on a field is its documentation; ``configs/`` has complete jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SkipValidation, TypeAdapter
from pydantic.dataclasses import dataclass

from lightx2v_sgmd.files.prompts import MOST_CHARACTERS
from lightx2v_sgmd.files.yaml_loader import dump_tree, read_tree
from lightx2v_sgmd.job.rules import RULES, Shape, apply_override, checked, known_keys, yaml_name
from lightx2v_sgmd.methods import SGMD, Method, method_class
from lightx2v_sgmd.methods.base import STRICT
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path, configs_folder, shipped_jobs, shipped_model

Beta = Annotated[float, Field(ge=0, lt=1)]
LATENTS = "latents"
"""The value of ``data.prompts`` that stands for the captions of ``data.latents``."""


@dataclass(frozen=True, config=STRICT)
class Teacher:
    """The model that is distilled; student and fake score start from its weights."""

    # "sprites", a folder as Wan2.1-T2V-*-Diffusers or as the original release, such a model's hub
    # id, or one file of a transformer's weights.
    path: Annotated[str, Field(min_length=1)]
    # Ho-Salimans form, uncond + w (cond - uncond): 1 is no guidance. A text that writes
    # cond + s (cond - uncond) means w = s + 1.
    guidance_scale: Annotated[float, Field(ge=1)]
    # Of the teacher's weights; it is frozen, so bfloat16 halves its memory and costs no training
    # accuracy. Schedules and losses are float32 whatever this says.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # What guidance leads away from; "" is the unconditional prediction.
    negative_prompt: Annotated[str, Field(max_length=MOST_CHARACTERS)] = ""
    # For one file of weights: the model whose VAE, text encoder and tokenizer go with it; null
    # looks in the file's own folder.
    base: str | None = None


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    """AdamW's settings; the defaults are the paper's (arXiv 2605.30116, Sec. 4.1)."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    # beta1 = 0: the target moves every iteration, so momentum would point at where it was.
    betas: tuple[Beta, Beta] = (0.0, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True, config=STRICT)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): ``W + alpha / rank * B A``, of which A and B learn."""

    # Rows of A and columns of B.
    rank: Annotated[int, Field(ge=1, le=2**16)] = 64
    # The adapters count alpha / rank times; null is the rank, so once.
    alpha: Annotated[float, Field(gt=0)] | None = None
    # Ends of the names of the linear layers that get adapters, as diffusers names them. By default
    # all of a block: query, key, value and output of both attentions, and the feed-forward.
    targets: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)] = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ffn.net.0.proj",
        "ffn.net.2",
    )

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, config=STRICT)
class Role:
    """How one trained network (student or fake score) learns."""

    # Which weights are trained: "full" all of them, "lora" adapters beside the teacher's, which
    # stay as they are. A learning rate for adapters is some ten to a hundred times higher.
    train: Literal["full", "lora"] = "full"
    # Of the adapters; only with train: lora.
    lora: Lora | None = None
    optimizer: Optimizer = Optimizer()

    @property
    def adapters(self) -> Lora | None:
        """Those that are trained; None if all weights are."""
        return (self.lora or Lora()) if self.train == "lora" else None


@dataclass(frozen=True, config=STRICT)
class Data:
    """What the student is trained on: prompts; a few methods read latents as well."""

    # A .txt, .jsonl or .csv file (see prompts.py), relative to the job file (from --set: to the
    # current folder), "sprites" for the captions of the bundled world, or "latents" for those of
    # the latents below.
    prompts: Annotated[str, Field(min_length=1)]
    # A folder that keeps the prompts' text embeddings between runs and jobs (`lightx2v-sgmd embed`
    # fills it); null computes them each time.
    embeddings: Path | None = None
    # A folder of latents with captions, for the methods that read them: a teacher's ODE pairs
    # (from `collect-pairs`) for adp and dmdx, encoded videos (from `encode-videos`) for
    # dmd2's GAN term.
    latents: Path | None = None


@dataclass(frozen=True, config=STRICT)
class Video:
    """The size of the videos that the student learns to make."""

    # In pixels, divisible by 16: the VAE's 8 times the network's patch of 2.
    height: Annotated[int, Field(ge=16, le=2**14)]
    width: Annotated[int, Field(ge=16, le=2**14)]
    # 4k + 1: the causal VAE keeps the first frame and then takes four at a time.
    num_frames: Annotated[int, Field(ge=1, le=100_001)]


@dataclass(frozen=True, config=STRICT)
class Train:
    """The loop. An iteration is one update of the student and one of the fake score."""

    iterations: Annotated[int, Field(ge=1, le=10**9)]
    # Videos per rank and forward pass. Global batch = micro_batch * accumulation * ranks.
    micro_batch: Annotated[int, Field(ge=1, le=2**16)] = 1
    # Micro-batches whose gradients are averaged into one update.
    accumulation: Annotated[int, Field(ge=1, le=2**20)] = 1
    # Largest norm of a network's gradient; a larger one is scaled down to it.
    clip: Annotated[float, Field(gt=0)] = 1.0
    # Decay of the student's moving average, which is what gets exported; 0 keeps none.
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Iterations over which the learning rate rises to its value: with beta1 = 0 the first steps
    # would otherwise be as large as the sign of the gradient.
    warmup: Annotated[int, Field(ge=0, le=10**9)] = 10
    # Last iterations over which the learning rate falls linearly to zero, which settles the
    # student; 0 keeps it constant, as the paper does.
    decay: Annotated[int, Field(ge=0, le=10**9)] = 0
    # Score times: uniform in [0, 1], moved towards noise by this flow shift, then clamped to
    # [sigma_min, sigma_max].
    score_shift: Annotated[float, Field(ge=1, le=1000)] = 5.0
    sigma_min: Annotated[float, Field(gt=0, lt=1)] = 0.02
    sigma_max: Annotated[float, Field(gt=0, lt=1)] = 0.98
    # Of everything that is drawn: noise, score times, exit steps, the order of the prompts.
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    # Iterations between checkpoints; the last iteration always makes one.
    checkpoint_every: Annotated[int, Field(ge=1, le=10**9)] = 100
    # Minutes after which an iteration makes a checkpoint as well; null counts iterations alone.
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None
    # Iterations between sample videos.
    sample_every: Annotated[int, Field(ge=1, le=10**9)] = 100
    # How many checkpoints stay; older ones are deleted.
    keep_checkpoints: Annotated[int, Field(ge=1, le=10**6)] = 2


@dataclass(frozen=True, config=STRICT)
class Parallel:
    """How the networks are laid out over processes."""

    # "local": one process holds everything. "zero3": DeepSpeed ZeRO-3 shards student, fake score
    # and the frozen teacher over all ranks.
    strategy: Literal["local", "zero3"] = "local"
    # Ranks that share one video's tokens; must divide the network's attention heads.
    sequence: Annotated[int, Field(ge=1, le=2**16)] = 1
    # What zero3 keeps in CPU memory: "optimizer" the Adam state, "all" the parameters as well.
    # "nvme": as "all", but Adam's state and the float32 weights in files of offload_dir (groups of
    # weights below 1 MiB and the moving average stay in CPU memory). Slow: each update reads and
    # writes all of them.
    offload: Literal["none", "optimizer", "all", "nvme"] = "none"
    # For nvme: a folder on a fast local disk, of each machine, relative to the current folder.
    offload_dir: Path | None = None
    # Which activations the backward pass computes again. true: all but the blocks' inputs; one more
    # forward, far less memory. "selective": what attention gave is kept as well; a little more
    # memory, and of the second forward only its linear layers, half or less of a long video's.
    gradient_checkpointing: Literal[False, "selective", True] = False
    # torch.compile makes few kernels of what a block computes between its matrix products.
    # "auto": on a GPU with Triton. "always": on a CPU, too, which needs a C++ compiler and pays for
    # large networks only. "never": PyTorch's own operations. The numbers agree to rounding.
    compile: Literal["auto", "always", "never"] = "auto"
    # Minutes without a sign of progress after which the run ends and names the process that hangs.
    # A forward pass is a sign; loading, sampling and saving may take ten times as long. null waits
    # for ever.
    timeout_minutes: Annotated[float, Field(gt=0, le=1e6)] | None = 10.0


@dataclass(frozen=True, config=STRICT)
class Output:
    """Where the run goes."""

    # The run folder, relative to the current folder. The same command run again resumes it.
    dir: Path


@dataclass(frozen=True, kw_only=True, config={**STRICT, "arbitrary_types_allowed": True})
class Job:
    """One distillation run, complete and checked. ``load_job`` makes it."""

    teacher: Teacher
    student: Role = Role()
    fake_score: Role = Role()
    # A name in lightx2v_sgmd.methods or of an installed package's entry point, and its options.
    method: Annotated[Method, SkipValidation] = field(default_factory=SGMD)
    # The student's steps, fixed: base [1000, 750, 500, 250] under shift 8.
    schedule: Schedule = field(default_factory=Schedule)
    data: Data
    video: Video
    train: Train
    parallel: Parallel = Parallel()
    output: Output

    @property
    def method_options(self) -> dict[str, Any]:
        """The method's options under their YAML keys; its name is not one of them."""
        tree = TypeAdapter(Job).dump_python(self, mode="json")["method"]
        return {yaml_name(key): value for key, value in tree.items() if key != "name"}

    def to_yaml(self) -> str:
        """The resolved job, every default written out; ``load_job`` reads it back unchanged."""
        tree = TypeAdapter(Job).dump_python(self, mode="json")
        return dump_tree(_yaml_names(tree))


def _yaml_names(tree: Any) -> Any:
    """The same tree with every field under its YAML key."""
    if isinstance(tree, dict):
        return {yaml_name(key): _yaml_names(value) for key, value in tree.items()}
    return tree


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Reads and checks a job.

    Args:
        path: The YAML file.
        overrides: ``a.b=value`` settings that replace the file's, the value in YAML.

    Returns:
        The job. Paths in ``data`` are absolute: relative to the job file as given there, to the
        current folder as given by an override.

    Raises:
        UserError: with a line for each mistake.
    """
    path = Path(path)
    try:
        tree, lines = read_tree(path)
    except UserError as error:
        raise UserError(f"{error}{_shipped_hint(path)}") from None
    origins = {key: f"{path}:{line}" for key, line in lines.items()}
    folders = {key: path.parent for key in _PATHS}
    for override in overrides:
        key = apply_override(tree, override)
        origins[key] = "--set"
        folders.update({path_key: Path() for path_key in _PATHS if path_key.startswith(key)})
    job = checked(Job, tree, origins, str(path), RULES, {"method": _method_class})
    if problem := _latents_problem(job.method, job.data) or _stages_problem(job):
        raise UserError(f"{path}: {problem}")
    return replace(
        job,
        data=_resolved(job.data, folders),
        student=replace(job.student, lora=job.student.adapters),
        fake_score=replace(job.fake_score, lora=job.fake_score.adapters),
    )


def _latents_problem(method: Method, data: Data) -> str | None:
    """Whether the method and the latents of a job go together."""
    wanted = method.reads_latents
    if wanted is None:
        if data.prompts == LATENTS and data.latents is None:
            return "data.latents: is missing, but data.prompts says latents; give the folder"
        return None
    if data.latents is None or data.prompts != LATENTS:
        what = {"videos": "encoded videos", "pairs": "the teacher's ODE pairs"}[wanted]
        return (
            f"data.latents: {method.name} reads {what} and their captions; give their folder here "
            "and data.prompts: latents"
        )
    return None


def _stages_problem(job: Job) -> str | None:
    """The problem if a method's first stage leaves no iterations to the others."""
    first = job.method.stages[0].iterations
    if first is None or first < job.train.iterations:
        return None
    return (
        f"method.pretraining: {first} leaves none of the {job.train.iterations} "
        "train.iterations to what follows it; lower it, or raise train.iterations"
    )


def _method_class(section: Any) -> type:
    """The class that a job's ``method`` section describes."""
    name = section.get("name", "sgmd") if isinstance(section, dict) else "sgmd"
    return method_class(name) if isinstance(name, str) else SGMD


def job_keys(method: str = "sgmd") -> list[str]:
    """Every key of a job with that method, as dotted paths."""
    return known_keys(Shape(Job, {"method": method_class(method)}), Job)


_PATHS = ("data.prompts", "data.embeddings", "data.latents")


def _resolved(data: Data, folders: dict[str, Path]) -> Data:
    """The same with absolute paths; ``folders`` says what each is relative to."""

    def absolute(key: str, path: str | Path) -> Path:
        return (folders[key] / Path(path).expanduser()).absolute()

    prompts, embeddings, latents = data.prompts, data.embeddings, data.latents
    if prompts != LATENTS and shipped_model(prompts) is None:
        prompts = str(absolute("data.prompts", prompts))
    if embeddings is not None:
        embeddings = absolute("data.embeddings", embeddings)
    if latents is not None:
        latents = absolute("data.latents", latents)
    return Data(prompts=prompts, embeddings=embeddings, latents=latents)


def _shipped_hint(path: Path) -> str:
    """Which shipped job is meant, or where they are, if a file was not found."""
    if path.exists():
        return ""
    near = get_close_matches(path.name, shipped_jobs(), n=1)
    if near:
        return f"; did you mean {config_path(near[0])}?"
    return f"; the shipped jobs are in {configs_folder()}"
