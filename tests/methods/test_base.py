"""Methods declare their published options and the roles they train, and are found by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from lightx2v_sgmd import methods
from lightx2v_sgmd.methods import (
    ADM,
    ADP,
    DMD2,
    DMDX,
    SGMD,
    TSGSIM,
    Method,
    SiD,
    TSGFisher,
    method_class,
    method_names,
)
from lightx2v_sgmd.methods.base import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    Discriminator,
    PairMethod,
    PixelDiscriminator,
    expert_role,
    pair_iterations,
    stage_at,
)
from lightx2v_sgmd.system.errors import UserError

PUBLISHED: dict[str, tuple[Any, dict[str, Any]]] = {
    # SGMD, arXiv 2605.30116: Table 2 and Alg. 1.
    "sgmd": (
        SGMD(),
        {"lambda_": 0.1, "nr_iterations": None, "max_weight": 1.0, "fake_score_updates": 1},
    ),
    # Sec. 4.3 of the same paper.
    "tsg_fisher": (TSGFisher(), {"fake_score_updates": 5, "max_weight": 1.0}),
    "tsg_sim": (TSGSIM(), {"fake_score_updates": 1, "max_weight": 1.0}),
    # SiD, arXiv 2404.04057.
    "sid": (SiD(), {"form": "published", "alpha": 1.0, "fake_score_updates": 1, "max_weight": 1.0}),
    # DMD2, arXiv 2405.14867, Sec. 4.2: five updates.
    "dmd2": (
        DMD2(),
        {"fake_score_updates": 5, "floor": 1e-5, "gan_weight": 0.0, "high_noise_iterations": 0},
    ),
    # ADM, arXiv 2507.18569, Sec. 4.1 (T / 64) and App. A (TTUR 1).
    "adm": (ADM(), {"delta": 1 / 64, "fake_score_updates": 1, "guidance_range": None}),
    # Sec. 4.2 of the same paper.
    "adp": (
        ADP(vision_encoder="sam"),
        {"latent_weight": 0.85, "pixel_weight": 0.15, "pixel_frames": 4, "fake_score_updates": 0},
    ),
    # App. B.5 of the same paper: the second stage's learning rate is a tenth of the first's.
    "dmdx": (
        DMDX(adp=ADP(pixel_weight=0)),
        {"finetune_lr": 0.1, "pretraining": 1000, "fake_score_updates": 1},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_papers(name: str) -> None:
    method, values = PUBLISHED[name]
    assert {key: getattr(method, key) for key in values} == values
    assert method.name == name and type(method) is method_class(name)


def test_heads_by_default() -> None:
    """App. B.2 and B.5 of arXiv 2507.18569: every third block, 5e-6."""
    assert Discriminator() == Discriminator(head_every=3, head_channels=64, lr=5e-6)


ALL = (STUDENT, FAKE_SCORE, DISCRIMINATOR, PIXEL_DISCRIMINATOR)
DECLARED: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {
    "sgmd": (
        SGMD(),
        ALL[:2],
        {"fresh_rollouts": False, "through_fake_score": True, "through_teacher": False},
    ),
    "tsg_fisher": (TSGFisher(), ALL[:2], {"fresh_rollouts": True, "through_fake_score": True}),
    "tsg_fisher, one update": (
        TSGFisher(fake_score_updates=1),
        ALL[:2],
        {"fresh_rollouts": False, "whole_rollouts": False, "reads_latents": None},
    ),
    "tsg_sim": (TSGSIM(), ALL[:2], {"fresh_rollouts": False, "discriminator": None}),
    "sid": (SiD(), ALL[:2], {"through_teacher": True, "fresh_rollouts": False}),
    "sid, Eq. 30": (SiD(form="paper"), ALL[:2], {"through_teacher": False}),
    "dmd2": (
        DMD2(fake_score_updates=1),
        ALL[:2],
        {
            "fresh_rollouts": True,
            "through_fake_score": False,
            "whole_rollouts": False,
            "reads_latents": None,
            "discriminator": None,
            "guidance_range": None,
        },
    ),
    "dmd2 with its GAN": (
        DMD2(gan_weight=0.1),
        ALL[:3],
        {"reads_latents": "videos", "discriminator": Discriminator(), "through_teacher": False},
    ),
    "adm": (
        ADM(guidance_range=(5.0, 7.0)),
        ALL[:3],
        {
            "fresh_rollouts": True,
            "through_fake_score": True,
            "whole_rollouts": True,
            "reads_latents": None,
            "guidance_range": (5.0, 7.0),
            "pixel_discriminator": None,
        },
    ),
    "adp": (
        ADP(pixel_weight=0),
        (STUDENT, DISCRIMINATOR),
        {
            "fake_score_updates": 0,
            "fresh_rollouts": True,
            "through_fake_score": False,
            "reads_latents": "pairs",
            "pixel_discriminator": None,
        },
    ),
    "adp with pixels": (
        ADP(vision_encoder="sam", pixel_frames=3),
        (STUDENT, DISCRIMINATOR, PIXEL_DISCRIMINATOR),
        {"pixel_discriminator": PixelDiscriminator("sam", 3)},
    ),
    "adp whose encoder has no weight": (
        ADP(vision_encoder="sam", pixel_weight=0),
        (STUDENT, DISCRIMINATOR),
        {"pixel_discriminator": None},
    ),
    "dmdx": (
        DMDX(adp=ADP(vision_encoder="sam"), adm=ADM(fake_score_updates=2)),
        ALL,
        {
            "fake_score_updates": 2,
            "fresh_rollouts": True,
            "whole_rollouts": True,
            "reads_latents": "pairs",
            "pixel_discriminator": PixelDiscriminator("sam", 4),
            "guidance_range": None,
        },
    ),
    "dmdx under guidance": (
        DMDX(adp=ADP(pixel_weight=0), adm=ADM(guidance_range=(6.0, 8.0))),
        ALL[:3],
        {"guidance_range": (6.0, 8.0), "pixel_discriminator": None},
    ),
}


@pytest.mark.parametrize("case", DECLARED)
def test_roles_and_what_a_method_needs(case: str) -> None:
    method, roles, values = DECLARED[case]
    assert method.roles == roles
    assert {key: getattr(method, key) for key in values} == values


def test_a_method_that_says_nothing() -> None:
    plain = Method()
    assert plain.roles == (STUDENT, FAKE_SCORE) and plain.fake_score_updates == 1
    assert not plain.fresh_rollouts and not plain.whole_rollouts
    assert plain.through_fake_score and not plain.through_teacher
    assert plain.discriminator is None and plain.pixel_discriminator is None
    assert plain.guidance_range is None and plain.high_noise_iterations == 0
    assert plain.reads_latents is None
    with pytest.raises(NotImplementedError, match="Method has no field 'name'"):
        _ = plain.name
    nothing: Any = None
    for losses in ("generator_losses", "discriminator_losses"):
        with pytest.raises(NotImplementedError, match=f"sgmd has no {losses}"):
            getattr(Method, losses)(SGMD(), nothing)
    for losses in ("pair_generator_losses", "pair_discriminator_losses", "pair_pixel_losses"):
        with pytest.raises(NotImplementedError, match=f"adp has no {losses}"):
            getattr(PairMethod, losses)(ADP(pixel_weight=0), nothing)


class ThreeStages(Method):
    """Two stages of pairs and one that ends before the run does."""

    name = "three_stages"

    @property
    def stages(self) -> Any:
        stage = type(SGMD().stages[0])
        pairs = ADP(pixel_weight=0)
        return stage(pairs, 2), stage(pairs, 1), stage(SGMD(), 4)


class PairsLast(Method):
    """A stage of pairs that is not the first."""

    name = "pairs_last"

    @property
    def stages(self) -> Any:
        stage = type(SGMD().stages[0])
        return stage(SGMD(), 2), stage(ADP(pixel_weight=0), None)


def test_only_the_first_iterations_count_as_those_on_pairs() -> None:
    assert [pair_iterations(PairsLast(), done) for done in (1, 2, 9)] == [0, 0, 0]


def test_stages_add_up_and_the_last_one_goes_on() -> None:
    found = [stage_at(ThreeStages(), iteration).method.name for iteration in range(9)]
    assert found == ["adp"] * 3 + ["sgmd"] * 6
    assert [pair_iterations(ThreeStages(), done) for done in (2, 3, 9)] == [2, 3, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DMD2(discriminator=Discriminator()), "only for a gan_weight above 0"),
        (lambda: ADP(), "vision_encoder is missing"),
        (lambda: SGMD(lambda_=float("inf")), "finite"),
        (
            lambda: DMDX(adp=ADP(pixel_weight=0), adm=ADM(discriminator=Discriminator(lr=1.0))),
            "adm.d",
        ),
        (lambda: DMDX(adp=ADP(pixel_weight=0, discriminator=Discriminator(lr=1.0))), "adp.d"),
    ],
)
def test_options_that_contradict_one_another(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_heads_of_a_gan_may_be_chosen() -> None:
    heads = Discriminator(head_every=5)
    assert DMD2(gan_weight=0.1, discriminator=heads).discriminator == heads


class Added(Method):
    """A method that an installed package announces."""


def test_names_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("other", f"{__name__}:nothing", methods.ENTRY_POINT_GROUP),
        EntryPoint("added", f"{__name__}:Added", methods.ENTRY_POINT_GROUP),
        EntryPoint("number", "math:pi", methods.ENTRY_POINT_GROUP),
        EntryPoint("exception", "builtins:ValueError", methods.ENTRY_POINT_GROUP),
    ]
    asked = []

    def announced(group: str) -> list[EntryPoint]:
        asked.append(group)
        return points

    monkeypatch.setattr(methods, "entry_points", announced)
    own = ["adm", "adp", "dmd2", "dmdx", "sgmd", "sid", "tsg_fisher", "tsg_sim"]
    assert method_names() == sorted([*own, "added", "exception", "number", "other"])
    assert method_class("added") is Added and method_class("sgmd") is SGMD
    for name, where in (("number", "math:pi"), ("exception", "builtins:ValueError")):
        with pytest.raises(UserError, match=f"'{name}' is {where}, which does not inherit"):
            method_class(name)
    with pytest.raises(UserError, match="'sgdm' is unknown; use one of added, adm, adp"):
        method_class("sgdm")
    assert set(asked) == {"lightx2v_sgmd.methods"}


def test_experts_are_numbered_from_the_first() -> None:
    names = [expert_role("student", expert) for expert in range(3)]
    assert names == ["student", "student_2", "student_3"]
