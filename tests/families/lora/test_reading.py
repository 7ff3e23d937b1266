"""LoRA files in every spelling in use, each compared with the same update applied by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer import Lora
from infer.network.lora import add_loras, check_loras
from lightx2v_sgmd.families.lora.updates import LoraUpdates
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.system.errors import UserError
from tests.scaled import CONVENTIONS, quantised
from tests.tiny import WEIGHTS, make_tiny_cogvideox, make_tiny_wan
from tests.tiny_sd3 import make_tiny_sd3
from tests.tiny_sdxl import make_tiny_sdxl

pytest.importorskip("peft")

DIALECTS: dict[str, str] = {
    "diffusers": "transformer.{ours}.lora_{AB}.weight",
    "peft": "base_model.model.{ours}.lora_{AB}.weight",
    "peft-original": "base_model.model.{theirs}.lora_{AB}.weight",
    "diffsynth": "{theirs}.lora_{AB}.default.weight",
    "comfyui": "diffusion_model.{theirs}.lora_{AB}.weight",
    "lightx2v": "diffusion_model.{theirs}.lora_{du}.weight",
    "no-prefix": "{theirs}.lora_{du}.weight",
    "musubi": "lora_unet_{flat}.lora_{du}.weight",
    "onetrainer": "lora_transformer_{ours_flat}.lora_{du}.weight",
    "compiled": "model.diffusion_model.{wrapped}.lora_{AB}.weight",
}
COVERAGE: dict[str, Callable[[str], bool]] = {
    "some": lambda layer: layer.startswith("blocks.1.attn") or layer == "blocks.0.ffn.net.2",
    "all": lambda layer: True,
}
ALPHAS = ("absent", "tensors", "metadata", "ss", "adapter_config")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_tiny_wan(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    """A tiny network in float32."""
    return open_wan(folder).load_transformer()


@pytest.fixture(scope="module")
def bases(folder: Path, network: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The network, in 8 bits with scales in each convention, and with another LoRA merged in."""
    work = tmp_path_factory.mktemp("bases")
    found = {"full": network}
    for convention, settings in CONVENTIONS.items():
        file = work / f"{convention}.safetensors"
        save_file(quantised(load_file(folder / WEIGHTS), *settings), file)
        found[convention] = open_wan(file, folder).load_transformer()
        off = found[convention].get_parameter("blocks.0.ffn.net.2.weight")
        assert not torch.equal(off, network.get_parameter("blocks.0.ffn.net.2.weight"))
    path, _ = write(work / "other", "diffusers", "tensors", factors_of(layers_of(network)))
    found["merged"] = copy.deepcopy(network)
    LoraUpdates([Lora(path, -0.7)], shapes_of(network)).merge("", found["merged"])
    return found


def shapes_of(network: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def layers_of(network: Any) -> dict[str, tuple[int, ...]]:
    """Linear layers and the convolution, with the shapes of their weights."""
    shapes = shapes_of(network)
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) > 1
    }


