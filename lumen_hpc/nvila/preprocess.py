"""Cuts pictures into tiles, with the pixels of the official code but faster.

The official code converts a picture to RGB, resizes it once per scale (PIL, bicubic), crops tiles and normalises each:
NVlabs/VILA `llava/mm_utils.py` (dynamic_preprocess, dynamic_s2_preprocess) and transformers' SiglipImageProcessor. A
radiograph has one channel, and the three of its RGB stay equal in every later step, so only one is resized and the
result expanded: the same pixels for a third of the work. Tiles stay uint8 until they are on the device (`normalise`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL
import torch
from PIL import Image
from torch.nn import functional as F

from lumen_hpc.errors import UserError

from .config import Block, NVILAConfig

_PILLOW = int(PIL.__version__.split(".")[0])


@dataclass(frozen=True)
class Blank:
    """Stands for a picture whose tiles are not needed here: of the same size, and black."""

    width: int
    height: int
    """[px]."""


Picture: TypeAlias = Image.Image | np.ndarray | str | Path | Blank
"""A PIL image, a uint8 array [H, W] or [H, W, 3], the path of an image file, or a blank."""
Resize = Callable[[int, int], torch.Tensor]
"""(width, height) [px] -> uint8 [height, width, 1 or 3] of one picture."""


@dataclass
class Tiles:
    """Tiles of some pictures in order: `tiles` uint8 [N, 1 or 3, S, S]; `blocks`, one per `<image>` placeholder."""

    tiles: torch.Tensor
    blocks: list[Block]
    per_picture: list[int]
    """Number of placeholders of each picture: that of its tiles with `dynamic`, else 1."""


def preprocess_images(
    pictures: Sequence[Picture], config: NVILAConfig, *, exact: bool = True, single_tile: bool = False
) -> Tiles:
    """Cut pictures into tiles.

    `exact=False` resizes faster, within 2 grey levels of PIL. `single_tile` gives every picture one tile, as does the
    official `generate_content` for several pictures. Order within a picture: `dynamic_s2` coarse scales first,
    then the finest, each row by row; `dynamic` tiles row by row, then the thumbnail if there is more than one.

    Raises UserError naming a picture that cannot be read or has an unfit form.
    """
    tiles, blocks, per_picture = [], [], []
    for place, picture in enumerate(pictures):
        width, height, resize = _open_resizable(picture, place, exact)
        picture_tiles, picture_blocks = _cut_picture(width, height, config, resize, single_tile)
        tiles.append(picture_tiles)
        blocks += picture_blocks
        per_picture.append(len(picture_blocks))
    size = config.image_size
    joined = join_tiles(tiles) if tiles else torch.zeros(0, 1, size, size, dtype=torch.uint8)
    return Tiles(joined, blocks, per_picture)


def normalise(tiles: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Grey levels to the tower's input: uint8 [N, 1 or 3, S, S] -> dtype [N, 3, S, S] in -1..1 (x/255, mean and
    std 0.5), computed in float32; the channels of a grey tile share memory."""
    pixels = tiles.float().div_(255).sub_(0.5).div_(0.5).to(dtype)
    return pixels.expand(-1, 3, -1, -1)


