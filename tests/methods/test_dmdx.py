"""DMDX: pretraining on pairs, then ADM."""

from __future__ import annotations

from lightx2v_sgmd.methods import ADM, ADP, DMDX, SGMD
from lightx2v_sgmd.methods.base import Discriminator, pair_iterations, stage_at


def test_stages_of_a_run() -> None:
    heads = Discriminator(head_every=2)
    adp, adm = ADP(pixel_weight=0), ADM(delta=0.5)
    dmdx = DMDX(adp=adp, adm=adm, pretraining=3, finetune_lr=0.25, discriminator=heads)
    stages = [stage_at(dmdx, iteration) for iteration in range(5)]
    assert [stage.method.name for stage in stages] == ["adp"] * 3 + ["adm"] * 2
    assert [stage.lr_factor for stage in stages] == [1.0] * 3 + [0.25] * 2
    assert all(stage.method.discriminator == heads for stage in stages)
    assert getattr(stages[4].method, "delta", None) == 0.5
    assert [pair_iterations(dmdx, done) for done in range(6)] == [0, 1, 2, 3, 3, 3]
    assert [pair_iterations(adp, done) for done in range(3)] == [0, 1, 2]
    assert pair_iterations(SGMD(), 7) == 0
    (only,) = SGMD().stages
    assert only.method == SGMD() and only.iterations is None and only.lr_factor == 1.0
