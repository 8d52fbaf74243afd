"""Radiograph files to TorchXRayVision's 224 px input: ours against the package's own recipe, in one run.

    python benchmarks/images.py             # about two minutes on two cores
    python benchmarks/images.py --repeats 3

The images are 2544 x 3056 phantoms. Peer: `load_image` (skimage, pydicom), `XRayCenterCrop`, `XRayResizer`, as the
package's documentation has it. The first three rows are processor time on one core, so that other work on the machine
counts little. The last two are two processes of ours side by side against one of the peer's: by processor time (what
two free cores give, with what they cost each other) and by wall time, which means something on an idle machine only.
Medians of alternating runs; results are compared too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core a process, on both sides

import numpy as np
from PIL import Image

import lumen_hpc.torchvision_compat  # noqa: F401  (before torchxrayvision imports torchvision)
from lumen_hpc.data import images, phantom_images
from lumen_hpc.data import phantom_states as ps

import torchxrayvision as xrv  # isort: skip

SIZE = 224


def phantom_pixels() -> np.ndarray:
    """A quiet phantom image, uint8 [3056, 2544]."""
    rng = np.random.default_rng(0)
    exposure = phantom_images.Exposure(0.01, 0.02, 0.02, 1, 1, 1, 0.008, False)
    square = phantom_images.render(ps.draw_first(rng), phantom_images.draw_anatomy(rng), exposure, 2544, rng)
    return np.pad(square, ((256, 256), (0, 0)), mode="reflect")


def write_files(folder: Path) -> dict[str, Path]:
    """The image as JPG and as DICOMs of 12 bits, uncompressed and JPEG-lossless."""
    import imagecodecs
    from pydicom import Dataset, dataset, encaps, uid

    pixels = phantom_pixels()
    Image.fromarray(pixels).save(folder / "image.jpg", quality=95)
    values = (pixels.astype(np.uint16) << 4) | np.random.default_rng(1).integers(0, 16, pixels.shape, dtype=np.uint16)
    paths = {"JPEG": folder / "image.jpg"}
    for name, syntax in (("DICOM uncompressed", uid.ExplicitVRLittleEndian),
                         ("DICOM JPEG-lossless", uid.JPEGLosslessSV1)):  # fmt: skip
        dicom = Dataset()
        dicom.file_meta = dataset.FileMetaDataset()
        dicom.file_meta.TransferSyntaxUID = syntax
        dicom.SOPClassUID = dicom.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
        dicom.SOPInstanceUID = dicom.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
        dicom.SamplesPerPixel, dicom.PixelRepresentation, dicom.PhotometricInterpretation = 1, 0, "MONOCHROME2"
        dicom.Rows, dicom.Columns = values.shape
        dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = 16, 12, 11
        is_compressed = syntax == uid.JPEGLosslessSV1
        dicom.PixelData = (
            encaps.encapsulate([imagecodecs.ljpeg_encode(values, bitspersample=12)])
            if is_compressed
            else values.tobytes()
        )
        paths[name] = folder / f"{len(paths)}.dcm"
        dicom.save_as(paths[name], enforce_file_format=True)
    return paths


def ours(path: Path) -> np.ndarray:
    return images.xrv_input(images.decode(path), SIZE)


def peer(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = xrv.utils.load_image(str(path))
        return xrv.datasets.XRayResizer(SIZE)(xrv.datasets.XRayCenterCrop()(image))


def seconds(work: Callable[[Path], object], path: Path, times: int) -> tuple[float, float]:
    """(processor, wall) time of one call, the mean of `times`."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        work(path)
    return (time.process_time() - cpu) / times, (time.perf_counter() - wall) / times


def in_two_processes(path: Path, repeats: int, each: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(processor, wall) time an image of ours in two processes and of the peer in one, medians of alternating runs."""
    paired_times, single_times = [], []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(ours, [path] * 4)  # both have imported and built their matrices
        for _ in range(repeats):
            times = pool.starmap(seconds, [(ours, path, each)] * 2, chunksize=1)
            paired_times.append([1 / sum(1 / clock for clock in clocks) for clocks in zip(*times, strict=True)])
            single_times.append(seconds(peer, path, 2))
    ours_cpu, ours_wall = map(statistics.median, zip(*paired_times, strict=True))
    peer_cpu, peer_wall = map(statistics.median, zip(*single_times, strict=True))
    return (ours_cpu, peer_cpu), (ours_wall, peer_wall)


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
                fast += [seconds(ours, path, 1)[0] for _ in range(8)]
                slow.append(seconds(peer, path, 1)[0])
            our_seconds, peer_seconds = statistics.median(fast), statistics.median(slow)
            ratio = peer_seconds / our_seconds
            print(f"{name:24} {1000 * our_seconds:9.1f} {1000 * peer_seconds:9.1f} {ratio:6.1f}x {difference:11.1e}")
        for clock, (our_seconds, peer_seconds) in zip(
            ("processor", "wall"), in_two_processes(paths["JPEG"], repeats, each=24)
        ):
            name = f"JPEG, two, {clock}"
            print(f"{name:24} {1000 * our_seconds:9.1f} {1000 * peer_seconds:9.1f} {peer_seconds / our_seconds:6.1f}x")


if __name__ == "__main__":
    main()
