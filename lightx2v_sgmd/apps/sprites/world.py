"""A procedural world of moving sprites: captions whose every claim can be checked in the frames.

A caption names an object ("a red circle moving left quickly"), or two joined by "and". Each has a
colour, a shape, a direction and a speed; a caption may leave any of them open, and then the world
draws it uniformly. Start positions, sizes, headings (within 12 degrees of the named axis) and exact
speeds are never named: they vary from video to video. The bundled teacher was trained with both
kinds of captions and is held to one object (docs/decisions/003).

Legend: F frames, H height, W width; positions in pixels (x right, y down), speeds in pixels/frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

NUM_FRAMES: Final = 9
SIZE: Final = 32
FPS: Final = 8
BACKGROUND: Final[Array] = np.array([26 / 255, 26 / 255, 34 / 255], dtype=np.float32)
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (232, 48, 48),
    "green": (48, 200, 64),
    "blue": (56, 88, 248),
    "yellow": (244, 220, 48),
    "purple": (200, 56, 216),
    "cyan": (48, 216, 232),
}
PALETTE: Final = np.array(list(COLOURS.values()), dtype=np.float32) / 255
SHAPES: Final = ("circle", "square", "triangle")
DIRECTIONS: Final[dict[str, tuple[int, int]]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
SPEEDS: Final[dict[str, tuple[float, float]]] = {"slowly": (0.50, 0.66), "quickly": (1.20, 1.48)}
SPEED_THRESHOLD: Final = 0.9
"""Pixels per frame: slower is "slowly", faster is "quickly" (about the geometric mean)."""
RADIUS: Final = (4.0, 5.0)
HEADING_JITTER: Final = float(np.deg2rad(12.0))
GAP: Final = 1.0
"""Least free distance in pixels between two objects' outlines, in every frame."""

OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "direction": tuple(DIRECTIONS),
    "speed": tuple(SPEEDS),
}
# Half extents of each shape in units of its radius: left, right, up, down. All have the area of
# the circle of that radius, so that size does not give the shape away.
EXTENT: Final[dict[str, tuple[float, float, float, float]]] = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.8863, 0.8863, 0.8863, 0.8863),
    "triangle": (1.3468, 1.3468, 1.5551, 0.7776),
}


