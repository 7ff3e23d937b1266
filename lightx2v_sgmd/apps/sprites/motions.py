"""A world of sprites that rest, move, turn, bounce or wait, with a skewed mixture of these motions.

A caption describes one object. It names the motion wholly ("a red circle moving left quickly",
"a still red circle") or leaves it open wholly ("a red circle"). For an open motion the world draws
from ``MIXTURE``: most objects rest or move slowly, and few turn, bounce or wait. So a student that
leaves out rare, fast motions can be told from one that does not. Colour and shape are as in
``world``: a caption that leaves them open leaves them uniform.

An object has one velocity up to the middle frame and another one from there. Where a motion has two
directions, the world draws which of them comes first, because the text encoder does not see the
order of words. Beside colour, shape and motion little is free: the way is centred in the frame, and
sizes and headings vary less than in ``world``. A small network can then find the motion of an open
caption from noise; with as much free as in ``world`` it blends them
(docs/results/motion_question.md).

Legend: F frames, H height, W width; positions in pixels (x right, y down), speeds in pixels/frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lightx2v_sgmd.apps.sprites import world

Array = NDArray[np.float32]

MIXTURE: Final[dict[str, float]] = {
    "still": 0.35,
    "slow": 0.35,
    "fast": 0.12,
    "turn": 0.06,
    "bounce": 0.06,
    "late": 0.06,
}
"""The share of each manner among videos whose caption leaves the motion open."""
MANNERS: Final = tuple(MIXTURE)
RARE: Final = ("fast", "turn", "bounce", "late")
"""The manners with a fast part, which are rare in the mixture."""
CREEP: Final = (0.06, 0.16)
"""Speed of the first half of a late start: the object all but rests."""
RADIUS: Final = (4.2, 4.8)
HEADING_JITTER: Final = 0.07
"""Radians between a heading and the named axis, at most."""
CENTRE_JITTER: Final = 0.5
"""Pixels between the middle of the way and the middle of the frame, at most, in x and in y."""
MIDDLE: Final = (world.NUM_FRAMES - 1) // 2
"""The frame in which the second velocity begins."""

_ONE: Final = tuple((name,) for name in world.DIRECTIONS)
DIRECTIONS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "still": ((),),
    "slow": _ONE,
    "fast": _ONE,
    "turn": (("left", "up"), ("left", "down"), ("right", "up"), ("right", "down")),
    "bounce": (("left", "right"), ("up", "down")),
    "late": _ONE,
}
"""The directions that each manner can have; the order within a pair has no meaning."""


@dataclass(frozen=True)
class Motion:
    """A motion as captions name it: ``manner`` of ``MANNERS``, and its directions."""

    manner: str
    directions: tuple[str, ...]

    def words(self) -> str:
        """The words after the shape; empty for an object that rests."""
        if self.manner == "still":
            return ""
        pace = {"slow": " slowly", "fast": " quickly", "late": " slowly and quickly"}
        return f"moving {' and '.join(self.directions)}{pace.get(self.manner, '')}"


UNKNOWN: Final = Motion("unknown", ())
MOTIONS: Final = tuple(Motion(m, pair) for m in MANNERS for pair in DIRECTIONS[m])


@dataclass(frozen=True)
class MotionCaption:
    """A caption's words; ``None`` leaves an attribute open."""

    colour: str | None = None
    shape: str | None = None
    motion: Motion | None = None

    def text(self) -> str:
        """The words, ``a [still] [colour] <shape> [moving <directions> <pace>]``."""
        still = "still" if self.motion is not None and self.motion.manner == "still" else ""
        moving = self.motion.words() if self.motion is not None else ""
        words = ["a", still, self.colour, self.shape or "thing", moving]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class MovingSprite:
    """One object with everything decided: start ``x, y``, both velocities, radius (pixels)."""

    colour: str
    shape: str
    motion: Motion
    radius: float
    x: float
    y: float
    first: tuple[float, float]
    second: tuple[float, float]

    def caption(self) -> MotionCaption:
        """The caption that names everything about it."""
        return MotionCaption(self.colour, self.shape, self.motion)

    def positions(self) -> NDArray[np.float64]:
        """The centre in each frame, ``[F, 2]``."""
        return np.array([self.x, self.y]) + path(self.first, self.second)


def path(first: tuple[float, float], second: tuple[float, float]) -> NDArray[np.float64]:
    """The way from the start that two velocities give, ``[F, 2]``."""
    t = np.arange(world.NUM_FRAMES)[:, None]
    way: NDArray[np.float64] = np.minimum(t, MIDDLE) * np.array(first)
    way += np.maximum(t - MIDDLE, 0) * np.array(second)
    return way


