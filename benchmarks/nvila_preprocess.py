"""One radiograph to NVILA's pixels: ours against the official recipe, in one run.

    python benchmarks/nvila_preprocess.py [--width 2544 --height 3056 --repeats 5]

Peer: the official recipe, PIL (open, RGB, bicubic resize a scale, crops; NVlabs/VILA `llava/mm_utils.py`) and then
transformers' SiglipImageProcessor on each tile. Ours: `exact` (the same pixels in every bit) and `fast` (within 2 grey
levels). All give float32 [tiles, 3, 448, 448]; ours shares memory between the three equal channels until it is on the
device. Processor time of one thread, so that other work on the machine counts little; the picture is synthetic.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

import lumen_hpc.torchvision_compat  # noqa: F401  (before transformers looks at torchvision)
from lumen_hpc.nvila.cards import cards
from lumen_hpc.nvila.preprocess import best_grid, normalise, preprocess_images

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # isort: skip

SIZE = 448


def radiograph(width: int, height: int) -> Image.Image:
    """Smooth anatomy, fine grain, and a hard white marker on black, like the corner letter of a real one."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(30, 220, (24, 20), dtype=np.uint8)).resize((width, height))
    grey = np.asarray(coarse.filter(ImageFilter.GaussianBlur(8))).astype(np.float32)
    grey += rng.normal(0, 4, grey.shape)
    grey[: height // 20, : width // 12] = 0
    grey[height // 60 : height // 30, width // 40 : width // 25] = 255
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def official(picture: Image.Image | Path, aspect: str, processor: SiglipImageProcessorPil) -> torch.Tensor:
    """The official tiles and pixels, float32 [tiles, 3, 448, 448]."""
    image = (picture if isinstance(picture, Image.Image) else Image.open(picture)).convert("RGB")
    if aspect == "dynamic_s2":
        grids = [(1, 1), (2, 2), best_grid(*image.size, SIZE, 9, 12)]
    else:
        grids = [best_grid(*image.size, SIZE, 1, 12), (1, 1)]
    tiles = []
    for columns, rows in grids:
        resized = image.resize((columns * SIZE, rows * SIZE))
        for i in range(columns * rows):
            left, top = (i % columns) * SIZE, (i // columns) * SIZE
            tiles.append(resized.crop((left, top, left + SIZE, top + SIZE)))
    return torch.stack([processor.preprocess(tile, return_tensors="pt")["pixel_values"][0] for tile in tiles])


def milliseconds(works: list, repeats: int) -> list[float]:
    """Processor time of a call of each: they take turns, the least of `repeats` rounds counts, one warms up."""
    times: list[list[float]] = []
    for _ in range(repeats + 1):
        times.append([])
        for work in works:
            start = time.process_time()
            work()
            times[-1].append(1000 * (time.process_time() - start))
    return np.min(times[1:], axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2544)
    parser.add_argument("--height", type=int, default=3056)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    image = radiograph(options.width, options.height)
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "radiograph.jpg"
        image.save(stored, quality=92)
        compare(stored, options.repeats)


def compare(stored: Path, repeats: int) -> None:
    """Print the table for a JPEG file, with its decoding and without."""
    processor = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    image = Image.open(stored)
    image.load()
    print(f"{image.width}x{image.height}, processor ms, least of {repeats}")
    print(
        f"{'':12}{'picture':10}{'official':>9}{'exact':>8}{'ratio':>7}{'fast':>8}{'ratio':>7}{'error: exact, fast':>22}"
    )
    for card in ("NVILA-8B", "NVILA-Lite-8B"):
        config = cards()[card]

        def ours(picture: Image.Image | Path, exact: bool, config=config) -> torch.Tensor:
            return normalise(preprocess_images([picture], config, exact=exact).tiles)

        expected = official(image, config.aspect, processor)
        errors = [float((ours(image, exact) - expected).abs().max()) * 127.5 for exact in (True, False)]
        for name, picture in [("in memory", image), ("jpeg", stored)]:
            ways = [partial(official, picture, config.aspect, processor)]
            ways += [partial(ours, picture, exact) for exact in (True, False)]
            peer, exact, fast = milliseconds(ways, repeats)
            print(
                f"{config.aspect:12}{name:10}{peer:9.0f}{exact:8.0f}{peer / exact:7.2f}{fast:8.0f}{peer / fast:7.2f}"
                f"{errors[0]:12.2f},{errors[1]:5.2f} levels"
            )


if __name__ == "__main__":
    main()
