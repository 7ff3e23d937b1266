"""Sequence parallelism of CogVideoX, and of Wan with a time for each token, against one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightx2v_sgmd.families.cogvideox.forward import predict_v
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.parallel import collectives, sequence, sequence_joint
from tests.parallel.ranks import run_ranks
from tests.parallel.test_sequence import Errors, all_ranks, compare, over_limits, tiny_network

TEXT = 226
"""Text rows of CogVideoX; four ranks do not divide them."""
SIZE = (3, 6, 10)
"""Latent frames, height and width: 45 tokens, which neither two nor four ranks divide."""

Predict = Callable[[Any, Tensor, Tensor], Tensor]


def cogvideox(rotary: bool) -> Any:
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    network = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=24,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        use_rotary_positional_embeddings=rotary,
    )
    with torch.no_grad():
        for p in network.parameters():  # away from the zeros and ones of a fresh model
            p += 0.1 * torch.randn_like(p)
    return network


def of_cogvideox(network: Any, x_t: Tensor, text: Tensor) -> Tensor:
    return predict_v(network, x_t, torch.tensor([499, 749]), text)


def of_wan(network: Any, x_t: Tensor, text: Tensor) -> Tensor:
    """The first latent frame is at time 0 and the others at two times of their own."""
    times = torch.tensor([[0.0, 0.6, 0.6], [0.0, 0.3, 0.9]]).repeat_interleave(15, dim=1)
    return velocity(network, x_t, times, text[:, :7])


CASES: dict[str, tuple[Callable[[], Any], Predict]] = {
    "cogvideox-2b": (partial(cogvideox, False), of_cogvideox),
    "cogvideox-5b": (partial(cogvideox, True), of_cogvideox),
    "wan, a time for each token": (partial(tiny_network, True), of_wan),
}


def measure(network: Any, predict: Predict) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x_t, target = torch.randn(2, 2, 4, *SIZE, generator=generator)
    text = torch.randn(2, TEXT, 16, generator=generator)
    x_t.requires_grad_()
    network.zero_grad(set_to_none=True)
    output = predict(network, x_t, text)
    loss = ((output - target) ** 2).mean()
    loss.backward()
    # One bias of all keys changes no attention without rotary positions: its gradient is rounding.
    plain = predict is of_cogvideox and not network.config.use_rotary_positional_embeddings
    gradients = {
        name: p.grad
        for name, p in network.named_parameters()
        if p.grad is not None and not (plain and name.endswith("norm_k.bias"))
    }
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return {
        "outputs": [output.detach()],
        "loss": loss.detach(),
        "gradients": gradients,
        "inputs": [x_t.grad],
    }


def all_cases(checkpointing: bool) -> dict[str, Errors]:
    found = {}
    for name, (build, predict) in CASES.items():
        alone = measure(build(), predict)
        network = build()
        sequence.enable_sequence_parallel(network, all_ranks())
        if checkpointing:
            network.enable_gradient_checkpointing()
        found[name] = compare(measure(network, predict), alone)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "checkpointing"), [(2, True), (4, False)])
def test_everything_agrees_with_one_process(ranks: int, checkpointing: bool) -> None:
    found = run_ranks(ranks, all_cases, checkpointing)
    assert found.keys() == CASES.keys()
    assert over_limits(found) == {}


def broken(what: str) -> Errors:
    """With one piece taken out, to see whether the comparison notices."""
    build, predict = CASES["cogvideox-5b"]
    alone = measure(build(), predict)
    network = build()
    sequence.enable_sequence_parallel(network, all_ranks())
    if what == "input":
        vars(sequence_joint)["shared"] = lambda value, group: value
    else:
        collectives._Gather.backward = staticmethod(  # type: ignore[method-assign, assignment]
            lambda ctx, g: (g[ctx.group.rank()], None)
        )
    return compare(measure(network, predict), alone)


def test_what_is_taken_out_is_noticed() -> None:
    """The processes are forks, so nothing has to be put back."""
    errors = run_ranks(2, broken, "scale")
    assert errors["gradient norm"] == pytest.approx(0.5, abs=1e-4)
    errors = run_ranks(2, broken, "input")
    assert errors["gradient"] <= 1e-5 and errors["input gradient"] > 0.1