def factors_of(layers: dict[str, tuple[int, ...]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors; the ranks differ."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for number, (layer, shape) in enumerate(layers.items()):
        rank = 2 + number % 3
        down = 0.1 * torch.randn(rank, *shape[1:], generator=generator)
        up = 0.1 * torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
        found[layer] = down, up
    return found


def spelled(template: str, layer: str, kind: int) -> str:
    theirs = transformer_to_original(f"{layer}.weight").removesuffix(".weight")
    return template.format(
        ours=layer,
        theirs=theirs,
        flat=theirs.replace(".", "_"),
        ours_flat=layer.replace(".", "_"),
        wrapped=theirs.replace("blocks.0.", "blocks.0._orig_mod."),
        AB="AB"[kind],
        du=("down", "up")[kind],
    )


def write(
    folder: Path, dialect: str, alpha: str, factors: dict[str, tuple[Tensor, Tensor]]
) -> tuple[Path, dict[str, float]]:
    """A file in a dialect, and each layer's scale as its documentation has it."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {"format": "pt"}
    scales = {}
    first = next(iter(factors))
    for number, (layer, pair) in enumerate(factors.items()):
        rank = pair[0].shape[0]
        for kind in (0, 1):
            tensors[spelled(DIALECTS[dialect], layer, kind)] = pair[kind]
        if alpha == "tensors":
            name = spelled(DIALECTS[dialect], layer, 0).split(".lora_")[0]
            tensors[f"{name}.alpha"] = torch.tensor(1.0 + number % 4)
            scales[layer] = (1.0 + number % 4) / rank
        elif alpha == "absent":
            scales[layer] = 1.0
        else:
            scales[layer] = (5.0 if layer == first and alpha != "ss" else 3.0) / rank
    ranks = {layer: pair[0].shape[0] for layer, pair in factors.items()}
    patterns = {"alpha_pattern": {first: 5}, "rank_pattern": ranks}
    settings = {"r": 2, "lora_alpha": 3, **patterns}
    if alpha == "metadata":
        metadata["lora_adapter_metadata"] = json.dumps(
            {f"transformer.{key}": value for key, value in settings.items()}
        )
    if alpha == "ss":
        metadata |= {"ss_network_alpha": "3.0", "ss_network_dim": "2"}
    folder.mkdir(parents=True)
    path = folder / ("adapter_model.safetensors" if alpha == "adapter_config" else "x.safetensors")
    save_file(tensors, path, metadata=metadata)
    if alpha == "adapter_config":
        config = {"peft_type": "LORA", "target_modules": ".*to_q", "bias": "none", **settings}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, scales


def by_hand(
    factors: dict[str, tuple[Tensor, Tensor]], scales: dict[str, float], strength: float
) -> dict[str, Tensor]:
    """The change of each weight."""
    changes = {}
    for layer, (down, up) in factors.items():
        product = torch.einsum("or,r...->o...", up.flatten(1), down)
        changes[f"{layer}.weight"] = strength * scales[layer] * product
    return changes


def output(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 4, 1, 8, 8, generator=generator)
    text = torch.randn(1, 8, 16, generator=generator)
    with torch.no_grad():
        result: Tensor = network(x, torch.tensor([500.0]), text, return_dict=False)[0]
    return result


@pytest.mark.slow
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_update_by_hand(
    bases: dict[str, Any], network: Any, tmp_path: Path, dialect: str, alpha: str
) -> None:
    """For every part of the layers and on every base: merged into it, and beside its weights."""
    shapes = shapes_of(network)
    # Beside the weights, one base each; all are merged into.
    beside_base = list(bases)[(list(DIALECTS).index(dialect) + ALPHAS.index(alpha)) % len(bases)]
    for coverage, covers in COVERAGE.items():
        layers = {name: shape for name, shape in layers_of(network).items() if covers(name)}
        factors = factors_of(layers)
        path, scales = write(tmp_path / coverage, dialect, alpha, factors)
        lora = Lora(path, 0.5)
        check_loras([lora], shapes)
        changes = by_hand(factors, scales, 0.5)
        assert min(change.abs().max() for change in changes.values()) > 1e-3
        updates = LoraUpdates([lora], shapes)
        for kind, base in bases.items():
            merged = copy.deepcopy(base)
            updates.merge("", merged)
            for name, p in base.named_parameters():
                expected = p + changes[name] if name in changes else p
                message = f"{coverage}, {kind}: {name}"
                torch.testing.assert_close(merged.get_parameter(name), expected, msg=message)
            if kind == beside_base:
                beside = copy.deepcopy(base)
                add_loras(beside, [lora])
                torch.testing.assert_close(output(beside), output(merged), atol=1e-5, rtol=1e-4)


OTHER_DIALECTS = {
    "diffusers": "{folder}.{ours}.lora_{AB}.weight",
    "peft": "base_model.model.{ours}.lora_{AB}.weight",
    "comfyui": "diffusion_model.{ours}.lora_{AB}.weight",
    "no-prefix": "{ours}.lora_{du}.weight",
    "kohya": "lora_unet_{flat}.lora_{du}.weight",
    "onetrainer": "lora_transformer_{flat}.lora_{du}.weight",
}
"""How files of other families than Wan spell diffusers' names of layers."""


@pytest.mark.parametrize("make", [make_tiny_cogvideox, make_tiny_sd3, make_tiny_sdxl])
def test_other_families_are_read_in_every_dialect(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    model = open_model(make(tmp_path / "teacher"))
    shapes = model.transformer_shapes()
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) in (2, 4)
    }
    factors = factors_of(layers)
    scales = {layer: (1.0 + i % 4) / factors[layer][0].shape[0] for i, layer in enumerate(layers)}
    changes = by_hand(factors, scales, 0.5)
    for dialect, template in OTHER_DIALECTS.items():
        tensors = {}
        for number, (layer, pair) in enumerate(factors.items()):
            for kind in (0, 1):
                key = template.format(
                    folder=model.pipeline.folder,
                    ours=layer,
                    flat=layer.replace(".", "_"),
                    AB="AB"[kind],
                    du=("down", "up")[kind],
                )
                tensors[key] = pair[kind]
            tensors[f"{key.split('.lora_')[0]}.alpha"] = torch.tensor(1.0 + number % 4)
        path = tmp_path / f"{dialect}.safetensors"
        save_file(tensors, path)
        merged = LoraUpdates(model.with_loras([Lora(path, 0.5)]).loras, shapes)
        for name, change in changes.items():
            found = torch.zeros(shapes[name])
            merged.add_to(name, found)
            torch.testing.assert_close(found, change, msg=f"{dialect}: {name}")


def test_the_authors_names_of_sd3_are_refused_by_name(tmp_path: Path) -> None:
    """Their queries, keys and values are one layer."""
    model = open_model(make_tiny_sd3(tmp_path / "teacher"))
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 8)}
    tensors[f"{name}.lora_up.weight"] = torch.ones(24, 2)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="names of SD3's authors .* convert it to diffusers' names"):
        model.with_loras([Lora(tmp_path / "x.safetensors")])


