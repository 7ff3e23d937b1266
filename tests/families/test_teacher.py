"""A teacher with LoRAs: what it is, what is trained from it, and what is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.model_checks import check_against_model
from distill.running.resuming import check_same_run
from lightx2v_sgmd.cli.main import run as cli
from lightx2v_sgmd.families.teacher import family_defaults, open_teacher, saved_job, with_defaults
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.checkpoint import find_checkpoint, read_trainer_state
from lightx2v_sgmd.files.manifest import read_manifest
from lightx2v_sgmd.files.tensors.tensor_copy import WeightCopier
from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest
from tests.tiny import make_tiny_experts
from tests.training import job_file, make_job, needs_deepspeed, read_trace, train, weights_of
from weights import export

LAYERS = ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2", "proj_out")
STRENGTH = 0.5


@pytest.fixture(scope="module")
def base_weights(tiny_teacher: Path) -> Mapping[str, Tensor]:
    return dict(open_wan(tiny_teacher).load_transformer().state_dict())


@pytest.fixture
def lora(tmp_path: Path, base_weights: Mapping[str, Tensor]) -> Path:
    """A file of ComfyUI's kind: three layers, one bias and one norm."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in LAYERS:
        out, into = base_weights[f"{layer}.weight"].shape
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(3, into, generator=generator)
        tensors[f"transformer.{layer}.lora_B.weight"] = 0.1 * torch.randn(
            out, 3, generator=generator
        )
    bias = base_weights["blocks.0.attn1.to_q.bias"]
    tensors["transformer.blocks.0.attn1.to_q.diff_b"] = torch.randn(bias.shape, generator=generator)
    save_file(tensors, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


@pytest.fixture
def merged(lora: Path, base_weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's weights by the definition of a LoRA."""
    weights = {name: tensor.clone() for name, tensor in base_weights.items()}
    stored = load_file(lora)
    for layer in LAYERS:
        pair = (stored[f"transformer.{layer}.lora_{kind}.weight"] for kind in "BA")
        weights[f"{layer}.weight"] += STRENGTH * torch.mm(*pair)
    more = stored["transformer.blocks.0.attn1.to_q.diff_b"]
    weights["blocks.0.attn1.to_q.bias"] += STRENGTH * more
    return weights


def setting(lora: Path) -> str:
    return f"teacher.loras=['{lora}:{STRENGTH}']"


def test_its_weights_are_the_sum(
    tiny_teacher: Path, tmp_path: Path, lora: Path, merged: dict[str, Tensor]
) -> None:
    """Whole, in slices and in another precision."""
    job = make_job(tiny_teacher, tmp_path, setting(lora))
    reader = open_teacher(job.teacher).transformer_weights()
    copier = WeightCopier(torch.device("cpu"))
    for name, expected in merged.items():
        whole = reader.tensor(name)
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-6)
        middle = whole.numel() // 2
        halves = [reader.read(name, 0, middle), reader.read(name, middle, whole.numel())]
        assert torch.equal(torch.cat(halves), whole.flatten()), name
        assert torch.equal(reader.load(name, torch.bfloat16, copier), whole.bfloat16()), name


def test_files_are_found_beside_the_job(tiny_teacher: Path, tmp_path: Path, lora: Path) -> None:
    file = job_file(tiny_teacher, tmp_path)
    text = file.read_text().replace("guidance_scale", "loras: [style.safetensors], guidance_scale")
    file.write_text(text)
    assert load_job(file).teacher.loras == (str(lora),)


def test_its_identity_is_its_own(tiny_teacher: Path, tmp_path: Path, lora: Path) -> None:
    names = []
    for settings in ([], [setting(lora)], [f"teacher.loras=['{lora}']"]):
        job = make_job(tiny_teacher, tmp_path, *settings)
        names.append(weights_digest(open_teacher(job.teacher), "transformer"))
    assert len({*names}) == 3


@pytest.mark.parametrize(
    "strategy", ["local", pytest.param("zero3", marks=[needs_deepspeed, pytest.mark.slow])]
)
def test_all_roles_start_from_it(
    tiny_teacher: Path, tmp_path: Path, lora: Path, merged: dict[str, Tensor], strategy: str
) -> None:
    """Training equals that from a model which has the sums as its weights."""
    layout = [f"parallel.strategy={strategy}", "train.iterations=1"]
    sums = make_merged(tiny_teacher, tmp_path / "sums", lora)
    runs = [
        train(make_job(folder, tmp_path / name, *layout, *settings), ranks=2)
        for name, folder, settings in (("a", tiny_teacher, [setting(lora)]), ("b", sums, []))
    ]
    assert read_trace(runs[0]) == read_trace(runs[1])
    found, expected = (weights_of(find_checkpoint(run)) for run in runs)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def make_merged(teacher: Path, folder: Path, lora: Path) -> Path:
    """A model's folder with the sums as its transformer's weights."""
    copytree(teacher, folder)
    job = make_job(teacher, folder.parent, setting(lora))
    transformer = open_teacher(job.teacher).load_transformer()
    transformer.save_pretrained(folder / "transformer")
    return folder


FAMILY_DEFAULTS = {
    "wan2.1_t2v_1.3b_sgmd.yaml": (8.0, "euler", 81, "ffn.net.2"),
    "wan2.2_t2v_a14b_sgmd.yaml": (5.0, "euler", 81, "ffn.net.2"),
    "wan2.2_ti2v_5b_sgmd.yaml": (8.0, "euler", 121, "ffn.net.2"),
    "cogvideox_5b_sgmd.yaml": (1.0, "ddim", 49, "ff.net.2"),
    "sd3.5_large_adm_lora.yaml": (3.0, "euler", None, "ff_context.net.2"),
    "sdxl_dmdx_lora.yaml": (1.0, "ddim", None, "ff.net.2"),
}
"""Flow shift, solver, number of frames and the last layer with adapters."""


@pytest.mark.parametrize("name", FAMILY_DEFAULTS)
def test_what_a_job_leaves_out_is_as_its_family_has_it(name: str) -> None:
    """They are the values of the shipped job, and go through the checks."""
    left_out = ["schedule={}", "video.num_frames=null", "student={train: lora}"]
    *steps, frames, last = FAMILY_DEFAULTS[name]
    given = load_job(config_path(name))
    job = load_job(config_path(name), [*left_out, "fake_score.lora=null", "fake_score.train=lora"])
    model = open_teacher(job.teacher)
    left = (job.schedule.shift, job.schedule.solver, job.video.num_frames)
    assert left == (None, None, None)
    check_against_model(job, model)
    filled = with_defaults(job, model)
    roles = (filled.student, filled.fake_score)
    assert [role.adapters.layers[-1] for role in roles if role.adapters] == [last] * 2
    assert (filled.steps.shift, filled.steps.solver, filled.video.num_frames) == (*steps, frames)
    assert with_defaults(filled, model) == filled and not family_defaults(filled, model)
    if given.student.lora is not None:
        assert filled.student.lora == filled.fake_score.lora == given.student.lora
    assert job.to_yaml() != filled.to_yaml()


@pytest.mark.parametrize(
    "text, said",
    [
        ("none.safetensors", "teacher.loras: "),
        ("style.safetensors:much", "is not a strength"),
        ("other.safetensors", "made for this size of model"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tiny_teacher: Path,
    tmp_path: Path,
    lora: Path,
    text: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = {key: torch.zeros(2, 2) for key in load_file(lora) if "to_q.lora" in key}
    save_file(wrong, tmp_path / "other.safetensors")
    asked = ["--set", f"teacher.loras=['{tmp_path / text}']"]
    assert cli(["distill", str(job_file(tiny_teacher, tmp_path)), *asked]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "teacher.loras: " in line and said in line
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_another(tiny_teacher: Path, tmp_path: Path, lora: Path) -> None:
    job = make_job(tiny_teacher, tmp_path, setting(lora), "train.iterations=1")
    checkpoint = find_checkpoint(train(job))
    state = read_trainer_state(checkpoint)
    check_same_run(checkpoint, job, state)
    with pytest.raises(UserError, match=r"teacher\.loras: the job says \[\]"):
        check_same_run(checkpoint, make_job(tiny_teacher, tmp_path), state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_exports_need_only_the_base(
    tiny_teacher: Path, tmp_path: Path, lora: Path, kind: str
) -> None:
    """Merged weights hold everything, and so does a LoRA for the base model."""
    trained = [f"student.train={kind}", "train.iterations=1", "train.ema=0"]
    run = train(make_job(tiny_teacher, tmp_path, setting(lora), *trained))
    whole = export(run, "diffusers", tmp_path / "whole", dtype="fp32", quiet=True)
    rank = None if kind == "lora" else 1024  # of whole matrices
    alone = export(run, "lora", tmp_path / "alone", dtype="fp32", quiet=True, rank=rank)
    again = export(alone, "diffusers", tmp_path / "again", dtype="fp32", quiet=True)
    expected = open_wan(whole).load_transformer().state_dict()
    found = open_wan(again).load_transformer().state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5, msg=name)
    assert str(tmp_path) not in (whole / "job.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_adapters_relative_to_the_fine_tune_go_on_top_of_it(
    tiny_teacher: Path, tmp_path: Path, lora: Path, kind: str
) -> None:
    """The base with the teacher's LoRA and then this one is the student."""
    trained = [f"student.train={kind}", "train.iterations=1", "train.ema=0"]
    run = train(make_job(tiny_teacher, tmp_path, setting(lora), *trained))
    whole = export(run, "diffusers", tmp_path / "whole", dtype="fp32", quiet=True)
    rank = None if kind == "lora" else 1024  # of whole matrices
    options: Any = {"dtype": "fp32", "quiet": True, "rank": rank}
    above = export(run, "lora", tmp_path / "above", relative_to="teacher", **options)
    loras = [*load_job(run / "job.yaml").teacher.lora_files, WeightedLora(above)]
    found = open_wan(tiny_teacher).with_loras(loras).load_transformer().state_dict()
    expected = open_wan(whole).load_transformer().state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5, msg=name)
    alone = open_wan(tiny_teacher).with_loras(loras[1:]).load_transformer().state_dict()
    assert any(not torch.allclose(alone[n], expected[n], atol=1e-3) for n in expected)
    (said,) = read_manifest(above).loras  # type: ignore[union-attr]
    card = (above / "README.md").read_text()
    assert said.startswith(f"{lora.name}:") and f"It goes on top of `{said}`, which" in card
    assert f' --lora "{said}" \\\n    --lora THIS_FOLDER \\\n    --prompt' in card
    assert "on top of" not in (whole / "README.md").read_text()
    with pytest.raises(UserError, match="which are not in it; run it as .*--relative-to base"):
        export(above, "diffusers", tmp_path / "again", quiet=True)


def test_relative_to_needs_a_fine_tune(tiny_teacher: Path, tmp_path: Path) -> None:
    run = train(make_job(tiny_teacher, tmp_path, "train.iterations=1"))
    with pytest.raises(UserError, match=r"relative-to: the teacher of this run has no LoRAs"):
        export(run, "lora", tmp_path / "out", relative_to="teacher", quiet=True)
    with pytest.raises(UserError, match=r"relative-to: 'both' is unknown; use base or teacher"):
        export(run, "lora", tmp_path / "out", relative_to="both", quiet=True)
    with pytest.raises(UserError, match=r"relative-to: belong to --format lora"):
        export(run, "diffusers", tmp_path / "out", relative_to="base", quiet=True)


def pair_of_loras(folder: Path, base: Mapping[str, Tensor]) -> list[Path]:
    """A file for each of two experts, whose names say which; each changes one layer."""
    files = []
    for number, name in enumerate(("style_high_noise", "low_noise/style")):
        generator = torch.Generator().manual_seed(number)
        out, into = base["blocks.0.attn1.to_q.weight"].shape
        layer = "transformer.blocks.0.attn1.to_q"
        file = folder / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        tensors = {
            f"{layer}.lora_A.weight": torch.randn(3, into, generator=generator),
            f"{layer}.lora_B.weight": 0.1 * torch.randn(out, 3, generator=generator),
        }
        save_file(tensors, file)
        files.append(file)
    return files


@pytest.mark.slow
def test_two_experts_have_files_of_their_own(tmp_path: Path) -> None:
    """Trained from, exported for the base model, and exported to go on top of the files."""
    teacher = make_tiny_experts(tmp_path / "pair")
    plain = open_wan(teacher)
    before = [expert.model.load_transformer().state_dict() for expert in plain.experts]
    files = pair_of_loras(tmp_path, before[0])
    setting = f"teacher.loras=['{files[1]}', '{files[0]}:{STRENGTH}']"
    trained = ["student.train=lora", "student.lora.rank=4", "train.iterations=2", "train.ema=0"]
    job = make_job(teacher, tmp_path, setting, *trained)
    model = open_teacher(job.teacher)
    for expert, weights, file, strength in zip(
        model.experts, before, files, (STRENGTH, 1.0), strict=True
    ):
        stored = load_file(file)
        pair = (stored[f"transformer.blocks.0.attn1.to_q.lora_{kind}.weight"] for kind in "BA")
        weights["blocks.0.attn1.to_q.weight"] += strength * torch.mm(*pair)
        for name, value in expert.model.load_transformer().state_dict().items():
            torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-6, msg=name)
    digests = {weights_digest(each, "transformer") for each in (plain, model)}
    assert len(digests) == 2

    run = train(job)
    options: Any = {"dtype": "fp32", "quiet": True}
    whole = open_wan(export(run, "diffusers", tmp_path / "whole", **options))
    alone = export(run, "lora", tmp_path / "alone", **options)
    again = open_wan(export(alone, "diffusers", tmp_path / "again", **options))
    above = export(run, "lora", tmp_path / "above", relative_to="teacher", **options)
    own = [WeightedLora(above / f"{part}_noise_model") for part in ("high", "low")]
    on_top = open_wan(teacher).with_loras([*job.teacher.lora_files, *own])
    for number, expert in enumerate(whole.experts):
        expected = expert.model.load_transformer().state_dict()
        for found in (again, on_top):
            state = found.experts[number].model.load_transformer().state_dict()
            for name, tensor in expected.items():
                torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=2e-5, msg=name)
    said = read_manifest(above).loras  # type: ignore[union-attr]
    assert said == (f"style_high_noise.safetensors:{STRENGTH}", "low_noise/style.safetensors:1")
    lines = [f'--lora "{name}"' for name in said] + ["--lora THIS_FOLDER/high_noise_model"]
    assert " \\\n    ".join(lines) in (above / "README.md").read_text()
    with pytest.raises(UserError, match="--lora .*above/high_noise_model --lora .*above/low_noise"):
        export(above, "diffusers", tmp_path / "more", quiet=True)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    "roles",
    [(), ("student={train: lora, lora: {rank: 4}}", "fake_score={train: lora, lora: {rank: 4}}")],
    ids=["all weights", "adapters"],
)
def test_two_ranks_train_a_pair_over_its_files_as_one_process(
    tmp_path: Path, roles: tuple[str, ...]
) -> None:
    """Each expert is the one with its own file; both are trained."""
    teacher = make_tiny_experts(tmp_path / "pair")
    shapes = open_wan(teacher).experts[0].model.load_transformer().state_dict()
    high, low = pair_of_loras(tmp_path, shapes)
    loras = f"teacher.loras=['{low}', '{high}:{STRENGTH}']"
    settings = (loras, *roles, "train.iterations=6", "teacher.guidance_scale=3")
    local = train(make_job(teacher, tmp_path / "local", *settings))
    ranks = ("parallel.strategy=zero3", "train.micro_batch=1")
    sharded = train(make_job(teacher, tmp_path / "zero3", *settings, *ranks), ranks=2)
    rows = read_trace(local)
    assert {role for row in rows for role in row["grad_norm"]} >= {"student", "student_2"}
    for ours, theirs in zip(read_trace(sharded), rows, strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    found, expected = (weights_of(find_checkpoint(run)) for run in (sharded, local))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0, msg=name)
    without = train(make_job(teacher, tmp_path / "plain", *settings[1:]))
    assert read_trace(without)[0]["grad_norm"] != pytest.approx(rows[0]["grad_norm"], rel=1e-3)


def test_a_file_that_names_no_expert_is_refused(tmp_path: Path, lora: Path) -> None:
    job = make_job(make_tiny_experts(tmp_path / "pair"), tmp_path, setting(lora))
    with pytest.raises(UserError, match=r"teacher\.loras: .*style.* which of the two experts"):
        open_teacher(job.teacher)


def test_a_whole_job_of_an_image_model_is_read_without_the_model(tmp_path: Path) -> None:
    """Images have no number of frames, so that one is not left out of the job."""
    job = load_job(config_path("sd3_medium_sgmd.yaml"))
    whole = with_defaults(job, open_teacher(job.teacher))
    elsewhere = replace(whole, teacher=replace(whole.teacher, path=str(tmp_path / "gone")))
    (tmp_path / "job.yaml").write_text(elsewhere.to_yaml())
    assert saved_job(tmp_path / "job.yaml") == elsewhere
