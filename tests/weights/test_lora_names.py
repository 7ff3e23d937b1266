"""Exported adapters under every program's names: taken by that program, and by ours again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from infer import Lora
from infer.network.lora import add_loras
from lightx2v_sgmd.families.inspection.inspecting import inspect_weights
from lightx2v_sgmd.families.lora.reading import open_lora
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.lora_folder import lora_file_in
from lightx2v_sgmd.job import schema
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WAN_LAYERS, make_tiny_wan
from tests.weights import reading
from tests.weights.conftest import write_checkpoint, write_lora_checkpoint
from weights import export
from weights.io.lora_names import NAMES

pytestmark = pytest.mark.slow

pytest.importorskip("peft")
TRAINED = schema.AdapterSettings(rank=4, alpha=6.0, targets=WAN_LAYERS)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run trained in full and one of adapters, and exports of them, each made once."""
    base = tmp_path_factory.mktemp("names")
    teacher_folder = make_tiny_wan(base / "teacher")
    write_checkpoint(base / "full", teacher_folder, 20)
    write_lora_checkpoint(base / "adapters", teacher_folder, 20, TRAINED)

    class Exports:
        teacher = teacher_folder

        def __call__(self, source: str, **options: Any) -> Path:
            out = base / "_".join(["of", source, *(f"{k}-{v}" for k, v in options.items())])
            if source == "full":
                options.setdefault("rank", 8)
            if not out.exists():
                export(base / source, "lora", out, dtype="fp32", quiet=True, **options)
            return out

    return Exports()


def output(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 4, 1, 8, 8, generator=generator)
    text = torch.randn(1, 8, 16, generator=generator)
    with torch.no_grad():
        result: Tensor = network(x, torch.tensor([500.0]), text, return_dict=False)[0]
    return result


def ours(exports: Any, folder: Path) -> Tensor:
    """The output of our engine's network with a folder's adapters."""
    network = open_wan(exports.teacher).load_transformer()
    add_loras(network, [Lora(folder)])
    return output(network)


