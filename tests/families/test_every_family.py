"""Duties of every family, with a random tiny model of each in its published layout.

A family is a row of ``FAMILIES``. What is special to one is tested beside its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.counting import PassCounter
from distill.planning.model_meter import ModelMeter
from distill.planning.rank_memory import rank_memory
from infer import Student
from infer.engine_plan import make_plan
from infer.options import Options
from lightx2v_sgmd.families.opening import LIBRARY_CLASSES, open_model
from lightx2v_sgmd.families.teacher import open_teacher
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods import SGMD
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.sampling.sampler import VideoSampler, noise_for
from lightx2v_sgmd.sampling.teacher_steps import teacher_solver
from lightx2v_sgmd.sampling.unipc import UniPC
from lightx2v_sgmd.schedule import Schedule, even_timesteps
from lightx2v_sgmd.system.errors import UserError
from tests.distill.planning.test_rank_memory import measured_peak
from tests.distill.test_methods import assert_plain_gradients, trainer_for
from tests.students import load_student
from tests.tiny import make_tiny_cogvideox, make_tiny_wan
from tests.tiny_sd3 import make_tiny_sd3
from tests.tiny_sdxl import make_tiny_sdxl
from tests.training import (
    assert_same_run,
    make_job,
    make_trainer,
    needs_deepspeed,
    read_trace,
    train,
    weights_of,
)
from weights import export

PROMPTS = ["a red circle moving", "a blue square moving slowly left"]
SEEDS = (5, 11)
TOLERANCE = 1e-4
ADM = "method={name: adm, guidance_range: [5, 7]}"


@dataclass(frozen=True)
class Family:
    """A family's row.

    Attributes:
        make: Writes the tiny model to a folder.
        pipeline: The class of its stock pipeline.
        solver: The solver of teacher and student.
        shift: Flow shift of the student's steps.
        dims: Order of the dimensions in the stock pipeline's latents, ``(0, 1, 2, 3, 4)`` being
            that of this project.
        frames: Number of frames; 1 for a family that makes images.
        steps: Number of the student's steps.
        negative: The stock pipeline's negative prompt that is our empty one.
        own_steps: True if the stock scheduler of the model's folder takes the teacher's steps.
    """

    make: Callable[[Path], Path]
    pipeline: str
    solver: str
    shift: float
    dims: tuple[int, ...] = (0, 1, 2, 3, 4)
    frames: int = 9
    steps: int = 4
    negative: str | None = ""
    own_steps: bool = True

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and number of frames."""
        return (32, 32, self.frames)

    @property
    def settings(self) -> tuple[str, str]:
        """The settings of a job on the tiny model; shift and solver are the family's defaults."""
        base = [float(1000 - i * 1000 / self.steps) for i in range(self.steps)]
        frames = f", num_frames: {self.frames}" if self.frames > 1 else ""
        size = f"video={{height: {self.size[0]}, width: {self.size[1]}{frames}}}"
        return (f"schedule={{base: {base}}}", size)

    def job(self, folder: Path, *settings: str) -> Job:
        """A job on the tiny model, in ``folder/run``."""
        return make_job(folder.parent / "teacher", folder, *self.settings, *settings)

    def stock(
        self,
        folder: Path,
        steps: int,
        guidance_scale: float,
        scheduler: dict[str, Any] | None = None,
        **options: Any,
    ) -> Tensor:
        """The latents, or the frames, of the stock pipeline; None leaves it its own scheduler."""
        import diffusers

        pipe = load_stock(self, folder)
        if scheduler is not None:
            kind: Any = getattr(diffusers, scheduler["_class_name"])
            pipe.scheduler = kind.from_config(scheduler)
        pipe.set_progress_bar_config(disable=True)
        sources = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        options = {"output_type": "latent", **options}
        made = pipe(
            PROMPTS,
            negative_prompt=self.negative,
            height=self.size[0],
            width=self.size[1],
            **({"num_frames": self.frames} if self.frames > 1 else {}),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=sources,
            **options,
        )
        latent = options["output_type"] == "latent"
        if self.frames == 1:
            return made.images[:, :, None] if latent else made.images[:, None]
        return made.frames.permute(self.dims) if latent else made.frames


