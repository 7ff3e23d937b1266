"""Sequence parallelism against one process, in float32, on real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.text_rows import fold_text_padding
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.networks.compiled_passes import Passes
from lightx2v_sgmd.parallel import collectives, sequence
from lightx2v_sgmd.parallel.sequence import check_degree, sequence_degrees
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.parallel.ranks import run_ranks

TINY = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
}
SIZES = {48: (3, 8, 8), 45: (3, 6, 10), 3: (1, 2, 6)}
"""Tokens, and latent frames, height and width that make them. Of 3, some of 4 ranks have none."""

Errors = dict[str, float]


def tiny_network(folded: bool = False) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    network = WanTransformer3DModel(**TINY)
    with torch.no_grad():
        for p in network.parameters():  # away from the zeros and ones of a fresh model
            p += 0.1 * torch.randn_like(p)
    if folded:
        fold_text_padding(network)
    return network


def inputs(
    tokens: int, batch: int = 2, seed: int = 0, channels: int = 4, rows: int = 512
) -> dict[str, Tensor]:
    """Random ones. With fewer ``rows`` of text, most of it is padding.

    Attention to 500 equal rows leaves gradients that are small differences of large numbers: in
    one process, float32 gives some of them to 1e-4 only. Folded padding does not.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, *SIZES[tokens])
    return {
        "x_t": torch.randn(shape, generator=generator).requires_grad_(),
        "sigma": torch.rand(batch, generator=generator),
        "text": torch.randn(batch, rows, TINY["text_dim"], generator=generator),
        "target": torch.randn(shape, generator=generator),
    }


