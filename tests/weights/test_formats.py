"""Full exports for LightX2V and ComfyUI, at 16 and at 8 bits, and changing between formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.manifest import read_manifest
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.students import manifest_of
from tests.tiny import WEIGHTS
from tests.weights import reading
from tests.weights.conftest import student_tensors, write_checkpoint
from weights import export, verify
from weights.card import _license, model_card
from weights.export_spec import ExportSpec, Losses
from weights.formats.comfyui_workflow import workflow
from weights.formats.diffusers import scheduler_problems, write_scheduler
from weights.formats.registry import FORMATS
from weights.opening import open_source
from weights.verify import differences

WAN = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports of one run, each made once; not to be written to."""
    from tests.tiny import make_tiny_wan

    base = tmp_path_factory.mktemp("exports")
    teacher = make_tiny_wan(base / "teacher")
    write_checkpoint(base / "run", teacher, 20)
    (base / "run" / "metrics.json").write_text(json.dumps({"student": {"motion": 1.004}, "n": 3}))

    class Exports:
        folder, run = base, base / "run"
        teacher_folder = teacher

        def __call__(self, format: str, dtype: str | None = None, source: str = "run") -> Path:
            out = base / f"{source}_{format}_{dtype}"
            if not out.exists():
                export(base / source, format, out, dtype=dtype, quiet=True)
            return out

    return Exports()


def test_wan_has_the_original_names_and_a_ready_job(exports: Any) -> None:
    out = exports("wan")
    stored = load_file(out / WAN)
    expected = reading.to_original(student_tensors(exports.teacher_folder, 1020))
    assert stored.keys() == expected.keys() and "blocks.1.cross_attn.norm_k.weight" in stored
    for name, tensor in stored.items():
        assert torch.equal(tensor, expected[name].bfloat16()), name
    assert json.loads((out / "config.json").read_text()) == {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": 48,
        "eps": 1e-6,
        "ffn_dim": 64,
        "freq_dim": 16,
        "in_dim": 4,
        "model_type": "t2v",
        "num_heads": 4,
        "num_layers": 2,
        "out_dim": 4,
        "text_dim": 16,
        "text_len": 512,
    }
    job = json.loads((out / "lightx2v.json").read_text())
    steps = {"sample_shift": 8, "denoising_step_list": [1000, 750, 500, 250], "infer_steps": 4}
    assert steps.items() <= job.items() and job["enable_cfg"] is False
    assert job["dit_original_ckpt"] == WAN  # the command runs in the folder, wherever it is
    header = reading.metadata_of(out / WAN)
    schedule = json.loads(header["lightx2v_sgmd"])["schedule"]
    assert header["modelspec.architecture"] == "wan2.1"
    assert schedule["timesteps"] == [1000, 960, 888.889, 727.273]
    manifest = read_manifest(out)
    assert manifest is not None and (manifest.format, manifest.dtype) == ("wan", "bf16")
    card = (out / "README.md").read_text()
    for file in out.glob("*.json"):  # what is published names no folder of its author
        assert file.name == "lightx2v_sgmd.json" or str(exports.folder) not in file.read_text()
    assert str(exports.folder) not in card
    assert "| student motion | 1.004 |" in card and "| n | 3 |" in card


@pytest.mark.parametrize("name", ["diffusers", "wan", "comfyui"])
def test_a_path_of_this_machine_is_in_the_manifest_alone(exports: Any, name: str) -> None:
    """It names the teacher's folder, which a later export on this machine reads."""
    out, machine = exports(name), str(exports.folder).encode()
    holding = {f.name for f in out.rglob("*") if f.is_file() and machine in f.read_bytes()}
    assert holding == {"lightx2v_sgmd.json"}
    saved = json.loads((out / "lightx2v_sgmd.json").read_text())
    assert saved.pop("teacher") == str(exports.teacher_folder)
    assert machine.decode() not in json.dumps(saved)


