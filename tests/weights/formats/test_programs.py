"""Limits of an export in a program are said on the terminal and in its card."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.families.wan.opening import open_wan
from tests.weights.conftest import write_checkpoint
from tools.models.standard_wan import make_standard_wan
from weights import export
from weights.card import model_card
from weights.export_spec import ExportSpec
from weights.formats.comfyui_workflow import StartImage, pair_workflow, to_ui, workflow
from weights.formats.programs import COMFYUI, LIGHTX2V, differing_sizes, refusal, section
from weights.formats.registry import FORMATS
from weights.opening import open_source

# Inputs of ComfyUI's nodes (a125cd8, 2025-10): required ones, and after the bar optional ones.
NODES = {
    "UNETLoader": "unet_name weight_dtype |",
    "LoraLoaderModelOnly": "model lora_name strength_model |",
    "CLIPLoader": "clip_name type | device",
    "VAELoader": "vae_name |",
    "ModelSamplingSD3": "model shift |",
    "CLIPTextEncode": "text clip |",
    "EmptyHunyuanLatentVideo": "width height length batch_size |",
    "KSampler": "model positive negative latent_image "
    "seed steps cfg sampler_name scheduler denoise |",
    "KSamplerAdvanced": "model positive negative latent_image add_noise noise_seed steps cfg "
    "sampler_name scheduler start_at_step end_at_step return_with_leftover_noise |",
    "LoadImage": "image |",
    "CLIPVisionLoader": "clip_name |",
    "CLIPVisionEncode": "clip_vision image crop |",
    "WanImageToVideo": "positive negative vae width height length batch_size "
    "| clip_vision_output start_image",
    "VAEDecode": "samples vae |",
    "CreateVideo": "images fps | audio",
    "SaveVideo": "video filename_prefix format codec |",
}
# Keys of its configuration that LightX2V's code asks for (f8aee98, 2026-08).
LIGHTX2V_KEYS = {
    *("infer_steps", "denoising_step_list", "sample_shift", "sample_guide_scale", "enable_cfg"),
    *("target_video_length", "target_height", "target_width", "fps", "text_len", "rope_type"),
    *("self_attn_1_type", "cross_attn_1_type", "cross_attn_2_type", "cpu_offload"),
    *("dit_original_ckpt", "dit_quantized", "dit_quantized_ckpt", "dit_quant_scheme"),
    "lora_configs",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model of the sizes that other programs fix; not to be written to."""
    folder = tmp_path_factory.mktemp("standard")
    write_checkpoint(folder / "run", make_standard_wan(folder / "teacher"), 20)
    return folder / "run"


def test_published_models_run_everywhere() -> None:
    for name in ("1-T2V-1.3B", "1-T2V-14B", "1-I2V-14B-480P", "2-T2V-A14B", "2-I2V-A14B"):
        config = open_wan(f"Wan-AI/Wan2.{name}-Diffusers").transformer_config
        assert [refusal(program, config) for program in (COMFYUI, LIGHTX2V)] == [None, None]


@pytest.mark.parametrize(
    ("key", "value", "says", "programs"),
    [
        ("patch_size", [1, 1, 1], "the patch is 1x1x1, not 1x2x2", {"ComfyUI", "LightX2V"}),
        ("attention_head_dim", 64, "the width of a head is 64, not 128", {"ComfyUI"}),
        ("text_dim", 64, "the width of the text embeddings is 64, not 4096", None),
        ("freq_dim", 64, "the width of the time embedding is 64, not 256", {"ComfyUI"}),
        ("out_channels", 48, "the number of latent channels is 48, not 16", {"LightX2V"}),
        ("image_dim", 24, "the width of an image's rows is 24, not 1280", None),
    ],
)
def test_one_other_size_is_named(
    key: str, value: Any, says: str, programs: set[str] | None
) -> None:
    config = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers").transformer_config | {key: value}
    found = {p.name: differing_sizes(p, config) for p in (COMFYUI, LIGHTX2V)}
    expected = {"ComfyUI", "LightX2V"} if programs is None else programs
    assert found == {name: [says] if name in expected else [] for name in found}


def test_latent_channels_of_no_published_model_are_named() -> None:
    config = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers").transformer_config | {"out_channels": 4}
    assert differing_sizes(COMFYUI, config) == ["the number of latent channels is 4, not 16 or 48"]
    found = differing_sizes(LIGHTX2V, config | {"out_channels": None, "in_channels": 4})
    assert found == ["the number of latent channels is 4, not 16"]


def test_a_section_keeps_its_heading() -> None:
    config = open_wan("sprites").transformer_config
    text = section(COMFYUI, config, "## ComfyUI\n\nPut the file there.\n")
    assert text.startswith("## ComfyUI\n\nComfyUI does not run this student")
    assert "Put the file" not in text and text.endswith("Run it in lightx2v-sgmd or diffusers.\n")