@dataclass(frozen=True)
class ObjectCaption:
    """A caption's words on one object; ``None`` leaves the attribute open."""

    colour: str | None = None
    shape: str | None = None
    direction: str | None = None
    speed: str | None = None

    def text(self) -> str:
        """The words, ``a [colour] <shape> moving [direction] [speed]``."""
        words = ["a", self.colour, self.shape or "thing", "moving", self.direction, self.speed]
        return " ".join(word for word in words if word)

    def named(self) -> dict[str, str]:
        """The attributes that the caption fixes, by name."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class Caption:
    """One or two object captions, in the order in which the text names them."""

    objects: tuple[ObjectCaption, ...]

    def text(self) -> str:
        """The whole caption."""
        return " and ".join(obj.text() for obj in self.objects)


@dataclass(frozen=True)
class Sprite:
    """One object of a video with everything decided: start ``x, y``, velocity, radius (pixels)."""

    colour: str
    shape: str
    direction: str
    speed: str
    radius: float
    x: float
    y: float
    vx: float
    vy: float

    def caption(self) -> ObjectCaption:
        """The caption that names everything about it."""
        return ObjectCaption(self.colour, self.shape, self.direction, self.speed)


def parse_caption(text: str) -> Caption:
    """Reads a caption of this world back into its attributes.

    Raises:
        ValueError: the text is not a caption of this world; the message shows the grammar.
    """
    pattern = re.compile(
        rf"an?(?: (?P<colour>{'|'.join(COLOURS)}))? (?P<shape>{'|'.join(SHAPES)}|thing) moving"
        rf"(?: (?P<direction>{'|'.join(DIRECTIONS)}))?(?: (?P<speed>{'|'.join(SPEEDS)}))?"
    )
    parts = text.strip().lower().rstrip(".").split(" and ")
    matches = [pattern.fullmatch(part) for part in parts]
    if len(parts) > 2 or any(match is None for match in matches):
        raise ValueError(
            f"{text!r} is not a caption of the sprite world; write 'a [colour] circle|square|"
            "triangle|thing moving [left|right|up|down] [slowly|quickly]', one object or two "
            f"joined by 'and', with colours {', '.join(COLOURS)}"
        )
    objects = []
    for match in matches:
        assert match is not None
        found = match.groupdict()
        found["shape"] = None if found["shape"] == "thing" else found["shape"]
        objects.append(ObjectCaption(**found))
    return Caption(tuple(objects))


def is_caption(text: str) -> bool:
    """True if a text is a caption of this world."""
    try:
        parse_caption(text)
    except ValueError:
        return False
    return True


def sample_caption(rng: np.random.Generator, p_open: float = 0.35, p_two: float = 0.0) -> Caption:
    """Draws a caption: each attribute left open with ``p_open``, two objects with ``p_two``.

    Two objects never share a named colour, so that measuring can tell them apart.
    """
    colours = rng.permutation(list(COLOURS))
    objects = []
    for index in range(2 if rng.random() < p_two else 1):
        values: dict[str, str | None] = {
            name: None if rng.random() < p_open else str(rng.choice(options))
            for name, options in OPTIONS.items()
        }
        if values["colour"] is not None:
            values["colour"] = str(colours[index])
        objects.append(ObjectCaption(**values))
    return Caption(tuple(objects))


def sample_sprites(rng: np.random.Generator, caption: Caption) -> tuple[Sprite, ...]:
    """Draws the objects of one video that the caption describes, inside the frame, not touching."""
    taken = {obj.colour for obj in caption.objects}
    free = [str(c) for c in rng.permutation(list(COLOURS)) if c not in taken]
    decided = []
    for obj in caption.objects:
        values = {
            name: getattr(obj, name) or str(rng.choice(options))
            for name, options in OPTIONS.items()
        }
        if obj.colour is None:
            values["colour"] = free.pop()
        decided.append(values)
    # Place and speed by rejection sampling, so the joint law stays uniform where it is allowed.
    for _ in range(1_000):
        placed = [_candidates(rng, values, count=64) for values in decided]
        free_of_contact = _clearance(decided, placed) >= GAP
        if free_of_contact.any():
            pick = int(free_of_contact.argmax())
            return tuple(
                Sprite(
                    values["colour"],
                    values["shape"],
                    values["direction"],
                    values["speed"],
                    *(float(where[k][pick]) for k in ("radius", "x", "y", "vx", "vy")),
                )
                for values, where in zip(decided, placed, strict=True)
            )
    raise AssertionError(f"no placement found for {caption.text()!r}")


def _candidates(
    rng: np.random.Generator, values: dict[str, str], count: int
) -> dict[str, NDArray[np.float64]]:
    """Draws ``count`` candidate sizes, starts and velocities that stay inside the frame."""
    radius = rng.uniform(*RADIUS, count)
    speed = rng.uniform(*SPEEDS[values["speed"]], count)
    angle = rng.uniform(-HEADING_JITTER, HEADING_JITTER, count)
    dx, dy = DIRECTIONS[values["direction"]]
    vx = speed * (dx * np.cos(angle) - dy * np.sin(angle))
    vy = speed * (dx * np.sin(angle) + dy * np.cos(angle))
    left, right, up, down = (radius * e + 0.5 for e in EXTENT[values["shape"]])
    travel_x, travel_y = vx * (NUM_FRAMES - 1), vy * (NUM_FRAMES - 1)
    x = rng.uniform(left - np.minimum(travel_x, 0), SIZE - right - np.maximum(travel_x, 0))
    y = rng.uniform(up - np.minimum(travel_y, 0), SIZE - down - np.maximum(travel_y, 0))
    return {"radius": radius, "x": x, "y": y, "vx": vx, "vy": vy}


def _clearance(
    decided: list[dict[str, str]], placed: list[dict[str, NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """Least distance per candidate between two bounding boxes over all frames (inf for one)."""
    if len(placed) < 2:
        return np.full(len(placed[0]["x"]), np.inf)
    a, b = placed
    ea, eb = (EXTENT[values["shape"]] for values in decided)
    t = np.arange(NUM_FRAMES)[:, None]
    gaps = []
    for axis, lo, hi in (("x", 0, 1), ("y", 2, 3)):
        pa, pb = (p[axis] + t * p[f"v{axis}"] for p in (a, b))
        gaps.append((pb - b["radius"] * eb[lo]) - (pa + a["radius"] * ea[hi]))
        gaps.append((pa - a["radius"] * ea[lo]) - (pb + b["radius"] * eb[hi]))
    return np.asarray(np.max(gaps, axis=0).min(axis=0))


def shape_mask(shape: str, x: Array, y: Array, radius: Array | np.float32) -> Array:
    """Anti-aliased coverage of a shape at offsets ``x, y`` from its centroid; broadcasts.

    Returns:
        Coverage in [0, 1]: 1 inside, 0 outside, a one-pixel ramp across the outline.
    """
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.8863 * radius
    elif shape == "triangle":  # equilateral, point up: three half planes, normals of unit length
        side = np.float32(np.sqrt(3) / 2) * np.abs(x) - 0.5 * y
        distance = np.maximum(side, y) - 0.7776 * radius
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    mask: Array = np.clip(0.5 - distance, 0, 1).astype(np.float32)
    return mask


def render(sprites: tuple[Sprite, ...], num_frames: int = NUM_FRAMES, size: int = SIZE) -> Array:
    """Draws a video.

    Returns:
        ``[F, H, W, 3]`` float32 RGB in [0, 1].
    """
    centre = np.arange(size, dtype=np.float32) + 0.5
    t = np.arange(num_frames, dtype=np.float32)[:, None, None]
    video = np.tile(BACKGROUND, (num_frames, size, size, 1))
    for s in sprites:
        x = centre[None, None, :] - (s.x + s.vx * t)
        y = centre[None, :, None] - (s.y + s.vy * t)
        mask = shape_mask(s.shape, x, y, np.float32(s.radius))[..., None]
        colour = np.array(COLOURS[s.colour], dtype=np.float32) / 255
        video += (colour - video) * mask
    return video


def sample_video(
    rng: np.random.Generator, caption: Caption | None = None
) -> tuple[Caption, tuple[Sprite, ...], Array]:
    """Draws a caption (unless given), objects that fit it, and their video ``[F, H, W, 3]``."""
    caption = caption or sample_caption(rng)
    sprites = sample_sprites(rng, caption)
    return caption, sprites, render(sprites)