def test_the_library_opens_a_wan_export(exports: Any) -> None:
    """As a teacher's transformer would be: the configuration and names are the original's."""
    model = open_wan(exports("wan", "fp32") / WAN, exports.teacher_folder)
    state = model.load_transformer().state_dict()
    for name, tensor in student_tensors(exports.teacher_folder, 1020).items():
        assert torch.equal(state[name], tensor)


def test_comfyui_is_one_file_that_its_loader_takes(exports: Any) -> None:
    out = exports("comfyui")
    (file,) = out.glob("*.safetensors")
    assert file.name == "teacher_sgmd_4step_bf16.safetensors"
    header = reading.metadata_of(file)
    assert header["modelspec.title"] == "teacher, 4-step student by sgmd"
    stored = load_file(file)
    assert all("diffusion_model." in name for name in stored)
    loaded = reading.comfyui_loads(stored)
    expected = reading.to_original(student_tensors(exports.teacher_folder, 1020))
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name].bfloat16()), name


def test_the_workflow_runs_the_students_steps(exports: Any) -> None:
    out = exports("comfyui")
    api = json.loads((out / "workflow_api.json").read_text())
    kinds = {node["class_type"]: node["inputs"] for node in api.values()}
    assert kinds["UNETLoader"]["unet_name"] == "teacher_sgmd_4step_bf16.safetensors"
    assert kinds["CLIPLoader"]["type"] == "wan"
    assert kinds["ModelSamplingSD3"]["shift"] == 8
    sampler = kinds["KSampler"]
    assert (sampler["sampler_name"], sampler["scheduler"]) == ("euler", "simple")
    assert (sampler["steps"], sampler["cfg"], sampler["denoise"]) == (4, 1, 1)
    size = kinds["EmptyHunyuanLatentVideo"]
    assert (size["width"], size["height"], size["length"]) == (32, 32, 9)
    # ComfyUI's simple scheduler on 1000 shifted timesteps, as its code has it.
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    sigmas = 8 * u / (1 + 7 * u)
    taken = [sigmas[-(1 + int(i * 1000 / 4))].item() for i in range(4)]
    assert torch.allclose(torch.tensor(taken), Schedule().times[:-1], atol=1e-6)


def test_a_student_that_is_noised_anew_gets_programs_that_do_so(
    exports: Any, tmp_path: Path
) -> None:
    source = open_source(exports.run, ema=True)
    schedule = Schedule(solver="renoise")
    source = replace(source, about=replace(source.about, schedule=schedule))
    model = open_wan("sprites")
    write_scheduler(tmp_path, model, schedule)
    assert scheduler_problems(tmp_path, model, schedule) == []
    assert scheduler_problems(tmp_path, model, Schedule()) == [
        "the scheduler does not take the steps of euler"
    ]
    kinds = {node["class_type"]: node["inputs"] for node in workflow(source.about, "w").values()}
    assert kinds["KSampler"]["sampler_name"] == "lcm"
    for name in ("wan", "lora"):
        spec = ExportSpec(source, FORMATS[name], "bf16", tmp_path / name)
        with pytest.raises(UserError, match=r"LightX2V.*takes Euler's steps, not renoise"):
            FORMATS[name].check(spec)
    card = model_card(replace(spec, format=FORMATS["diffusers"]), None)
    assert "noised anew (renoise) |" in card and "vLLM-Omni" not in card
    euler = replace(source, about=replace(source.about, schedule=Schedule()))
    other = model_card(replace(spec, source=euler, format=FORMATS["diffusers"]), None)
    assert ", Euler |" in other and "vLLM-Omni" in other