@pytest.mark.slow
def test_the_card_tells_how_to_run_what_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"wan": "python -m lightx2v.infer", "comfyui": "Put `teacher_sgmd_4step_bf16"}
    for format, words in said.items():
        out = export(run, format, tmp_path / format)
        card = (out / "README.md").read_text()
        assert words in card and "does not run" not in card
    card = (export(run, "lora", tmp_path / "lora", rank=1) / "README.md").read_text()
    assert "Copy `teacher_sgmd_4step_bf16_pytorch_lora_weights.safetensors` to" in card
    assert "models/diffusion_models/teacher.safetensors" in card
    assert "does not run" not in capsys.readouterr().err + card
    card = (export(run, "diffusers", tmp_path / "diffusers") / "README.md").read_text()
    assert '`{"sample_solver": "euler", "flow_shift": 8}`' in card and "--backend diffusers" in card
    for dtype in ("fp8", "fp8-legacy"):
        card = (export(run, "comfyui", tmp_path / dtype, dtype=dtype) / "README.md").read_text()
        assert ("need ComfyUI of December 2025 or newer" in card) == (dtype == "fp8")
    for format in ("wan", "lora"):
        job = json.loads((tmp_path / format / "lightx2v.json").read_text())
        assert set(job) <= LIGHTX2V_KEYS
    # LightX2V's own default needs a package that it does not depend on.
    assert (
        job["rope_type"] == "torch_complex_rope"
        and "--config_json lightx2v.json" in (tmp_path / "wan" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("name", "original", "file"),
    [
        ("Wan2.1-I2V-14B-480P", "Wan2.1-I2V", "wan2.1_i2v_480p_14B_bf16"),
        ("Wan2.2-I2V-A14B", "Wan2.2-I2V-A14B", "wan2.2_i2v_low_noise_14B_fp16"),
    ],
)
def test_the_cards_of_published_sizes_start_from_an_image(
    run: Path, tmp_path: Path, name: str, original: str, file: str
) -> None:
    """The student's weights are of another model: only what is said of it counts."""
    model = open_wan(f"Wan-AI/{name}-Diffusers")
    source = open_source(run, ema=True)
    one = replace(source, model=model, about=replace(source.about, teacher=f"Wan-AI/{name}"))
    pair = len(model.experts) > 1
    source = replace(one, second=replace(one, model=model.experts[1].model) if pair else None)
    cards = {}
    for format in ("wan", "comfyui", "lora"):
        cards[format] = model_card(ExportSpec(source, FORMATS[format], "bf16", tmp_path), None)
        assert "pipeline_tag: image-to-video\nlicense: apache-2.0" in cards[format]
        assert "t2v" not in cards[format].lower() and "does not run" not in cards[format]
    for format in ("wan", "lora"):
        command = f"--task i2v \\\n    --model_path /path/to/{original} --config_json"
        assert command in cards[format] and '--image_path "$OLDPWD/first' in cards[format]
    for format in ("comfyui", "lora"):
        assert "The node Load Image takes the image" in cards[format]
        assert ("clip_vision_h.safetensors" in cards[format]) == (not pair)
    assert f"{file}.safetensors" in cards["lora"]


@pytest.mark.parametrize(
    ("format", "programs"),
    [("wan", ["LightX2V"]), ("comfyui", ["ComfyUI"]), ("lora", ["ComfyUI", "LightX2V"])],
)
def test_the_terminal_and_the_card_name_what_does_not_run(
    tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str], format: str, programs: Any
) -> None:
    write_checkpoint(tmp_path / "run", teacher, 20)
    out = export(tmp_path / "run", format, tmp_path / "out")
    said, card = capsys.readouterr().err, (out / "README.md").read_text()
    for program in programs:
        reason = f"{program} does not run this student"
        assert reason in said and reason in card
    assert "python -m lightx2v.infer" not in card and "models/diffusion_models" not in card


IMAGES: tuple[StartImage, ...] = ("none", "latents", "latents and clip")


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("lora", [None, "x_lora.safetensors"])
def test_the_nodes_take_what_the_workflow_gives_them(
    run: Path, lora: str | None, image: StartImage
) -> None:
    about, pair = open_source(run, ema=True).about, ("x.safetensors", "y.safetensors")
    one = workflow(about, pair[0], lora, image)
    two = pair_workflow(about, pair, 2, None if lora is None else (lora, lora), image)
    for node in [*one.values(), *two.values()]:
        required, _, optional = NODES[node["class_type"]].partition(" |")
        missing = set(required.split()) - set(node["inputs"])
        unknown = set(node["inputs"]) - set(required.split()) - set(optional.split())
        assert (missing, unknown) == (set(), set()), node["class_type"]


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("lora", [None, "x_lora.safetensors"])
def test_no_node_of_a_workflow_covers_another(
    run: Path, lora: str | None, image: StartImage
) -> None:
    """Also not with the title that the editor draws above a node."""
    about = open_source(run, ema=True).about
    drawn = to_ui(workflow(about, "x.safetensors", lora, image))
    nodes = drawn["nodes"]
    assert len(nodes) == 11 + (lora is not None) + {"none": 0, "latents": 1}.get(image, 3)
    for node in nodes:
        unwired = [wire["name"] for wire in node["inputs"] if wire["link"] is None]
        without_clip = node["type"] == "WanImageToVideo" and image == "latents"
        assert unwired == (["clip_vision_output"] if without_clip else [])
    for one, other in itertools.combinations(nodes, 2):
        (x1, y1), (w1, h1), (x2, y2), (w2, h2) = (
            v for n in (one, other) for v in (n["pos"], n["size"])
        )
        apart = x1 + w1 <= x2 or x2 + w2 <= x1 or y1 + h1 <= y2 - 40 or y2 + h2 <= y1 - 40
        assert apart, (one["type"], other["type"])
    columns = {node["type"]: node["pos"][0] for node in nodes}
    if lora is not None:
        assert columns["UNETLoader"] < columns["LoraLoaderModelOnly"] < columns["ModelSamplingSD3"]