def loss_of(network: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    output = velocity(network, batch["x_t"], batch["sigma"], batch["text"])
    return ((output - batch["target"]) ** 2).mean(), output


def measure(network: Any, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Outputs, loss, and gradients averaged over all ranks, as ZeRO averages them.

    All forwards come before the backward pass.
    """
    network.zero_grad(set_to_none=True)
    losses, outputs = zip(*(loss_of(network, batch) for batch in batches), strict=True)
    loss = torch.stack(losses).mean()
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return {
        "outputs": [output.detach() for output in outputs],
        "loss": loss.detach(),
        "gradients": gradients,
        "inputs": [batch["x_t"].grad for batch in batches],
    }


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> Errors:
    """Relative differences: of the largest element, of the loss, of each gradient's norm."""
    gradients, reference = ours["gradients"], theirs["gradients"]
    both = list(zip(ours["outputs"], theirs["outputs"], strict=True))
    pairs = list(zip(ours["inputs"], theirs["inputs"], strict=True))
    norms = [_norm(list(g.values())) for g in (gradients, reference)]
    return {
        "output": max(float((a - b).abs().max() / b.abs().max()) for a, b in both),
        "loss": abs(float(ours["loss"] / theirs["loss"]) - 1),
        "gradient": max(distance(gradients[name], g) for name, g in reference.items()),
        "gradient norm": abs(float(norms[0] / norms[1]) - 1),
        "input gradient": max(distance(a, b) for a, b in pairs),
    }


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([t.norm() for t in tensors]))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


LIMITS = {
    "output": 1e-6,
    "loss": 1e-6,
    "gradient": 1e-5,
    "update": 1e-5,
    "gradient norm": 1e-5,
    "input gradient": 1e-5,
}


def over_limits(found: dict[str, Errors]) -> dict[str, Errors]:
    """The cases that are not within the limits; NaN is not."""
    return {
        case: errors
        for case, errors in found.items()
        if not all(value <= LIMITS[name] for name, value in errors.items())
    }


# What the ranks run. The first one's result goes to the test.


def tiny_cases(degree: int) -> dict[str, Errors]:
    """The ranks form groups of ``degree``; each group has samples of its own."""
    group = sequence.open_sequence_group(degree)
    groups = dist.get_world_size() // degree
    found = {}
    for folded, sizes in ((False, (45,)), (True, SIZES)):
        batch_of = partial(inputs, rows=7 if folded else 512)
        for tokens in sizes:
            batches = [batch_of(tokens, seed=seed) for seed in range(groups)]
            alone = measure(tiny_network(folded), batches)
            mine = dist.get_rank() // degree
            for checkpointing in (False, True):
                network = tiny_network(folded)
                sequence.enable_sequence_parallel(network, group)
                if checkpointing:
                    network.enable_gradient_checkpointing()
                ours = measure(network, [batch_of(tokens, seed=mine)])
                loss = ours["loss"] / dist.get_world_size()
                dist.all_reduce(loss)
                # A sample's gradient in the mean over all groups.
                expected = alone | {
                    "outputs": [alone["outputs"][mine]],
                    "inputs": [alone["inputs"][mine] * groups],
                }
                found[f"{tokens} tokens, {folded=}, {checkpointing=}"] = compare(
                    ours | {"loss": loss}, expected
                )
    return found


def all_ranks() -> Any:
    """The group of every process of the test."""
    return dist.group.WORLD


def two_sizes_at_once() -> dict[str, Errors]:
    """Blocks recomputed in the backward pass belong to another video than the last forward."""
    batches = [inputs(45, batch=1), inputs(3, seed=1)]
    alone = measure(tiny_network(), batches)
    network = tiny_network()
    sequence.enable_sequence_parallel(network, all_ranks())
    network.enable_gradient_checkpointing()
    return {"both": compare(measure(network, [inputs(45, batch=1), inputs(3, seed=1)]), alone)}


def generator_step() -> dict[str, Errors]:
    """The gradient at x_t through a network whose weights are frozen; they receive none."""
    gradients = []
    for enable in (False, True):
        network = tiny_network().requires_grad_(False)
        network.enable_gradient_checkpointing()
        if enable:
            sequence.enable_sequence_parallel(network, all_ranks())
        batch = inputs(45)
        # x_t also reaches the loss past the network, on every rank.
        loss = loss_of(network, batch)[0] + (batch["x_t"] ** 3).mean()
        gradients.append(torch.autograd.grad(loss, batch["x_t"])[0])
        assert all(p.grad is None for p in network.parameters())
    return {"x_t": {"input gradient": distance(gradients[1], gradients[0])}}


def whole_rollout() -> dict[str, Errors]:
    """Four steps of inference."""
    batch = inputs(45, rows=7)
    videos = []
    for enable in (False, True):
        network = tiny_network(folded=True)
        if enable:
            sequence.enable_sequence_parallel(network, all_ranks())
        student = partial(velocity, network, text=batch["text"])
        with torch.inference_mode():
            videos.append(rollout(student, batch["x_t"].detach(), Schedule()))
    return {"x0": {"output": float((videos[1] - videos[0]).abs().max() / videos[0].abs().max())}}


def broken(what: str) -> dict[str, Errors]:
    """With one piece taken out, to see whether the comparison notices."""
    with _taken_out(what):
        alone = measure(tiny_network(), [inputs(45)])
        network = tiny_network()
        sequence.enable_sequence_parallel(network, all_ranks())
        return {what: compare(measure(network, [inputs(45)]), alone)}


@contextmanager
def _taken_out(what: str) -> Iterator[None]:
    original: dict[str, Callable[..., Any]] = {
        "scale": collectives._Gather.backward,
        "input": vars(sequence)["shared"],
    }
    if what == "scale":
        collectives._Gather.backward = staticmethod(  # type: ignore[method-assign, assignment]
            lambda ctx, g: (g[ctx.group.rank()], None)
        )
    else:
        vars(sequence)["shared"] = lambda value, group: value
    try:
        yield
    finally:
        collectives._Gather.backward = staticmethod(original["scale"])  # type: ignore[method-assign]
        vars(sequence)["shared"] = original["input"]


def one_big_block(hub_id: str, folder: Path) -> dict[str, Errors]:
    """One block of a published shape. All ranks map the same weights; gradients go to the first."""
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    first = dist.get_rank() == 0
    with init_empty_weights(include_buffers=False):
        network = WanTransformer3DModel.from_config(
            {
                **(known_transformer_config(hub_id) or {}),
                "num_layers": 1,
                "text_dim": TINY["text_dim"],
            }
        )
    count = sum(p.numel() for p in network.parameters())
    if first:
        flat = torch.from_file(str(folder / "weights"), shared=True, size=count)
        flat.uniform_(-0.03, 0.03, generator=torch.Generator().manual_seed(0))
    dist.barrier()
    if not first:
        flat = torch.from_file(str(folder / "weights"), shared=True, size=count)
    views, offset = {}, 0
    for name, p in network.named_parameters():
        views[name] = flat[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
        if first and name.endswith(("norm_q.weight", "norm_k.weight", "norm2.weight")):
            views[name] += 1  # or attention would be the mean of its values
    dist.barrier()
    network.load_state_dict(views, assign=True)
    network.requires_grad_()
    fold_text_padding(network)

    batch = inputs(45, batch=1, channels=16, rows=7)
    reference: dict[str, tuple[Tensor, float]] = {}
    found = {"gradient": 0.0}
    if first:
        loss, output = loss_of(network, batch)
        loss.backward()
        reference = {name: (p.grad, float(p.grad.norm())) for name, p in network.named_parameters()}
    network.zero_grad(set_to_none=True)

    def keep(name: str, p: Any) -> None:
        dist.reduce(p.grad, 0)
        if first:
            grad, norm = reference.pop(name)
            p.grad /= dist.get_world_size()
            found["gradient"] = max(found["gradient"], float((p.grad - grad).norm()) / norm)
        p.grad = None

    for name, p in network.named_parameters():
        p.register_post_accumulate_grad_hook(partial(keep, name))
    sequence.enable_sequence_parallel(network, all_ranks())
    network.enable_gradient_checkpointing()
    our_loss, ours = loss_of(network, batch)
    our_loss.backward()
    if first:
        assert not reference, f"no gradient of {list(reference)}"
        found["output"] = float(((ours - output).abs().max() / output.abs().max()).detach())
        found["loss"] = abs(float((our_loss / loss).detach()) - 1)
    return {hub_id: found}


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "degree"), [(2, 2), (4, 4), (4, 2)])
def test_everything_agrees_with_one_process(ranks: int, degree: int) -> None:
    found = run_ranks(ranks, tiny_cases, degree)
    assert len(found) == 8
    assert over_limits(found) == {}