def linear_alone(exports: Any, folder: Path) -> Tensor:
    """The same with the linear layers and their biases alone, which most programs apply."""
    network = open_wan(exports.teacher).load_transformer()
    exact = {name: p.clone() for name, p in network.named_parameters()}
    linear = {n for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    add_loras(network, [Lora(folder)])
    with torch.no_grad():
        for name, p in network.named_parameters():
            plain = name.replace(".base_layer", "")
            if plain in exact and plain.rpartition(".")[0] not in linear:
                p.copy_(exact[plain])
    return output(network)


@pytest.mark.parametrize("source", ["full", "adapters"])
@pytest.mark.parametrize("names", [n for n in NAMES if n != "portable"])
def test_every_naming_holds_the_same_linear_layers(exports: Any, source: str, names: str) -> None:
    portable, out = exports(source), exports(source, names=names)
    expected = linear_alone(exports, portable)
    got = ours(exports, out)
    off = reading.relative(got, expected)
    # musubi-tuner's names have no biases.
    assert off < 1e-5 if names != "musubi" or source == "adapters" else 1e-5 < off < 0.2
    assert reading.relative(output(open_wan(exports.teacher).load_transformer()), expected) > 0.01
    report = json.loads((out / "losses.json").read_text())
    assert report["forward_error"] >= (0 if source == "adapters" else 1e-3)
    assert inspect_weights(out, exports.teacher).kind == "export of a LoRA"


def test_names_are_those_that_the_programs_look_for(exports: Any) -> None:
    layer = "blocks.1.attn2.to_out.0"
    assert transformer_to_original(f"{layer}.weight") == "blocks.1.cross_attn.o.weight"
    for names, file, down in (
        ("musubi", "musubi_lora", "lora_unet_blocks_1_cross_attn_o.lora_down.weight"),
        ("peft", "adapter_model", f"base_model.model.{layer}.lora_A.weight"),
        ("diffusers", "pytorch_lora_weights", f"transformer.{layer}.lora_A.weight"),
        (
            "lightx2v_train",
            "pytorch_lora_weights",
            "transformer.blocks.1.cross_attn.o.lora_A.weight",
        ),
    ):
        out = exports("adapters", names=names)
        found = lora_file_in(out)
        assert found is not None and found.stem.endswith(file)
        stored = load_file(found)
        assert down in stored and len(stored) == 20 * (3 if names == "musubi" else 2)
        if names == "musubi":
            assert stored["lora_unet_blocks_1_cross_attn_o.alpha"].item() == 6


@pytest.mark.parametrize("source", ["full", "adapters"])
@pytest.mark.parametrize("names", ["portable", "peft"])
def test_peft_takes_the_folder(exports: Any, source: str, names: str) -> None:
    from peft import PeftModel

    out = exports(source, **({} if names == "portable" else {"names": names}))
    network = open_wan(exports.teacher).load_transformer()
    found = PeftModel.from_pretrained(network, str(out))
    expected = linear_alone(exports, exports(source))
    torch.testing.assert_close(output(found.base_model.model), expected, atol=1e-5, rtol=1e-4)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "teacher"
    assert (config["r"], config["lora_alpha"]) == ((8, 8) if source == "full" else (4, 6))


@pytest.mark.parametrize("source", ["full", "adapters"])
@pytest.mark.parametrize("names", ["portable", "diffusers"])
def test_stock_diffusers_takes_the_folder(exports: Any, source: str, names: str) -> None:
    """By ``load_lora_weights`` with the folder alone, settings in the header included."""
    out = exports(source, **({} if names == "portable" else {"names": names}))
    pipe = WanPipeline.from_pretrained(exports.teacher)
    pipe.load_lora_weights(str(out))
    expected = linear_alone(exports, exports(source))
    torch.testing.assert_close(output(pipe.transformer), expected, atol=1e-5, rtol=1e-4)


def test_the_cards_lines_make_extracted_adapters_whole_in_diffusers(exports: Any) -> None:
    out = exports("full")
    card = (out / "README.md").read_text().replace("THIS_FOLDER", str(out))
    (lines,) = re.findall(r"```python\n(from safetensors\.torch.*?)```", card, re.DOTALL)
    pipe = WanPipeline.from_pretrained(exports.teacher)
    pipe.load_lora_weights(str(out))
    before = output(pipe.transformer)
    exec(lines, {"pipe": pipe})
    expected = ours(exports, out)
    assert reading.relative(before, expected) > 1e-3
    torch.testing.assert_close(output(pipe.transformer), expected, atol=1e-5, rtol=1e-4)
    assert "safetensors.torch" not in (exports("adapters") / "README.md").read_text()


def test_only_blocks_keeps_their_linear_layers(exports: Any) -> None:
    out = exports("full", only="blocks")
    file = lora_file_in(out)
    assert file is not None
    found = open_lora(file, open_wan(exports.teacher).transformer_shapes())
    assert len(found.layers) == 20 and all(n.startswith("blocks.") for n in found.layers)
    assert {n.rpartition(".")[0] for n in found.differences} == set(found.layers)
    assert "safetensors.torch" not in (out / "README.md").read_text()


def test_the_header_says_what_it_is(exports: Any) -> None:
    file = lora_file_in(exports("full"))
    assert file is not None
    metadata = reading.metadata_of(file)
    assert metadata["modelspec.architecture"] == "wan2.1/lora"
    assert metadata["modelspec.title"] == "teacher, 4-step LoRA by sgmd"
    assert metadata["modelspec.resolution"] == "32x32"
    settings = json.loads(metadata["lora_adapter_metadata"])
    assert settings["transformer.r"] == settings["transformer.lora_alpha"] == 8
    assert "transformer.blocks.0.attn1.to_q" not in settings["transformer.target_modules"]
    assert "blocks.0.attn1.to_q" in settings["transformer.target_modules"]


@pytest.mark.parametrize("names", NAMES)
def test_every_naming_can_be_exported_again(exports: Any, tmp_path: Path, names: str) -> None:
    out = exports("adapters", **({} if names == "portable" else {"names": names}))
    again = export(out, "lora", tmp_path / "again", dtype="fp32", quiet=True)
    torch.testing.assert_close(ours(exports, again), ours(exports, out), atol=1e-6, rtol=1e-5)


def test_other_names_and_parts_are_refused(exports: Any, tmp_path: Path) -> None:
    source = exports("adapters")
    with pytest.raises(UserError, match="names: 'a1111' is unknown; use portable, diffusers, peft"):
        export(source, "lora", tmp_path / "out", names="a1111", quiet=True)
    with pytest.raises(UserError, match="only: 'head' is unknown; use blocks"):
        export(source, "lora", tmp_path / "out", only="head", quiet=True)
    with pytest.raises(UserError, match="names, only, relative-to: belong to --format lora"):
        export(source, "wan", tmp_path / "out", names="peft", quiet=True)


@pytest.mark.parametrize("names", ["portable", "musubi"])
def test_programs_that_do_not_take_the_file_are_not_warned_of(
    exports: Any, names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = exports("adapters")
    export(source, "lora", tmp_path / "out", names=names, quiet=False)
    assert ("ComfyUI does not run" in capsys.readouterr().err) == (names == "portable")