def test_both_forms_of_the_workflow_say_the_same(exports: Any) -> None:
    out = exports("comfyui")
    api = json.loads((out / "workflow_api.json").read_text())
    ui = json.loads((out / "workflow.json").read_text())
    nodes = {str(node["id"]): node for node in ui["nodes"]}
    assert {key: node["class_type"] for key, node in api.items()} == {
        key: node["type"] for key, node in nodes.items()
    }
    assert ui["version"] == 1 and ui["state"]["lastLinkId"] == len(ui["links"])
    links = {link["id"]: link for link in ui["links"]}
    assert len(links) == len(ui["links"])
    for key, node in api.items():
        wired = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        assert {wire["name"] for wire in nodes[key]["inputs"]} == set(wired)
        for slot, wire in enumerate(nodes[key]["inputs"]):
            link = links[wire["link"]]
            origin, output = str(link["origin_id"]), link["origin_slot"]
            assert [origin, output] == wired[wire["name"]]
            assert (str(link["target_id"]), link["target_slot"]) == (key, slot)
            kind = nodes[origin]["outputs"][output]["type"]
            assert kind == link["type"] == wire["type"]
            assert wire["link"] in nodes[origin]["outputs"][output]["links"]
            assert nodes[origin]["order"] < nodes[key]["order"]
            assert nodes[origin]["pos"][0] < nodes[key]["pos"][0]
        plain = [value for value in node["inputs"].values() if not isinstance(value, list)]
        shown = [v for v in nodes[key]["widgets_values"] if v != "fixed"]
        assert sorted(map(str, shown)) == sorted(map(str, plain))
    sampler = next(node for node in ui["nodes"] if node["type"] == "KSampler")
    assert sampler["widgets_values"] == [0, "fixed", 4, 1.0, "euler", "simple", 1.0]


@pytest.mark.parametrize(
    ("format", "dtype"), [("wan", "fp8"), ("comfyui", "fp8"), ("comfyui", "fp8-legacy")]
)
def test_fp8_is_within_its_reported_error(exports: Any, format: str, dtype: str) -> None:
    out = exports(format, dtype)
    (file,) = out.glob("*.safetensors")
    stored = load_file(file)
    loaded = reading.lightx2v_fp8(stored) if format == "wan" else reading.comfyui_loads(stored)
    got = reading.to_diffusers(loaded)
    exact = student_tensors(exports.teacher_folder, 1020)
    assert got.keys() == exact.keys()
    losses = json.loads((out / "losses.json").read_text())
    assert len(losses["layers"]) == 20  # ten matrices in each of two blocks
    for name, tensor in exact.items():
        if name in losses["layers"]:
            reported = losses["layers"][name]["relative_error"]
            # What programs compute with is rounded to bf16, as the reported error has it.
            seen = reading.relative(got[name].bfloat16().float(), tensor)
            assert seen == pytest.approx(reported, rel=1e-4) and 0.01 < seen < 0.04
        else:
            assert torch.equal(got[name], tensor.bfloat16().float()), name
    kinds = {
        name: tensor.dtype for name, tensor in stored.items() if tensor.dtype != torch.bfloat16
    }
    scale = ".scale_weight" if dtype == "fp8-legacy" else ".weight_scale"
    expected = {scale: torch.float32, ".comfy_quant": torch.uint8}
    for name, kind in kinds.items():
        ending = name[name.rindex(".") :]
        assert kind == expected.get(ending, torch.float8_e4m3fn)
        assert "norm" not in name and "modulation" not in name and "embedding" not in name
    if format == "wan":
        assert stored["blocks.0.ffn.0.weight_scale"].shape == (64, 1)
        job = json.loads((out / "lightx2v.json").read_text())
        assert job["dit_quantized"] is True and job["dit_quantized_ckpt"] == WAN
    else:
        layer = "model.diffusion_model.blocks.0.ffn.0"
        assert stored[f"{layer}{scale}"].shape == ()
        assert ("model.diffusion_model.scaled_fp8" in stored) == (dtype == "fp8-legacy")
        told = json.loads(reading.metadata_of(file).get("_quantization_metadata", '{"layers": {}}'))
        assert len(told["layers"]) == (20 if dtype == "fp8" else 0)
        if dtype == "fp8":
            settings = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
            assert told["layers"][layer] == settings
            assert json.loads(bytes(stored[f"{layer}.comfy_quant"].tolist())) == settings
    narrow = torch.bfloat16
    before = reading.evaluate(exports.teacher_folder, exact, dtype=narrow)
    after = reading.evaluate(exports.teacher_folder, got, dtype=narrow)
    seen = reading.relative(after, before)
    assert seen == pytest.approx(losses["forward_error"], rel=1e-3) and 0.001 < seen < 0.05
    assert f"{losses['forward_error']:.2%}" in (out / "README.md").read_text()


