"""Draws a phantom chest radiograph from its states: 0.5 ms at 64 px, the same anatomy at any size.

Coordinates run from -1 to 1 over the image, x to the right and y down, after the inverse of the pose. As on a
real frontal image, the patient's right is on the viewer's left. Shapes are polynomial, so that nothing but one
power function (the image's gamma) is transcendental.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lumen_hpc.data import phantom_states as ps

SMALLEST, LARGEST = 64, 2544
DRAWN = ("edema", "consolidation", "pleural effusion", "cardiomegaly", "nodule")
"""Findings that `_thorax` draws; one that it did not would be asked about and shown by no image."""
if _undrawn := set(ps.FINDINGS) - set(DRAWN):
    raise NotImplementedError(f"{', '.join(sorted(_undrawn))}: in phantom_states.FINDINGS, not drawn in {__file__}")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The constants of a patient, in half image widths, with the position of a possible nodule."""

    lung_width: float
    lung_height: float
    heart_width: float
    rib_phase: float
    nodule_x: float
    nodule_y: float


@dataclass(frozen=True, slots=True)
class Exposure:
    """The differences between two dates: pose, tube and detector."""

    shift_x: float
    shift_y: float
    angle: float
    """Radians."""
    scale: float
    gain: float
    gamma: float
    noise: float
    """Standard deviation, of the full range."""
    portable: bool
    """An AP image, marked by a bright tag in the upper corner."""


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A new patient."""
    u = rng.uniform
    return Anatomy(u(0.31, 0.34), u(0.60, 0.64), u(0.24, 0.27), u(0, 1), u(0.48, 0.62), u(-0.26, -0.16))


def draw_exposure(rng: np.random.Generator) -> Exposure:
    """A new date: shift, rotation, scale, brightness and noise."""
    u = rng.uniform
    return Exposure(
        u(-0.05, 0.05), u(-0.05, 0.05), np.radians(u(-4, 4)), u(0.95, 1.05),
        u(0.88, 1.12), u(0.88, 1.15), u(0.015, 0.035), bool(rng.random() < 0.3),
    )  # fmt: skip


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return axis[None, :], axis[:, None]


def render(states: ps.States, anatomy: Anatomy, exposure: Exposure, size: int, rng: np.random.Generator) -> np.ndarray:
    """The image as uint8 [size, size], air dark; `rng` draws its noise.

    Raises ValueError if `size` is outside 64..2544.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"phantom size {size} px is outside {SMALLEST}..{LARGEST}")
    image = _thorax(states, anatomy, *_posed(exposure, size))
    if exposure.portable:
        corner = size // 16
        image[corner : corner * 2 + 1, corner : corner * 3 + 1] = 1.0
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(exposure.noise)
    np.clip(image, 0, 1, out=image)
    image **= np.float32(exposure.gamma)
    image *= np.float32(exposure.gain * 225)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _posed(exposure: Exposure, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Patient coordinates (x, y) of every pixel; float32 [size, size] each."""
    column, row = _grid(size)
    cos, sin = np.float32(np.cos(exposure.angle) / exposure.scale), np.float32(np.sin(exposure.angle) / exposure.scale)
    across, down = column - np.float32(exposure.shift_x), row - np.float32(exposure.shift_y)
    return across * cos + down * sin, down * cos - across * sin


def _thorax(states: ps.States, anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Noise-free density from 0 (air) to about 1; float32 [size, size]."""
    abs_x = np.abs(x)
    lungs = _blob(abs_x, y, 0.42, -0.05, anatomy.lung_width, anatomy.lung_height, 5)
    image = _blob(x, y, 0, 0.15, 0.95, 1.15, 4)
    image *= 0.55
    image -= (0.42 - 0.06 * _wave(y + 0.3 * x * x + np.float32(anatomy.rib_phase) / 3, 3.5)) * lungs
    if states["edema"].present:
        image += _edema(states["edema"], abs_x, y)
    if states["consolidation"].present:
        image += _consolidation(states["consolidation"], x, y)
    if states["pleural effusion"].present:
        image += _effusion(states["pleural effusion"], x, y) * lungs
    step = ps.heart_size(states["cardiomegaly"])
    heart = _blob(x, y, 0.12, 0.32, anatomy.heart_width * HEART_WIDTHS[step], HEART_HEIGHTS[step], 4)
    np.maximum(image, heart * 0.62, out=image)
    np.maximum(image, _blob(x, y, 0, 0, 0.09, 2.0, 4) * 0.60, out=image)
    for side in ps.spots(states["nodule"]):
        nodule_x = anatomy.nodule_x * _image_side(side)
        image += 0.5 * _blob(x, y, nodule_x, anatomy.nodule_y, 0.08, 0.08, 2)
    return image


def _blob(x, y, at_x: float, at_y: float, width: float, height: float, edge: float) -> np.ndarray:
    """An ellipse: 1 inside, falling to 0 at its rim; a larger `edge` is sharper."""
    across, down = (x - np.float32(at_x)) * np.float32(1 / width), (y - np.float32(at_y)) * np.float32(1 / height)
    across *= across
    down *= down
    across += down
    np.subtract(1, across, out=across)
    across *= np.float32(edge)
    return np.clip(across, 0, 1, out=across)


def _wave(phase: np.ndarray, cycles: float) -> np.ndarray:
    """A triangle wave from -1 to 1, `cycles` in a unit length."""
    wave = phase * np.float32(cycles)
    wave -= np.floor(wave)
    wave -= np.float32(0.5)
    np.abs(wave, out=wave)
    wave *= 4
    wave -= 1
    return wave


HEART_WIDTHS, HEART_HEIGHTS = (0.74, 0.96, 1.25, 1.62), (0.23, 0.26, 0.29, 0.33)
"""Of the heart by `phantom_states.heart_size`: of the patient's own width, and in half image widths."""
STRIPES = 8
"""Stripes in a unit length (half an image width): 4 px apart at 64 px."""


def _textured(shape: np.ndarray, state: ps.State, along: np.ndarray, density: float) -> np.ndarray:
    """`shape` filled evenly, or with stripes of the same mean density."""
    if state.texture == "smooth":
        return np.multiply(shape, np.float32(density), out=shape)
    stripes = _wave(along, STRIPES)
    stripes *= np.float32(0.9 * density)
    stripes += np.float32(density)
    return shape * stripes


def _image_side(side: str) -> int:
    """+1 where the patient's side is on the right of the image (the left), else -1."""
    return 1 if side.startswith("left") else -1


def _effusion(state: ps.State, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fluid that fills one lung from below, higher at the wall (the meniscus)."""
    top = (0.38, 0.23, 0.08)[ps.LEVELS["pleural effusion"].index(state.level)]
    side = x * np.float32(_image_side(state.where))
    filled = np.clip((y - np.float32(top) + 0.25 * (side - 0.42)) * 16, 0, 1)
    filled *= side > 0.05
    return _textured(filled, state, x, 0.36)


def _consolidation(state: ps.State, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A dense patch in one lobe."""
    at_y = -0.40 if "upper" in state.where else -0.03
    patch = _blob(x, y, 0.46 * _image_side(state.where), at_y, 0.19, 0.16, 3)
    return _textured(patch, state, x + y, 0.34)


def _edema(state: ps.State, abs_x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Haze around both hila, wider and denser with its level."""
    level = ps.LEVELS["edema"].index(state.level)
    haze = _blob(abs_x, y, 0.22, -0.12, (0.13, 0.19, 0.26)[level], (0.20, 0.34, 0.50)[level], 2)
    return _textured(haze, state, y, (0.24, 0.27, 0.30)[level])
