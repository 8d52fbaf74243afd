import json

import numpy as np
import pytest
import torch
from PIL import Image

from lumen_hpc.errors import UserError
from lumen_hpc.nvila.cards import cards
from lumen_hpc.nvila.preprocess import Blank, best_grid, normalise, preprocess_images, tile_count

RADIOGRAPH = np.random.default_rng(0).integers(0, 256, (306, 255), dtype=np.uint8)


@pytest.fixture(scope="module")
def radiograph() -> Image.Image:
    return Image.fromarray(RADIOGRAPH).resize((1020, 1224))


def _official_tiles(image, grids, size):
    """PIL's RGB resize, crops and SiglipImageProcessor's arithmetic, written independently."""
    tiles = []
    for columns, rows in grids:
        big = image.convert("RGB").resize((columns * size, rows * size))
        for i in range(columns * rows):
            left, top = (i % columns) * size, (i // columns) * size
            tiles.append(np.asarray(big.crop((left, top, left + size, top + size))))
    scaled = (np.stack(tiles).transpose(0, 3, 1, 2).astype(np.float64) * 0.00392156862745098).astype(np.float32)
    return (scaled - np.float32(0.5)) / np.float32(0.5)


def test_grids_are_the_official_ones(golden):
    for row in json.loads((golden / "tile_grids_448.json").read_text()):
        columns, rows = best_grid(row["width"], row["height"], 448, 1, 12)
        assert columns * rows + (columns * rows > 1) == row["dynamic_tiles"], row
        columns, rows = best_grid(row["width"], row["height"], 448, 9, 12)
        assert [rows, columns] == row["s2_block_rows_cols"], row
        assert 1 + 4 + rows * columns == row["s2_tiles"], row


def test_a_strip_is_one_row_or_one_column():
    assert best_grid(2000, 100, 448, 1, 12) == best_grid(2000, 100, 448, 9, 12) == (12, 1)
    assert best_grid(100, 2000, 448, 1, 12) == best_grid(100, 2000, 448, 9, 12) == (1, 12)


@pytest.mark.parametrize(
    "card, grids",
    [("NVILA-8B", [(1, 1), (2, 2), (3, 4)]), ("NVILA-Lite-8B", [(3, 4), (1, 1)])],
)
def test_pixels_equal_the_official_recipe_in_every_bit(radiograph, card, grids):
    pixels = normalise(preprocess_images([radiograph], cards()[card]).tiles)
    assert np.array_equal(pixels.numpy(), _official_tiles(radiograph, grids, 448))


def test_a_coloured_picture_keeps_its_channels(tiny):
    colours = np.zeros((40, 40, 3), dtype=np.uint8)
    colours[..., 1] = 255
    grey = np.full((40, 40), 7, dtype=np.uint8)
    tiles = preprocess_images([colours, grey], tiny.config).tiles
    assert tiles.shape == (2, 3, 32, 32)
    assert tiles[0, :, 0, 0].tolist() == [0, 255, 0]
    assert tiles[1, :, 0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize("height, width", [(613, 510), (510, 613), (1300, 449), (1224, 1020)])
def test_fast_mode_stays_within_two_grey_levels_even_on_noise(height, width):
    noise = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
    exact, fast = (preprocess_images([noise], cards()["NVILA-8B"], exact=e).tiles.int() for e in (True, False))
    assert (exact - fast).abs().max() <= 2


def test_one_radiograph_has_the_published_number_of_tokens():
    image = np.zeros((3056, 2544), dtype=np.uint8)
    for card, tiles, tokens in [("NVILA-8B", 17, 3073), ("NVILA-Lite-8B", 13, 13 * 122)]:
        config = cards()[card]
        cut = preprocess_images([image], config)
        assert len(cut.tiles) == tiles
        assert sum(config.image_tokens(block) for block in cut.blocks) == tokens


def test_a_path_an_array_and_a_pil_image_give_the_same(tiny, tmp_path):
    Image.fromarray(RADIOGRAPH).save(tmp_path / "a.png")
    ways = [RADIOGRAPH, Image.fromarray(RADIOGRAPH), tmp_path / "a.png", str(tmp_path / "a.png")]
    first, *others = (preprocess_images([way], tiny.config).tiles for way in ways)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("card", ["NVILA-8B", "NVILA-Lite-8B", "one tile"])
@pytest.mark.parametrize("size", [(1020, 1224), (449, 1300), (300, 40)])
def test_a_blank_is_cut_as_a_picture_of_its_size_and_its_tiles_are_counted_without_it(tiny, card, size):
    config = tiny.config if card == "one tile" else cards()[card]
    picture = preprocess_images([Image.new("L", size, 255)], config)
    blank = preprocess_images([Blank(*size)], config)
    assert blank.tiles.shape == picture.tiles.shape and not blank.tiles.any()
    assert (blank.blocks, blank.per_picture) == (picture.blocks, picture.per_picture)
    assert tile_count(size, config) == len(picture.tiles)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_fast_mode_reads_a_jpeg_file_as_pil_does(tiny, tmp_path, radiograph, mode):
    radiograph.convert(mode).save(tmp_path / "a.jpg")
    by_path = preprocess_images([tmp_path / "a.jpg"], tiny.config, exact=False).tiles
    assert torch.equal(by_path, preprocess_images([Image.open(tmp_path / "a.jpg")], tiny.config, exact=False).tiles)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be read as an image"):
        preprocess_images([tmp_path / "cut.jpg"], tiny.config, exact=False)
    with pytest.raises(UserError, match="image 0: cannot be read as an image"):
        preprocess_images([Image.open(tmp_path / "cut.jpg")], tiny.config, exact=False)


def test_a_file_whose_reader_calls_a_value_wrong_is_refused_by_name(tiny, tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 4 4x 255 ")
    with pytest.raises(UserError, match=r"a\.pgm: cannot be read as an image"):
        preprocess_images([tmp_path / "a.pgm"], tiny.config)


@pytest.mark.parametrize(
    "picture, message",
    [
        (np.zeros((4, 4), dtype=np.uint16), "uint16"),
        (np.zeros((4, 4, 4), dtype=np.uint8), "(4, 4, 4)"),
        (Image.new("I;16", (4, 4)), "more than 8 bits"),
        (np.zeros((0, 4), dtype=np.uint8), "an empty picture of 4 x 0 px"),
        ("nowhere.png", "nowhere.png"),
        (7, "a int is no picture"),
        (Image.new("La", (4, 4)), "cannot be read as an image (conversion from La"),
    ],
)
def test_an_unfit_picture_is_refused_by_name(tiny, picture, message):
    with pytest.raises(UserError) as error:
        preprocess_images([np.zeros((4, 4), dtype=np.uint8), picture], tiny.config)
    assert message in str(error.value)
    assert "nowhere" in message or "image 1" in str(error.value)