def test_formats_change_back_and_forth_without_changing_a_bit(exports: Any) -> None:
    first = exports("diffusers")
    wan = exports("wan", source=first.name)
    back = exports("diffusers", source=wan.name)
    assert sha256_file(first / WEIGHTS) == sha256_file(back / WEIGHTS)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        for path in (first / part).iterdir():
            assert sha256_file(path) == sha256_file(back / part / path.name)
    comfyui = exports("comfyui", source=wan.name)
    again = exports("wan", source=comfyui.name)
    assert sha256_file(wan / WAN) == sha256_file(again / WAN)
    manifest, original = read_manifest(back), read_manifest(first)
    assert manifest is not None and original is not None
    assert (manifest.step, manifest.ema, manifest.method) == (20, True, original.method)


@pytest.mark.parametrize(
    ("format", "dtype", "library", "relation"),
    [
        ("wan", None, "lightx2v", "finetune"),
        ("comfyui", "fp8", "diffusion-single-file", "quantized"),
        ("lora", None, "diffusers", "adapter"),
    ],
)
def test_the_cards_front_matter(
    exports: Any, format: str, dtype: str | None, library: str, relation: str
) -> None:
    out = exports(format, dtype)
    head = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (head["library_name"], head["pipeline_tag"]) == (library, "text-to-video")
    assert head["license"] == "other" and "base_model" not in head  # the teacher is a folder here
    assert {"lightx2v-sgmd", format, "sgmd"} <= set(head["tags"])
    parameters = {"num_inference_steps": 4, "guidance_scale": 1, "height": 32, "width": 32}
    assert parameters.items() <= head["inference"]["parameters"].items()
    spec = ExportSpec(open_source(exports.run, ema=True), FORMATS[format], dtype or "bf16", out)
    about = replace(spec.source.about, teacher="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    published = replace(spec, source=replace(spec.source, about=about))
    head = yaml.safe_load(model_card(published, None).split("---")[1])
    assert head["base_model"] == about.teacher and head["license"] == "apache-2.0"
    assert head["base_model_relation"] == relation


@pytest.mark.parametrize(
    ("teacher", "base", "license"),
    [
        ("sprites", None, "apache-2.0"),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", None, "apache-2.0"),
        ("Wan-AI/Wan2.1-T2V-14B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "apache-2.0"),
        ("stabilityai/stable-diffusion-xl-base-1.0", None, "openrail++"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", None, "other"),
        ("Wan-AI/Wan2.1-T2V-14B", "runs/fine-tune", "other"),
        ("someone/Wan-AI/Wan2.1-T2V-14B", None, "other"),
    ],
)
def test_the_licence_is_the_teachers(teacher: str, base: str | None, license: str) -> None:
    about = replace(manifest_of(Schedule()), teacher=teacher, student_base=base)
    assert _license(about) == license


def test_what_another_precision_makes_of_an_export(exports: Any) -> None:
    narrow = exports("wan", "bf16", source=exports("diffusers", "fp32").name)
    assert sha256_file(narrow / WAN) == sha256_file(exports("wan") / WAN)


@pytest.mark.parametrize(
    ("format", "dtype"), [("wan", "fp8"), ("comfyui", "fp8"), ("comfyui", "fp8-legacy")]
)
def test_8_bit_exports_are_exported_again(exports: Any, format: str, dtype: str) -> None:
    """Into 8 bits without a change, and into other formats with the values that they stand for."""
    first = exports(format, dtype)
    again = exports(format, source=first.name)
    (before,), (after,) = (sorted(path.glob("*.safetensors")) for path in (first, again))
    assert sha256_file(before) == sha256_file(after)
    wide = load_file(exports("diffusers", "fp32", source=first.name) / WEIGHTS)
    name = "blocks.0.attn1.to_q.weight"
    exact = load_file(exports("diffusers", "fp32") / WEIGHTS)[name]
    assert 0 < (wide[name] - exact).abs().max() < exact.abs().max() / 16


def test_a_changed_export_is_no_source(exports: Any, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(exports("wan"), tmp_path / "broken")
    content = bytearray((broken / WAN).read_bytes())
    content[-1] ^= 1
    (broken / WAN).write_bytes(content)
    with pytest.raises(UserError, match=f"{WAN} has changed since it was written"):
        export(broken, "diffusers", tmp_path / "out", quiet=True)


def test_fp8_beyond_its_report_is_found(exports: Any) -> None:
    out = exports("wan", "fp8")
    spec = ExportSpec(open_source(exports.run, ema=True), FORMATS["wan"], "fp8", out)
    report = json.loads((out / "losses.json").read_text())
    honest = Losses("fp8", report["forward_error"], report["layers"], {})
    assert differences(spec, out, honest) == []
    boasting = Losses("fp8", report["forward_error"] / 2, report["layers"], {})
    assert any("a forward pass is off" in line for line in differences(spec, out, boasting))


def test_a_wrong_scale_is_found(exports: Any, tmp_path: Path) -> None:
    import shutil

    out = shutil.copytree(exports("wan", "fp8"), tmp_path / "fp8")
    tensors = load_file(out / WAN)
    tensors["blocks.0.ffn.0.weight_scale"] *= 2
    save_file(tensors, out / WAN, schedule_metadata(Schedule()))
    spec = ExportSpec(
        open_source(exports.run, ema=True), FORMATS["wan"], "fp8", exports("wan", "fp8")
    )
    report = json.loads((out / "losses.json").read_text())
    found = differences(spec, out, Losses("fp8", report["forward_error"], report["layers"], {}))
    assert "blocks.0.ffn.0.weight_scale has other values" in found


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "wan", "max_shard_size": "huge"}, "max_shard_size: 'huge' is not a size"),
        (
            {"format": "wan", "rank": 4},
            "only, relative-to: belong to --format lora",
        ),
        ({"format": "lora", "rank": 0}, "rank: 0 is below 1"),
        ({"format": "lora", "energy": 1.5}, r"energy: 1.5 is not in \(0, 1\]"),
        ({"format": "lora", "rank": 4, "energy": 0.5}, "give only one of the two"),
        ({"format": "lora", "dtype": "fp8"}, "or --format wan or comfyui"),
    ],
)
def test_options_that_will_not_do(exports: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        export(exports.run, out=exports.folder / "no", quiet=True, **options)
    assert "\n" not in str(caught.value)
    assert not (exports.folder / "no").exists()


def test_wan_is_sharded_with_an_index(exports: Any, tmp_path: Path) -> None:
    export(exports.run, "wan", tmp_path / "out", max_shard_size="60KB", quiet=True)
    index = json.loads((tmp_path / "out" / f"{WAN}.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1 and verify(tmp_path / "out") == []
    together: dict[str, Any] = {}
    for file in files:
        together |= load_file(tmp_path / "out" / file)
        assert "lightx2v_sgmd" in reading.metadata_of(tmp_path / "out" / file)
    whole = load_file(exports("wan") / WAN)
    assert together.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(together[name], whole[name]) for name in whole)
    job = json.loads((tmp_path / "out" / "lightx2v.json").read_text())
    assert job["dit_original_ckpt"] == "."