def test_differences_of_every_kind_are_added(network: Any, tmp_path: Path) -> None:
    shapes = shapes_of(network)
    changes = {
        "diffusion_model.blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "diffusion_model.blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
        "lora_unet_blocks_1_self_attn_q.diff_b": "blocks.1.attn1.to_q.bias",
        "diffusion_model.blocks.1.diff_m": "blocks.1.scale_shift_table",
        "diffusion_model.blocks.0.modulation.diff": "blocks.0.scale_shift_table",
        "diffusion_model.head.diff_m": "scale_shift_table",
        "diffusion_model.head.head.diff": "proj_out.weight",
        "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
    }
    tensors = {key: torch.full(shapes[name], 0.25) for key, name in changes.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    merged = copy.deepcopy(network)
    LoraUpdates([Lora(tmp_path / "x.safetensors", 2.0)], shapes).merge("", merged)
    added = copy.deepcopy(network)
    add_loras(added, [Lora(tmp_path / "x.safetensors", 2.0)])
    for name, p in network.named_parameters():
        expected = p + 0.5 if name in changes.values() else p
        torch.testing.assert_close(merged.get_parameter(name), expected)
        torch.testing.assert_close(added.get_parameter(name), expected)


def test_rank_stabilised_scales_and_biases_of_peft(network: Any, tmp_path: Path) -> None:
    layer = "base_model.model.blocks.0.attn1.to_q"
    down, up, bias = torch.ones(4, 48), torch.ones(48, 4), torch.ones(48)
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file({**tensors, f"{layer}.lora_B.bias": bias}, tmp_path / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 3, "use_rslora": True, "lora_bias": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    merged = copy.deepcopy(network)
    LoraUpdates([Lora(tmp_path)], shapes_of(network)).merge("", merged)
    before, after = network.blocks[0].attn1.to_q, merged.blocks[0].attn1.to_q
    torch.testing.assert_close(after.weight - before.weight, torch.full((48, 48), 4 * 3 / 2.0))
    torch.testing.assert_close(after.bias - before.bias, torch.full((48,), 3 / 2.0))


QKV = "diffusion_model.blocks.0.self_attn.q"
PAIR = {
    f"{QKV}.lora_down.weight": torch.zeros(2, 48),
    f"{QKV}.lora_up.weight": torch.zeros(48, 2),
}


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        (f"{QKV}.dora_scale", (48, 1), "is a DoRA file .* plain LoRA"),
        (f"{QKV}.lora_magnitude_vector.weight", (48,), "is a DoRA file"),
        (f"{QKV}.lokr_w1", (4, 4), "is a LoKr file"),
        (f"{QKV}.hada_w1_a", (4, 4), "is a LoHa file"),
        ("lora_te1_encoder.alpha", (1,), "is a LoRA with text encoder layers \\(lora_te1"),
        (f"{QKV.replace('.q', '.k')}.lora_down.weight", (2, 48), r"no lora_up \(lora_B\)"),
        (f"{QKV}.alpha", (2,), "is not one number"),
        ("diffusion_model.vace_blocks.0.self_attn.q.alpha", (1,), "not for a VACE model"),
        ("diffusion_model.blocks.0.self_attn.q.weight", (48, 48), "is a whole weight"),
    ],
)
def test_what_is_not_supported_is_named_in_one_line(
    network: Any, tmp_path: Path, key: str, shape: tuple[int, ...], match: str
) -> None:
    save_file({**PAIR, key: torch.ones(shape)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=match) as caught:
        check_loras([Lora(tmp_path / "x.safetensors")], shapes_of(network))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_image_layers_are_refused_or_left_out(network: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    image = {key.replace(".q.", ".k_img."): tensor.clone() for key, tensor in PAIR.items()}
    save_file({**PAIR, **image}, path)
    with pytest.raises(UserError, match="2 of its 4 tensors .*image-to-video.*--skip-image-layers"):
        check_loras([Lora(path)], shapes_of(network))
    check_loras([Lora(path)], shapes_of(network), skip_image_layers=True)
    add_loras(copy.deepcopy(network), [Lora(path)], skip_image_layers=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(network: Any, tmp_path: Path, value: float) -> None:
    path = tmp_path / "x.safetensors"
    save_file({**PAIR, f"{QKV}.lora_up.weight": torch.full((48, 2), value)}, path)
    with pytest.raises(UserError, match=r"lora_up.weight has values that are not finite"):
        check_loras([Lora(path)], shapes_of(network))
