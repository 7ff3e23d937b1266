"""Adapters: where they sit, what they start from, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.schema import AdapterSettings
from lightx2v_sgmd.networks import adapters
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WAN_LAYERS

LORA = AdapterSettings(rank=4, alpha=8.0, targets=WAN_LAYERS)


def with_adapters(teacher: Path) -> Any:
    network = open_wan(teacher).load_transformer()
    adapters.add_adapters(network, LORA, 0, torch.float32)
    return network


@torch.no_grad()
def evaluate(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x_t, text = (
        torch.randn(1, 4, 2, 4, 4, generator=generator),
        torch.randn(1, 5, 16, generator=generator),
    )
    return velocity(network, x_t, torch.tensor([0.7]), text)


def test_the_first_student_is_the_teacher_bit_for_bit(tiny_teacher: Path) -> None:
    network = with_adapters(tiny_teacher)
    expected = evaluate(open_wan(tiny_teacher).load_transformer())
    assert torch.equal(evaluate(network), expected)
    with torch.no_grad():
        network.blocks[1].ffn.net[2].lora_B["default"].weight += 0.1
    assert not torch.equal(evaluate(network), expected)


def test_only_adapters_are_trained_all_of_them_of_the_rank(tiny_teacher: Path) -> None:
    network = with_adapters(tiny_teacher)
    trained = adapters.trained_parameters(network)
    assert len(trained) == 2 * 10 * 2  # two factors, ten linear layers in each of two blocks
    assert sum(p.requires_grad for p in network.parameters()) == len(trained)
    first = "transformer.blocks.0.attn1.to_q"
    assert [*trained][:2] == [f"{first}.lora_A.weight", f"{first}.lora_B.weight"]
    assert trained[f"{first}.lora_A.weight"].shape == (4, 48)
    shapes = adapters.trained_shapes(open_wan(tiny_teacher), LORA)
    assert shapes == {name: p.shape for name, p in trained.items()}


def test_first_values_come_from_the_seed_alone(tiny_teacher: Path) -> None:
    networks = [open_wan(tiny_teacher).load_transformer() for _ in range(3)]
    state = torch.get_rng_state()
    for network, seed in zip(networks, (5, 5, 6), strict=True):
        adapters.add_adapters(network, LORA, seed, torch.float32)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    first, again, other = networks
    names = adapters.trained_parameters(first)
    for name, value in adapters.trained_parameters(again).items():
        assert torch.equal(value, names[name])
    factors = adapters.trained_parameters(other)
    downs = [name for name in names if "lora_A" in name]
    assert not any(torch.equal(factors[name], names[name]) for name in downs)
    assert len({float(names[name].detach()[0, 0]) for name in downs}) == len(downs)
    for name in downs:  # as a linear layer's own weights: uniform in +-1 / sqrt(in)
        bound = names[name].shape[1] ** -0.5
        assert 0.8 * bound < float(names[name].detach().abs().max()) <= bound


def test_alpha_is_divided_by_the_rank(tiny_teacher: Path) -> None:
    network = with_adapters(tiny_teacher)
    layer = network.blocks[0].attn2.to_k
    x = torch.randn(3, 48)
    with torch.no_grad():
        layer.lora_B["default"].weight += 1
        added = layer(x) - layer.base_layer(x)
        product = x @ (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).T
    torch.testing.assert_close(added, 8 / 4 * product)


@pytest.mark.parametrize("target", ["to_z", "o_q", "attn1", "patch_embedding", "norm_q"])
def test_a_target_that_is_no_linear_layer_is_refused(tiny_teacher: Path, target: str) -> None:
    model = open_wan(tiny_teacher)
    with pytest.raises(UserError) as caught:
        adapters.check_adapters(AdapterSettings(targets=("to_q", target)), model, "student")
    line = str(caught.value)
    assert line.startswith(f"student.lora.targets: {target} is not a linear layer of {model.path}")
    assert "attn1.to_q, " in line and "proj_out" in line
    adapters.check_adapters(
        AdapterSettings(targets=("to_q", "proj_out", "attn2.to_k")), model, "student"
    )


def test_a_missing_peft_is_said_in_one_line(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    message = r"^fake_score.train: lora needs PEFT, which is not installed; .*pip install"
    with pytest.raises(UserError, match=message):
        adapters.check_adapters(LORA, open_wan(tiny_teacher), "fake_score")


def write_adapters(teacher: Path, file: Path, seed: int) -> dict[str, Tensor]:
    shapes = adapters.trained_shapes(open_wan(teacher), LORA)
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(values, file, adapters.adapter_metadata(LORA))
    return values


def test_a_network_takes_one_file_of_adapters_after_the_other(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    network, made = open_wan(tiny_teacher).load_transformer(), {}
    for seed in (0, 1):
        values = write_adapters(tiny_teacher, tmp_path / f"{seed}.safetensors", seed)
        adapters.load_trained(network, [tmp_path / f"{seed}.safetensors"])
        made[seed] = evaluate(network)
        merged = open_wan(tiny_teacher).load_transformer()
        state = merged.state_dict()
        for name in [name for name in values if "lora_A" in name]:
            layer = name.removeprefix("transformer.").removesuffix(".lora_A.weight")
            product = values[name.replace("lora_A", "lora_B")] @ values[name]
            state[f"{layer}.weight"] += LORA.scale * product
        merged.load_state_dict(state)
        torch.testing.assert_close(made[seed], evaluate(merged), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(made[0], made[1])
    adapters.load_trained(network, [tmp_path / "0.safetensors"])
    assert torch.equal(evaluate(network), made[0])
    assert not any(p.requires_grad for p in network.parameters())


def test_a_whole_network_is_taken_too_and_other_files_are_refused(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    network = open_wan(tiny_teacher).load_transformer()
    changed = {name: t + 0.01 for name, t in network.state_dict().items()}
    save_file(changed, tmp_path / "full.safetensors")
    adapters.load_trained(network, [tmp_path / "full.safetensors"])
    assert all(torch.equal(t, changed[name]) for name, t in network.state_dict().items())
    values = write_adapters(tiny_teacher, tmp_path / "x.safetensors", 0)
    save_file(values, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="bare.safetensors: .*missing"):
        adapters.load_trained(network, [tmp_path / "bare.safetensors"])
    told = adapters.adapter_metadata(AdapterSettings(rank=2**16, targets=WAN_LAYERS))
    save_file(values, tmp_path / "large.safetensors", told)
    with pytest.raises(UserError, match=r"has adapters of ranks \[4\], not the 65536"):
        adapters.load_trained(network, [tmp_path / "large.safetensors"])
    for text in ("{", "[]", '{"transformer.r": 4}', '{"transformer.r": "x"}'):
        with pytest.raises(UserError, match="does not say rank, alpha and layers"):
            adapters.adapters_in({adapters.METADATA_KEY: text})
    assert adapters.adapters_in(adapters.adapter_metadata(LORA)) == LORA
