"""DMDX: adversarial pre-training, then distribution matching (arXiv 2507.18569, Sec. 4).

Its two stages, ``adp`` and ``adm``, train the same latent heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lightx2v_sgmd.methods.adm import ADM
from lightx2v_sgmd.methods.adp import ADP
from lightx2v_sgmd.methods.base import STRICT, Discriminator, Method, PixelDiscriminator, Stage


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DMDX(Method):
    """Adversarial pre-training on ODE pairs, then adversarial distribution matching."""

    name: Literal["dmdx"] = "dmdx"
    # Options of the first stage; it trains the discriminator below.
    adp: ADP
    # Iterations of the first stage; the second has the rest of train.iterations.
    pretraining: Annotated[int, Field(ge=1)] = 1000
    # Factor of the student's learning rate in the second stage (App. B.5: 1e-7 after 1e-6).
    finetune_lr: Annotated[float, Field(gt=0, le=1)] = 0.1
    # Options of the second stage; it trains the discriminator below.
    adm: ADM = ADM()
    # Discriminator that both stages train.
    discriminator: Discriminator = Discriminator()

    @model_validator(mode="after")
    def _one_discriminator(self) -> Self:
        for name, stage in (("adp", self.adp), ("adm", self.adm)):
            if stage.discriminator != Discriminator():
                raise ValueError(
                    f"{name}.discriminator: both stages share one; set method.discriminator"
                )
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        """ADP, then ADM at a lower learning rate."""
        return (
            Stage(
                replace(self.adp, discriminator=self.discriminator),
                self.pretraining,
                option="pretraining",
            ),
            Stage(replace(self.adm, discriminator=self.discriminator), None, self.finetune_lr),
        )

    @property
    def pixel_discriminator(self) -> PixelDiscriminator | None:
        """The first stage's discriminator of decoded frames, if it has a weight."""
        return self.adp.pixel_discriminator

    @property
    def fake_score_updates(self) -> int:
        """Fake-score updates for each generator update of the second stage."""
        return self.adm.fake_score_updates

    @property
    def fresh_rollouts(self) -> bool:
        """True if each fake-score update of the second stage draws a rollout of its own."""
        return self.adm.fresh_rollouts

    @property
    def whole_rollouts(self) -> bool:
        """True if the fake score's rollouts of the second stage run all steps."""
        return self.adm.whole_rollouts

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """The second stage's range of guidance."""
        return self.adm.guidance_range

    @property
    def reads_latents(self) -> Literal["pairs"]:
        """A teacher's ODE pairs, for the first stage."""
        return "pairs"
