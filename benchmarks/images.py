"""Radiograph files to TorchXRayVision's 224 px input: ours against the package's own recipe, in one run.

    python benchmarks/images.py             # about two minutes on two cores
    python benchmarks/images.py --repeats 3

The films are 2544 x 3056 phantoms. Peer: `load_image` (skimage, pydicom), `XRayCenterCrop`, `XRayResizer`, as the
package's documentation has it. The first three rows are processor time, so that other work on the machine counts
little: what one core does. The last is wall time of two processes of ours against one of the peer's, and means
something on an idle machine only. Medians of alternating runs; results are compared too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import lumen_hpc.torchvision_cure  # noqa: F401  (before torchxrayvision imports torchvision)
from lumen_hpc.data import images, phantom_images
from lumen_hpc.data import phantom_states as ps

import torchxrayvision as xrv  # isort: skip

SIZE = 224


def film() -> np.ndarray:
    """A quiet phantom film, uint8 [3056, 2544]."""
    rng = np.random.default_rng(0)
    exposure = phantom_images.Exposure(0.01, 0.02, 0.02, 1, 1, 1, 0.008, False)
    square = phantom_images.render(ps.draw_first(rng), phantom_images.draw_anatomy(rng), exposure, 2544, rng)
    return np.pad(square, ((256, 256), (0, 0)), mode="reflect")


def write_files(folder: Path) -> dict[str, Path]:
    """The film as JPG and as DICOMs of 12 bits, uncompressed and JPEG-lossless."""
    import imagecodecs
    from pydicom import Dataset, dataset, encaps, uid

    pixels = film()
    Image.fromarray(pixels).save(folder / "film.jpg", quality=95)
    stored = (pixels.astype(np.uint16) << 4) | np.random.default_rng(1).integers(0, 16, pixels.shape, dtype=np.uint16)
    paths = {"JPEG": folder / "film.jpg"}
    for name, syntax in (("DICOM uncompressed", uid.ExplicitVRLittleEndian),
                         ("DICOM JPEG-lossless", uid.JPEGLosslessSV1)):  # fmt: skip
        made = Dataset()
        made.file_meta = dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = syntax
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
        made.SamplesPerPixel, made.PixelRepresentation, made.PhotometricInterpretation = 1, 0, "MONOCHROME2"
        made.Rows, made.Columns = stored.shape
        made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
        compressed = syntax == uid.JPEGLosslessSV1
        made.PixelData = (
            encaps.encapsulate([imagecodecs.ljpeg_encode(stored, bitspersample=12)]) if compressed else stored.tobytes()
        )
        paths[name] = folder / f"{len(paths)}.dcm"
        made.save_as(paths[name], enforce_file_format=True)
    return paths


def ours(path: Path) -> np.ndarray:
    return images.xrv_input(images.decode(path), SIZE)


def peer(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = xrv.utils.load_image(str(path))
        return xrv.datasets.XRayResizer(SIZE)(xrv.datasets.XRayCenterCrop()(image))


def seconds(work: Callable[[Path], object], path: Path, times: int, clock: Callable[[], float]) -> float:
    """Time of one call by `clock`, the mean of `times`."""
    start = clock()
    for _ in range(times):
        work(path)
    return (clock() - start) / times


def in_two_processes(path: Path, repeats: int, each: int) -> tuple[float, float]:
    """(images a second of ours in two processes, of the peer in one), medians of alternating runs."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(ours, [path] * 4)  # both have imported and built their matrices
        rates, peers = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            pool.map(ours, [path] * (2 * each), chunksize=each // 4)
            rates.append(2 * each / (time.perf_counter() - start))
            peers.append(1 / seconds(peer, path, 2, time.perf_counter))
    return statistics.median(rates), statistics.median(peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each side")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder))
        print(f"{'2544 x 3056 to 224':24} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} {'difference':>11}   peer: "
              f"torchxrayvision {xrv.__version__}")  # fmt: skip
        for name, path in paths.items():
            difference = np.abs(ours(path) - peer(path)).max()
            fast, slow = [], []
            for _ in range(repeats):
                fast.append(seconds(ours, path, 8, time.process_time))
                slow.append(seconds(peer, path, 1, time.process_time))
            one, other = statistics.median(fast), statistics.median(slow)
            print(f"{name:24} {1000 * one:9.1f} {1000 * other:9.1f} {other / one:6.1f}x {difference:11.1e}")
        rate, single = in_two_processes(paths["JPEG"], repeats, each=24)
        print(f"{'JPEG, two processes':24} {1000 / rate:9.1f} {1000 / single:9.1f} {rate / single:6.1f}x")


if __name__ == "__main__":
    main()