def join_tiles(tiles: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tiles; with a coloured picture among them, all get three channels."""
    channels = max(part.shape[1] for part in tiles)
    return torch.cat([part.expand(-1, channels, -1, -1) for part in tiles])


def picture_key(picture: Picture) -> object:
    """Equal for the same picture: its path, or the id of an object (valid while it is referenced)."""
    return str(picture) if isinstance(picture, str | Path) else id(picture)


def open_picture(picture: Picture, place: int = 0) -> Image.Image:
    """A picture as a PIL image of mode L (one grey channel) or RGB.

    Raises UserError for one that cannot be read, is empty or has more than 8 bits, by its path or as image `place`.
    """
    name = str(picture) if isinstance(picture, str | Path) else f"image {place}"
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
            raise UserError(
                f"{name}: array of {picture.dtype} {picture.shape}; give uint8 [H, W] or [H, W, 3] "
                "(scale a DICOM's wider grey levels to 0..255 first)"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, str | Path | Image.Image):
        raise UserError(f"{name}: a {type(picture).__name__} is no picture; give a PIL image, a uint8 array or a path")
    with _named_error(name):
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        image.load()  # decodes here, where an error can be named
    if 0 in image.size:
        raise UserError(f"{name}: an empty picture of {image.width} x {image.height} px")
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name}: more than 8 bits a pixel (mode {image.mode}); scale it to 0..255 first")
    with _named_error(name):
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    return image


@contextmanager
def _named_error(name: str) -> Iterator[None]:
    """Turns Pillow's errors into one that names the picture; its readers raise ValueError, too."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: cannot be read as an image ({error})") from None


def _open_resizable(picture: Picture, place: int, exact: bool) -> tuple[int, int, Resize]:
    """A picture's width and height [px], and a function that resizes it; arguments as for `preprocess_images`."""
    if isinstance(picture, Blank):
        return picture.width, picture.height, _resize_blank
    if not exact and (grey := _grey_jpeg(picture)) is not None:
        return grey.shape[1], grey.shape[0], _fast_resize(grey)
    image = open_picture(picture, place)
    fast = not exact and image.mode == "L"
    return *image.size, _fast_resize(np.asarray(image)) if fast else _exact_resize(image)


def _cut_picture(
    width: int, height: int, config: NVILAConfig, resize: Resize, single_tile: bool
) -> tuple[torch.Tensor, list[Block]]:
    size = config.image_size
    fewest, most = config.tiles
    aspect = "resize" if single_tile else config.aspect
    if aspect == "resize":
        return _grid_tiles(1, 1, size, resize), [None]
    if aspect == "dynamic":
        columns, rows = best_grid(width, height, size, fewest, most)
        parts = [_grid_tiles(rows, columns, size, resize)]
        if rows * columns > 1:
            parts.append(_grid_tiles(1, 1, size, resize))
        tiles = torch.cat(parts)
        return tiles, [None] * len(tiles)
    scales = config.scales
    columns, rows = best_grid(width, height, size, (scales[-1] // scales[0]) ** 2, most)
    grids = [(scale // scales[0],) * 2 for scale in scales[:-1]] + [(rows, columns)]
    return torch.cat([_grid_tiles(*grid, size, resize) for grid in grids]), [(rows, columns)]


@lru_cache(maxsize=4096)
def best_grid(width: int, height: int, size: int, fewest: int, most: int) -> tuple[int, int]:
    """(columns, rows) of the grid whose aspect ratio is closest to the picture's; width, height and size in px.

    Candidates are ordered by their number of tiles; of equally close ones the later wins if the picture has more
    than half the grid's area. Official `find_closest_aspect_ratio`. For equal numbers of tiles the official order is
    the iteration order of a Python set of tuples, so the same set is built here. Raises UserError if no grid has
    between `fewest` and `most` tiles.
    """
    grids = {
        (columns, rows)
        for n in range(fewest, most + 1)
        for columns in range(1, n + 1)
        for rows in range(1, n + 1)
        if fewest <= columns * rows <= most
    }
    if not grids:
        raise UserError(f"no grid has between {fewest} and {most} tiles: raise max_tiles in config.json")
    best, smallest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - columns / rows)
        if difference < smallest:
            smallest, best = difference, (columns, rows)
        elif difference == smallest and width * height > 0.5 * size * size * columns * rows:
            best = (columns, rows)
    return best


def placeholders(size: tuple[int, int], config: NVILAConfig) -> list[Block]:
    """The blocks of a picture of this size, one per `<image>` token."""
    fewest, most = config.tiles
    if config.aspect == "resize":
        return [None]
    if config.aspect == "dynamic":
        columns, rows = best_grid(*size, config.image_size, fewest, most)
        return [None] * (rows * columns + (rows * columns > 1))
    columns, rows = best_grid(*size, config.image_size, (config.scales[-1] // config.scales[0]) ** 2, most)
    return [(rows, columns)]


def tile_count(size: tuple[int, int], config: NVILAConfig) -> int:
    """The number of tiles of a picture of this size."""
    coarse = sum((scale // config.scales[0]) ** 2 for scale in config.scales[:-1])
    return sum(1 if block is None else coarse + block[0] * block[1] for block in placeholders(size, config))


def _grid_tiles(rows: int, columns: int, size: int, resize: Resize) -> torch.Tensor:
    """Resize to rows x columns tiles and cut: uint8 [rows·columns, C, size, size]."""
    pixels = resize(columns * size, rows * size)
    channels = pixels.shape[2]
    grid = pixels.view(rows, size, columns, size, channels)
    return grid.permute(0, 2, 4, 1, 3).reshape(rows * columns, channels, size, size)


def _resize_blank(width: int, height: int) -> torch.Tensor:
    """A resized blank: one number, expanded to all its pixels."""
    return torch.zeros(1, 1, 1, dtype=torch.uint8).expand(height, width, 1)


def _exact_resize(image: Image.Image) -> Resize:
    """PIL's bicubic."""

    def resize(width: int, height: int) -> torch.Tensor:
        pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels).view(height, width, -1)

    return resize


def _grey_jpeg(picture: Picture) -> np.ndarray | None:
    """The pixels of a grey JPEG file, uint8 [H, W], without PIL's copies; None for any other or broken file."""
    if not isinstance(picture, str | Path) or not Path(picture).is_file():
        return None
    data = Path(picture).read_bytes()
    if not data.startswith(b"\xff\xd8"):
        return None
    import simplejpeg

    try:
        if simplejpeg.decode_jpeg_header(data)[2] == "Gray":
            return simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0]
    except ValueError:
        pass  # PIL reports the fault
    return None


def _fast_resize(grey: np.ndarray) -> Resize:
    """torch's antialiased uint8 bicubic for a grey picture [H, W], with its two passes in PIL's order.

    Its vector code needs pixels of four channels. A pass along one axis is independent for each place of the other, so
    four neighbours along that axis serve as channels. The passes differ from PIL's only in the last bits of weights.
    OpenCV transposes, since that takes torch longer than both passes.
    """
    import cv2

    transposed = cv2.transpose(grey)

    def resize(width: int, height: int) -> torch.Tensor:
        if _height_first(grey.shape[1], grey.shape[0], width, height):
            pixels = cv2.transpose(_resize_rows(cv2.transpose(_resize_rows(cv2.transpose(transposed), height)), width))
        else:
            pixels = _resize_rows(cv2.transpose(_resize_rows(transposed, width)), height)
        return torch.from_numpy(pixels).unsqueeze(-1)

    return resize


def _height_first(width: int, height: int, new_width: int, new_height: int) -> bool:
    """True if this Pillow resizes the height first: since release 13, if it shrinks over twice as much as the width.

    (Pillow pull request 9549.) The order matters wherever the first pass overshoots black or white.
    """
    return _PILLOW >= 13 and height - new_height > 2 * max(width - new_width, 0)


def _resize_rows(pixels: np.ndarray, height: int) -> np.ndarray:
    """uint8 [H, W] -> [height, W]."""
    width = pixels.shape[1]
    if width % 4:
        pixels = np.pad(pixels, ((0, 0), (0, -width % 4)))
    quads = torch.from_numpy(pixels).view(1, len(pixels), -1, 4).permute(0, 3, 1, 2)
    out = F.interpolate(quads, size=(height, quads.shape[3]), mode="bicubic", antialias=True)
    return np.ascontiguousarray(out.permute(0, 2, 3, 1).reshape(height, -1)[:, :width].numpy())
