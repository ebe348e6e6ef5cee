"""The world of moving shapes: what a clip can hold, which combinations are held out, and how frames are drawn."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]

SHAPES: Final = ("circle", "square", "triangle", "cross", "ring")
COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "white")
DIRECTIONS: Final = ("left", "right", "up", "down")
SIZES: Final = ("small", "large")
SPEEDS: Final = ("slow", "fast")
BACKGROUNDS: Final = ("black", "gray", "navy", "brown")
EVENTS: Final = ("straight", "turn", "bounce", "stop", "disappear", "change")
CORNERS: Final = ("top left", "top right", "bottom left", "bottom right")
_VALUES: Final = {
    "shape": SHAPES,
    "colour": COLOURS,
    "direction": DIRECTIONS,
    "size": SIZES,
    "speed": SPEEDS,
    "background": BACKGROUNDS,
    "event": EVENTS,
}

DURATION: Final = 4.0  # of a clip in seconds
SAMPLE_FPS: Final = 2.0  # frames a second that the model sees: those of VidVec (arXiv 2602.08099, section 4)
FRAMES: Final = int(DURATION * SAMPLE_FPS)  # of a clip that the model sees: 8
FRAME_SIZE: Final = 84  # side in pixels of the frames that the model sees: six patches of 14

_RGB: Final = {
    "red": (222, 40, 40),
    "green": (40, 185, 60),
    "blue": (55, 100, 240),
    "yellow": (242, 222, 50),
    "purple": (178, 60, 205),
    "white": (245, 245, 245),
    "black": (10, 10, 12),
    "gray": (112, 112, 114),
    "navy": (14, 18, 82),
    "brown": (92, 56, 24),
}
_RADIUS: Final = {"small": 0.13, "large": 0.2}  # of the frame's side
_SPEED: Final = {"slow": 0.07, "fast": 0.18}  # sides a second
_STEP: Final = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_CORNER_RADIUS: Final = 0.14
_CORNER_INSET: Final = 0.17


@dataclass(frozen=True, slots=True)
class CornerObject:
    """The still object: a shape of a colour in one corner of the frame."""

    shape: str
    colour: str
    corner: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What one clip shows. Attributes are of the moving object, each one of the values that are named above."""

    shape: str
    colour: str  # at the start
    direction: str  # in which it sets out
    size: str
    speed: str
    background: str
    event: str  # what happens half-way
    corner: CornerObject | None  # the still object, or None for empty corners
    seed: int = 0  # decides what captions leave out: start, moment of the event, lighting, new colour, side of a turn

    @property
    def attributes(self) -> dict[str, str]:
        """The described attributes by name; the corner object's three are ``"none"`` without one."""
        corner = self.corner or CornerObject("none", "none", "none")
        named = {name: getattr(self, name) for name in _VALUES}
        return named | {"corner_shape": corner.shape, "corner_colour": corner.colour, "corner": corner.corner}


HELD_OUT: Final = frozenset(
    (SHAPES[s], COLOURS[c], DIRECTIONS[d])
    for s, c, d in itertools.product(range(len(SHAPES)), range(len(COLOURS)), range(len(DIRECTIONS)))
    if (5 * s + 3 * c + 2 * d + (s * c) % 3) % 8 == 0
)
"""(shape, colour, direction) triples that training never meets, in a clip or in a text: 15 of 120, spread so that every
value of each attribute occurs in training and in the test."""


def split_of(scene: Scene) -> Split:
    """``"test"`` when the scene's (shape, colour, direction) is held out of training, else ``"train"``."""
    return "test" if (scene.shape, scene.colour, scene.direction) in HELD_OUT else "train"


def sample_scene(rng: np.random.Generator, split: Split) -> Scene:
    """Draw one scene of a split, every attribute uniform, a corner object in 85 % of them."""
    if split not in {"train", "test"}:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")

    def choose(values: tuple[str, ...], i: int) -> str:
        return values[int(pick[i] * len(values))]

    while True:
        pick = rng.random(12)
        corner = None
        if pick[7] < 0.85:
            corner = CornerObject(choose(SHAPES, 8), choose(COLOURS, 9), choose(CORNERS, 10))
        chosen = {name: choose(values, i) for i, (name, values) in enumerate(_VALUES.items())}
        scene = Scene(**chosen, corner=corner, seed=int(pick[11] * 2**31))
        if split_of(scene) == split:
            return scene


def vary(scene: Scene, rng: np.random.Generator, among: tuple[str, ...] | None = None) -> Scene:
    """Return a scene of the same seed that differs in one described attribute, `among` those named, or any.

    A corner object stays one. The scene may be of the other split: it is a wrong description, never trained on.
    """
    pools: dict[str, tuple[str, ...]] = dict(_VALUES)
    if scene.corner is not None:
        pools |= {"corner_shape": SHAPES, "corner_colour": COLOURS, "corner": CORNERS}
    names = [name for name in pools if among is None or name in among]
    name = names[int(rng.integers(len(names)))]
    others = [value for value in pools[name] if value != scene.attributes[name]]
    value = others[int(rng.integers(len(others)))]
    if name.startswith("corner"):
        assert scene.corner is not None  # noqa: S101 - the pools above hold corner names only then
        return replace(scene, corner=replace(scene.corner, **{name.removeprefix("corner_"): value}))
    return Scene(**{f.name: getattr(scene, f.name) for f in fields(scene)} | {name: value})