def parse_motion_caption(text: str) -> MotionCaption:
    """Reads a caption of this world back into its attributes; directions in either order.

    Raises:
        ValueError: the text is not a caption of this world; the message shows the grammar.
    """
    directions = "|".join(world.DIRECTIONS)
    pattern = re.compile(
        rf"an?(?P<still> still)?(?: (?P<colour>{'|'.join(world.COLOURS)}))?"
        rf" (?P<shape>{'|'.join(world.SHAPES)}|thing)"
        rf"(?: moving (?P<one>{directions})(?: and (?P<two>{directions}))?"
        r"(?: (?P<pace>slowly and quickly|slowly|quickly))?)?"
    )
    match = pattern.fullmatch(" ".join(text.strip().lower().rstrip(".").split()))
    motion = UNKNOWN if match is None else _motion(match)
    if match is None or motion is UNKNOWN:
        raise ValueError(
            f"{text!r} is not a caption of the world of motions; write 'a [colour] "
            "circle|square|triangle|thing', and for its motion either nothing, 'still' before the "
            "colour, 'moving left slowly', 'moving left quickly', 'moving left slowly and "
            "quickly', 'moving left and up' or 'moving left and right' at the end"
        )
    shape = None if match["shape"] == "thing" else match["shape"]
    return MotionCaption(match["colour"], shape, motion)


def _motion(match: re.Match[str]) -> Motion | None:
    """The motion that a caption names, None if it names none, ``UNKNOWN`` for one of no world."""
    if match["one"] is None:
        return Motion("still", ()) if match["still"] else None
    if match["still"]:
        return UNKNOWN
    named = {match["one"], match["two"]} - {None}
    pace = {None: ("turn", "bounce"), "slowly": ("slow",), "quickly": ("fast",)}
    manners = pace.get(match["pace"], ("late",))
    found = [m for m in MOTIONS if m.manner in manners and set(m.directions) == named]
    return found[0] if found and (match["two"] is None or len(named) == 2) else UNKNOWN


def is_motion_caption(text: str) -> bool:
    """True if a text is a caption of this world."""
    try:
        parse_motion_caption(text)
    except ValueError:
        return False
    return True


def sample_manner(rng: np.random.Generator) -> str:
    """Draws a manner from the mixture of open captions."""
    return str(rng.choice(MANNERS, p=list(MIXTURE.values())))


def sample_motion(rng: np.random.Generator, manner: str) -> Motion:
    """Draws the directions of a manner, uniformly."""
    pairs = DIRECTIONS[manner]
    return Motion(manner, pairs[int(rng.integers(len(pairs)))])


def sample_motion_caption(
    rng: np.random.Generator, p_open: float = 0.35, open_motion: bool | None = None
) -> MotionCaption:
    """Draws a caption: each attribute open with ``p_open``, and each manner named equally often.

    Args:
        rng: The random generator.
        p_open: Probability that an attribute is left open.
        open_motion: Decides whether the motion is open; None draws it with ``p_open``.
    """
    colour = None if rng.random() < p_open else str(rng.choice(list(world.COLOURS)))
    shape = None if rng.random() < p_open else str(rng.choice(world.SHAPES))
    if open_motion is None:
        open_motion = bool(rng.random() < p_open)
    motion = None if open_motion else sample_motion(rng, str(rng.choice(MANNERS)))
    return MotionCaption(colour, shape, motion)


def sample_sprite(rng: np.random.Generator, caption: MotionCaption) -> MovingSprite:
    """Draws an object that the caption describes; the middle of its way is that of the frame."""
    colour = caption.colour or str(rng.choice(list(world.COLOURS)))
    shape = caption.shape or str(rng.choice(world.SHAPES))
    motion = caption.motion or sample_motion(rng, sample_manner(rng))
    first, second = _velocities(rng, motion)
    radius = float(rng.uniform(*RADIUS))
    way = path(first, second)
    x, y = world.SIZE / 2 - (way.min(0) + way.max(0)) / 2
    x, y = (float(v + rng.uniform(-CENTRE_JITTER, CENTRE_JITTER)) for v in (x, y))
    return MovingSprite(colour, shape, motion, radius, x, y, first, second)


def _velocities(
    rng: np.random.Generator, motion: Motion
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both velocities: one speed and one deviation of the heading for the whole video."""
    angle = float(rng.uniform(-HEADING_JITTER, HEADING_JITTER))
    slow, fast = (float(rng.uniform(*r)) for r in world.SPEEDS.values())
    creep = float(rng.uniform(*CREEP))
    if motion.manner == "still":
        return (0.0, 0.0), (0.0, 0.0)
    headings = [motion.directions[0], motion.directions[-1]]
    if rng.random() < 0.5:
        headings.reverse()
    speeds = {"slow": (slow, slow), "late": (creep, fast)}.get(motion.manner, (fast, fast))
    first, second = (_along(h, s, angle) for h, s in zip(headings, speeds, strict=True))
    return first, second


def _along(direction: str, speed: float, angle: float) -> tuple[float, float]:
    dx, dy = world.DIRECTIONS[direction]
    vx = speed * (dx * np.cos(angle) - dy * np.sin(angle))
    vy = speed * (dx * np.sin(angle) + dy * np.cos(angle))
    return float(vx), float(vy)


def render(sprite: MovingSprite) -> Array:
    """Draws a video, ``[F, H, W, 3]`` float32 RGB in [0, 1]."""
    centre = np.arange(world.SIZE, dtype=np.float32) + 0.5
    where = sprite.positions().astype(np.float32)
    x = centre[None, None, :] - where[:, 0, None, None]
    y = centre[None, :, None] - where[:, 1, None, None]
    mask = world.shape_mask(sprite.shape, x, y, np.float32(sprite.radius))[..., None]
    colour = np.array(world.COLOURS[sprite.colour], dtype=np.float32) / 255
    video = world.BACKGROUND + (colour - world.BACKGROUND) * mask
    return video.astype(np.float32)
