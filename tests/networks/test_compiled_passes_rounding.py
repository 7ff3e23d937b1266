"""Compiled passes in float32 are as near to float64 as PyTorch's operations in float32 are.

Some gradients are small differences of large numbers: of a discriminator's, where fake and real
are nearly alike, float32 gives two or three digits. Two ways of rounding then differ by as much as
either is wrong, so here each is compared with float64.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.wan.forward import velocity
from tests.training import make_job, make_trainer


def gradients(
    teacher: Path, folder: Path, compiled: bool, exact: bool, *settings: str
) -> dict[str, Tensor]:
    """Each role's gradient of the first update, flat, in float64."""
    setting = f"parallel.compile={'always' if compiled else 'never'}"
    trainer = make_trainer(make_job(teacher, folder, setting, *settings))
    strategy = trainer.strategy
    if exact:
        for network in strategy.networks.values():
            network.double()

        def predict(role: str, x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
            return velocity(strategy.networks[role], x_t, time, conditioning["text"])

        strategy.predict = predict  # type: ignore[method-assign]
    roles = trainer.add_gradients(0, 0, 0)
    found = {}
    for role in roles:
        weights = strategy.networks[role].parameters()
        found[role] = torch.cat([p.grad.flatten().double() for p in weights if p.grad is not None])
    strategy.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgmd", "adm"])
def test_kernels_round_no_worse(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run = partial(gradients, tiny_teacher, tmp_path)
    settings = (f"method.name={method}", "train.ema=0")
    compiled = run(True, False, *settings)
    plain = run(False, False, *settings)
    with monkeypatch.context() as patch:
        to_float32 = Tensor.float  # which networks call to be exact: here it would round
        patch.setattr(Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float32(x))
        exact = run(False, True, *settings)
    assert compiled.keys() == plain.keys() == exact.keys() >= {"student"}
    for role, expected in exact.items():
        theirs, ours = (float((found[role] - expected).norm()) for found in (plain, compiled))
        assert 0 < theirs < 0.01 * float(expected.norm()), role
        assert ours < 2 * theirs, role
    assert not torch.equal(compiled["student"], plain["student"])  # or nothing was compiled