def _coverage(shape: str, dx: NDArray[np.float32], dy: NDArray[np.float32], r: float, side: int) -> NDArray[np.float32]:
    """How much of each pixel a shape of radius ``r`` covers, from the signed distance to its edge."""
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "circle":
        inside = r - np.sqrt(dx * dx + dy * dy)
    elif shape == "square":
        inside = 0.88 * r - np.maximum(ax, ay)
    elif shape == "triangle":  # apex (0, -r), base from (-r, 0.8 r) to (r, 0.8 r)
        inside = np.minimum(0.8 * r - dy, ((dy + r) - ax * 1.8) / 2.059)
    elif shape == "cross":
        arm = 0.36 * r
        inside = np.maximum(np.minimum(arm - ax, r - ay), np.minimum(arm - ay, r - ax))
    elif shape == "ring":
        distance = np.sqrt(dx * dx + dy * dy)
        inside = np.minimum(r - distance, distance - 0.55 * r)
    else:
        raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}")
    return np.clip(inside * side + 0.5, 0.0, 1.0).astype(np.float32)


def render(scene: Scene, times: NDArray[np.float64], side: int = FRAME_SIZE) -> NDArray[np.uint8]:
    """Draw a scene at times in seconds, (T,), within [0, `DURATION`]: RGB frames, (T, side, side, 3)."""
    rng = np.random.default_rng(scene.seed)
    t_event, along, across, light, turn = rng.uniform(size=5)
    new_colour = [c for c in COLOURS if c != scene.colour][int(rng.integers(len(COLOURS) - 1))]
    t_event = 1.3 + 0.9 * t_event
    step = np.array(_STEP[scene.direction])
    after = {"turn": step[::-1] * (1 if turn < 0.5 else -1), "bounce": -step, "stop": 0 * step}.get(scene.event, step)
    speed, radius = _SPEED[scene.speed], _RADIUS[scene.size]

    def offset(t: NDArray[np.float64]) -> NDArray[np.float64]:  # (T, 2), from the start
        first = np.minimum(t, t_event)[:, None] * step
        way: NDArray[np.float64] = speed * (first + np.maximum(t - t_event, 0.0)[:, None] * after)
        return way

    # Slide the whole path so that it stays in the frame, random where there is room, central where there is none.
    path = offset(np.array([0.0, t_event, DURATION]))
    low, high = 0.75 * radius - path.min(0), 1 - 0.75 * radius - path.max(0)
    middle, room = (low + high) / 2, np.maximum(high - low, 0.0)
    spread = np.where(step != 0, 2 * along - 1, 0.6 * (2 * across - 1))
    centre = middle + spread * room / 2 + offset(times)  # (T, 2)

    gain = 0.92 + 0.16 * light
    grid = ((np.arange(side, dtype=np.float32) + 0.5) / side).astype(np.float32)
    frames = np.empty((len(times), side, side, 3), np.float32)
    frames[:] = np.array(_RGB[scene.background], np.float32)
    dx = grid[None, None, :] - centre[:, 0, None, None].astype(np.float32)  # (T, 1, W)
    dy = grid[None, :, None] - centre[:, 1, None, None].astype(np.float32)  # (T, H, 1)
    cover = _coverage(scene.shape, dx, dy, radius, side)  # (T, H, W)
    late = times >= t_event
    if scene.event == "disappear":
        cover[late] = 0.0
    paint = np.repeat(np.array(_RGB[scene.colour], np.float32)[None], len(times), 0)  # (T, 3)
    if scene.event == "change":
        paint[late] = _RGB[new_colour]
    frames += cover[..., None] * (paint[:, None, None, :] - frames)
    if scene.corner is not None:
        vertical, horizontal = scene.corner.corner.split()
        cx = _CORNER_INSET if horizontal == "left" else 1 - _CORNER_INSET
        cy = _CORNER_INSET if vertical == "top" else 1 - _CORNER_INSET
        away = (grid - cx)[None, :], (grid - cy)[:, None]
        still = _coverage(scene.corner.shape, *away, _CORNER_RADIUS, side)  # (H, W)
        frames += still[None, ..., None] * (np.array(_RGB[scene.corner.colour], np.float32) - frames)
    drawn: NDArray[np.uint8] = np.clip(frames * gain + 0.5, 0, 255).astype(np.uint8)
    return drawn


def sample_times() -> NDArray[np.float64]:
    """The times the model sees, in seconds: 0, 0.5, ... 3.5, shape (8,)."""
    return np.arange(FRAMES) / SAMPLE_FPS