@pytest.mark.parametrize("work", [two_sizes_at_once, generator_step, whole_rollout])
def test_more_than_one_step(work: Callable[[], dict[str, Errors]]) -> None:
    assert over_limits(run_ranks(2, work)) == {}


def test_a_wrong_scale_is_noticed() -> None:
    errors = run_ranks(2, broken, "scale")["scale"]
    assert errors["gradient norm"] == pytest.approx(0.5, abs=1e-4)
    assert errors["gradient"] == pytest.approx(0.5, abs=1e-4)
    errors = run_ranks(2, broken, "input")["input"]
    assert errors["gradient"] <= LIMITS["gradient"] and errors["input gradient"] > 0.1


@pytest.mark.parametrize(
    ("hub_id", "ranks"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 2),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 4),
        pytest.param("Wan-AI/Wan2.1-T2V-14B-Diffusers", 2, marks=pytest.mark.slow),
    ],
)
def test_a_block_of_a_published_shape(hub_id: str, ranks: int, tmp_path: Path) -> None:
    try:
        found = run_ranks(ranks, one_big_block, hub_id, tmp_path, timeout_s=1800)
    finally:
        (tmp_path / "weights").unlink(missing_ok=True)
    assert over_limits(found) == {}


def test_degrees() -> None:
    assert sequence_degrees(12) == [1, 2, 3, 4, 6, 12]
    assert sequence_degrees(40, ranks=32) == [1, 2, 4, 8]
    check_degree(8, 40, "wan", ranks=32)
    with pytest.raises(UserError) as caught:
        check_degree(8, 12, "wan2.1-t2v-1.3b")
    assert str(caught.value) == (
        "parallel.sequence: 8 does not divide the 12 attention heads of wan2.1-t2v-1.3b; "
        "use 1, 2, 3, 4, 6 or 12"
    )
    with pytest.raises(UserError, match=r"5 does not divide the 32 ranks; use 1, 2, 4 or 8"):
        check_degree(5, 40, "wan", ranks=32)
    with pytest.raises(UserError, match=r"5 does not divide the 3 ranks; use 1$"):
        check_degree(5, 5, "odd", ranks=3)


def refused() -> str:
    from diffusers import WanTransformer3DModel

    network = WanTransformer3DModel(**(TINY | {"num_attention_heads": 3}))
    with pytest.raises(UserError) as caught:
        sequence.enable_sequence_parallel(network, all_ranks())
    return str(caught.value)


def test_heads_that_the_group_does_not_divide() -> None:
    assert run_ranks(2, refused) == (
        "parallel.sequence: 2 does not divide the 3 attention heads of the network; use 1 or 3"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_diffusers(dtype: torch.dtype) -> None:
    """Values and gradients, by the formula in float64; the compiled pass, too."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 8, generator=source).to(dtype).requires_grad_()
    angles = torch.randn(1, 5, 1, 4, generator=source, dtype=torch.float64)
    cos, sin = (table.repeat_interleave(2, -1).float() for table in (angles.cos(), angles.sin()))
    even, odd = x.double().unflatten(-1, (-1, 2)).unbind(-1)
    expected = torch.empty(x.shape, dtype=torch.float64)
    expected[..., 0::2] = even * angles.cos() - odd * angles.sin()
    expected[..., 1::2] = even * angles.sin() + odd * angles.cos()
    weights = torch.randn(x.shape, generator=source, dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), x)
    exact = {torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]  # half a step of bfloat16 at 4
    for rotate in (sequence._rotate, Passes("aot_eager").rotate):
        turned = rotate(x, cos, sin)
        (grad,) = torch.autograd.grad((turned * weights).sum(), x)
        assert turned.dtype == dtype
        torch.testing.assert_close(turned.double(), expected, rtol=exact, atol=exact)
        torch.testing.assert_close(grad, expected_grad, rtol=exact, atol=exact)