FAMILIES = {
    "wan": Family(make_tiny_wan, "WanPipeline", "euler", 8.0, own_steps=False),
    "cogvideox-2b": Family(make_tiny_cogvideox, "CogVideoXPipeline", "ddim", 1.0, (0, 2, 1, 3, 4)),
    "cogvideox-5b": Family(
        partial(make_tiny_cogvideox, rotary=True),
        "CogVideoXPipeline",
        "ddim",
        1.0,
        (0, 2, 1, 3, 4),
    ),
    "sd3-medium": Family(
        make_tiny_sd3, "StableDiffusion3Pipeline", "euler", 3.0, frames=1, own_steps=False
    ),
    "sd3.5-large": Family(
        partial(make_tiny_sd3, qk_norm=True),
        "StableDiffusion3Pipeline",
        "euler",
        3.0,
        frames=1,
        own_steps=False,
    ),
    "sdxl": Family(
        make_tiny_sdxl,
        "StableDiffusionXLPipeline",
        "ddim",
        1.0,
        frames=1,
        steps=1,
        negative=None,
        own_steps=False,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_classes_that_doctor_imports_are_those_it_builds(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = open_model(family.make(tmp_path / "teacher"))
    with torch.device("meta"):
        built = [model.build_transformer(), model.build_vae(), model.build_text_encoder()]
    if isinstance(built[-1], torch.nn.ModuleDict):
        built += [*built.pop().values()]
    solver: Any = family.solver
    schedule, pipeline = (
        Schedule(even_timesteps(family.steps), family.shift, solver),
        model.pipeline,
    )
    used = {type(network).__name__ for network in built}
    used |= {pipeline.name, pipeline.transformer, pipeline.vae, pipeline.text_encoder}
    used.add(str(model.scheduler_config(schedule)["_class_name"]))
    known = next(each for key, each in LIBRARY_CLASSES.items() if model.family.startswith(key))
    assert used <= {*known["diffusers"], *known["transformers"]}


@dataclass(frozen=True)
class TrainedModel:
    """A family with its teacher and a student that was trained for three iterations."""

    family: Family
    folder: Path
    run: Path

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    def stock(self, student: Path, **options: Any) -> Tensor:
        """The stock pipeline's result for an exported student, in its few steps."""
        return self.family.stock(student, self.family.steps, 1.0, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    family.make(folder / "teacher")
    run = train(family.job(folder / "whole", "train.iterations=3"))
    return TrainedModel(family, folder, run)


def load_stock(family: Family, folder: Path) -> Any:
    import diffusers

    return getattr(diffusers, family.pipeline).from_pretrained(folder)


def noises(model: Any, shape: tuple[int, ...]) -> Tensor:
    return torch.cat([noise_for(model, seed, shape) for seed in SEEDS])


def test_the_guided_teacher_is_the_stock_pipelines(made: TrainedModel) -> None:
    model = open_model(made.teacher)
    solver: Any = made.family.solver
    steps = teacher_solver(model, solver, 3.0 if solver == "euler" else None, 5)
    sampler = VideoSampler(model, steps, made.family.size, 6.0)
    ours = sampler.latents(PROMPTS, noises(model, sampler.shape))
    # The stock flow-matching scheduler by itself ends at another step than ours.
    assert not isinstance(steps, UniPC)
    scheduler = None if made.family.own_steps else model.scheduler_config(steps)
    stock = made.family.stock(made.teacher, 5, 6.0, scheduler)
    torch.testing.assert_close(ours, stock, atol=TOLERANCE, rtol=0)
    plain = made.family.stock(made.teacher, 5, 1.0, scheduler)
    assert (plain - stock).abs().max() > 100 * TOLERANCE, "guidance changes nothing"


@pytest.mark.slow
def test_rollout_engine_and_exported_pipeline_agree(made: TrainedModel, tmp_path: Path) -> None:
    folder = export(made.run, "diffusers", tmp_path / "student", dtype="fp32", quiet=True)
    student: Student = load_student(folder)
    latents = student.generate(PROMPTS, SEEDS, decode=False).latents
    torch.testing.assert_close(latents, made.stock(folder), atol=TOLERANCE, rtol=0)
    model = open_model(folder)
    network, encoder = model.load_transformer(), model.load_text_encoder(torch.float32)
    conditioning = model.conditioning(encoder.encode(PROMPTS))
    with torch.no_grad():
        trained = rollout(
            lambda x_t, time: model.predict(network, x_t, time, conditioning),
            noises(model, model.latent_shape(*made.family.size)),
            student.schedule,
            exit_step=made.family.steps - 1,
            interpolant=model.interpolant,
        )
    torch.testing.assert_close(latents, trained, atol=TOLERANCE, rtol=0)
    frames = student.generate(PROMPTS, SEEDS).videos
    stock = made.stock(folder, output_type="np")
    for ours, theirs in zip(frames, stock, strict=True):
        assert abs(ours - 255.0 * theirs).max() <= 1.0
    assert (latents[0] - latents[1]).abs().max() > 0.1


@pytest.mark.slow
def test_resuming_is_exact(made: TrainedModel) -> None:
    settings = ("train.checkpoint_every=1",)
    train(made.family.job(made.folder / "parts", "train.iterations=1", *settings))
    again = train(made.family.job(made.folder / "parts", "train.iterations=3", *settings))
    assert_same_run(again, made.run)


@pytest.mark.slow
def test_gradients_are_those_of_one_plain_graph(made: TrainedModel, tmp_path: Path) -> None:
    method = SGMD(weighting="paper")
    settings = (*made.family.settings, "train.micro_batch=1")
    assert_plain_gradients(trainer_for(method, made.teacher, tmp_path, *settings), method)


def test_a_lora_in_diffusers_names_is_that_of_the_stock_pipeline(
    made: TrainedModel, tmp_path: Path
) -> None:
    """The teacher with the file at strength 0.5, and the stock pipeline that loaded it so."""
    model = open_model(made.teacher)
    if "loras" not in model.features:
        pytest.skip("LoRA files of this family are not read")
    shapes = model.transformer_shapes()
    layers = [name.removesuffix(".weight") for name in shapes if name.endswith("to_q.weight")]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in layers:
        out, into = shapes[f"{layer}.weight"]
        stored = f"{model.pipeline.folder}.{layer}"
        tensors[f"{stored}.lora_A.weight"] = torch.randn(3, into, generator=generator)
        tensors[f"{stored}.lora_B.weight"] = torch.randn(out, 3, generator=generator)
    file = tmp_path / "style.safetensors"
    save_file(tensors, file)
    job = make_job(made.teacher, tmp_path, *made.family.settings, f"teacher.loras=['{file}:0.5']")
    merged = open_teacher(job.teacher).load_transformer()
    plain = dict(model.load_transformer().named_parameters())
    stock = load_stock(made.family, made.teacher)
    stock.load_lora_weights(file, adapter_name="style")
    stock.set_adapters(["style"], [0.5])
    stock.fuse_lora()
    named = getattr(stock, model.pipeline.folder).named_parameters()
    theirs = {name.replace(".base_layer.", "."): p for name, p in named}
    for name, p in merged.named_parameters():
        changed = name.removesuffix(".weight") in layers
        assert torch.equal(p, plain[name]) != changed, name
        held = theirs[name]
        torch.testing.assert_close(p, held, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("feature", "options"),
    [
        ("attention_kernels", Options(device="cpu", attention="flash2")),
        ("planned_memory", Options(device="cpu", max_memory_gib=4.0)),
    ],
)
def test_the_engine_refuses_in_a_line_what_a_family_has_not(
    made: TrainedModel, feature: Any, options: Options
) -> None:
    model, said = open_model(made.teacher), ""
    try:
        make_plan(model, options, None)
    except UserError as error:  # Wan's own reasons, such as kernels of a GPU, count for nothing
        said = str(error)
    refused = f"is not supported for {model.family}; use " in said
    assert refused == (feature not in model.features) and "\n" not in said


@pytest.mark.slow
def test_a_method_with_heads_on_the_blocks_trains(made: TrainedModel) -> None:
    settings = (ADM, "train.iterations=1")
    (row,) = read_trace(train(made.family.job(made.folder / "adm", *settings)))
    assert row["grad_norm"].keys() == {"student", "fake_score", "discriminator"}
    assert all(norm > 0 for norm in row["grad_norm"].values())


@pytest.mark.slow
def test_the_teacher_is_computed_again_where_gradient_runs_through_it(made: TrainedModel) -> None:
    """With gradient checkpointing, the heads of ADM give the gradients that they give without."""
    gradients = []
    for checkpointing in ("false", "true"):
        settings = f"parallel.gradient_checkpointing={checkpointing}"
        job = made.family.job(made.folder / f"again_{checkpointing}", ADM, settings)
        trainer = make_trainer(job)
        networks = trainer.strategy.networks
        counter = PassCounter(networks, job.train.micro_batch)
        trainer.add_gradients(0, 0, 0)
        again = counter.take()["recomputed"]["teacher"]
        assert (again > 0) == (checkpointing == "true")
        roles = ("student", "discriminator")
        gradients.append([p.grad for role in roles for p in networks[role].parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients[1])


@needs_deepspeed
@pytest.mark.slow
def test_two_zero3_ranks_train_as_one_process(made: TrainedModel) -> None:
    """The ranks compute activations again in the backward pass; the one process keeps them."""
    local = made.run
    again = "parallel.gradient_checkpointing=true"
    settings = ("train.iterations=3", "train.micro_batch=1", "parallel.strategy=zero3", again)
    sharded = train(made.family.job(made.folder / "zero3", *settings), ranks=2)
    for ours, theirs in zip(read_trace(sharded), read_trace(local), strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
    found, expected = (weights_of(find_checkpoint(run)) for run in (sharded, local))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)


@needs_deepspeed
@pytest.mark.slow
def test_two_ranks_that_share_a_video_train_as_one_process(made: TrainedModel) -> None:
    if "sequence" not in open_model(made.teacher).features:
        pytest.skip("ranks do not share a video of this family")
    if made.family.pipeline == "WanPipeline":
        pytest.skip("tests/parallel/test_sequence_zero3.py trains Wan on ranks that do")
    settings = ("train.iterations=3", "parallel.strategy=zero3", "parallel.sequence=2")
    shared = train(made.family.job(made.folder / "shared", *settings), ranks=2)
    for ours, theirs in zip(read_trace(shared), read_trace(made.run), strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    found, expected = (weights_of(find_checkpoint(run)) for run in (shared, made.run))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_plan_is_within_a_tenth_of_the_measured_memory(
    made: TrainedModel, tmp_path: Path, checkpointing: str
) -> None:
    settings = f"parallel.gradient_checkpointing={checkpointing}"
    job = made.family.job(made.folder / f"plan_{checkpointing}", settings)
    model = open_teacher(job.teacher)
    rows = 8 if made.family.pipeline == "WanPipeline" else model.text_length
    memory = rank_memory(job, ModelMeter(model, text_rows=rows, on_gpu=False), 1)
    phases = {name: sum(parts.values()) for name, parts in memory.phases.items()}
    del phases["samples"]
    planned = sum(memory.always.values()) + max(phases.values())
    assert planned == pytest.approx(measured_peak(job, Ranks(), "local"), rel=0.1)
