"""What is found out about records before training, and what is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumen_hpc import nvila
from lumen_hpc.config import schema
from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.data import images, phantom
from lumen_hpc.data.records import Records, read_jsonl, write_jsonl
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import chat
from lumen_hpc.training import lengths, record_index
from lumen_hpc.training.layout import SharedSequence
from lumen_hpc.training.lengths import Measure
from lumen_hpc.training.samples import Batcher, Pictures
from tests.training import tiny


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("tiny"), patients=4)


pytestmark = pytest.mark.usefixtures("alone")


def index(dataset, folder, rows=None, **changes):
    """The index of some rows, by default the dataset's."""
    folder.mkdir(exist_ok=True)
    path = dataset / "records.jsonl"
    if rows is not None:
        path = folder / "changed.jsonl"
        write_jsonl(path, rows)
    return record_index.build(
        Records(path),
        nvila.Preprocessor.open(dataset / "base"),
        Ranks(),
        folder=folder,
        **{"max_tokens": 512, "on_bad": "stop", "version": "1", **changes},
    )


def rows(dataset):
    return list(read_jsonl(dataset / "records.jsonl"))


def test_a_record_counts_under_the_kind_that_the_mixture_names(dataset, tmp_path):
    changed = rows(dataset)[:6]
    types = ("view", "level", "difference", "prediction", "outcome", "timeline")
    for row, type in zip(changed, types, strict=True):
        row["meta"]["type"] = type
    kinds = index(dataset, tmp_path / "kinds", changed).kinds.tolist()
    assert kinds == ["diagnostic", "diagnostic", "difference", "prediction", "outcome", "timeline"]
    assert set(kinds) == set(schema.KINDS)


@pytest.mark.parametrize("form", ["resize", "dynamic", "dynamic_s2"])
def test_counts_from_headers_equal_the_encoded_samples(tmp_path, form):
    dataset = tiny.make(tmp_path, patients=2, aspect=form, image=(150, 90))
    found = index(dataset, tmp_path / "out", max_tokens=8192)
    samples = nvila.Preprocessor.open(dataset / "base")(rows(dataset), inline=True).samples
    assert (found.prefix + found.suffix).tolist() == [len(sample) for sample in samples]
    assert found.supervised.tolist() == [sample.supervised for sample in samples]
    assert set(found.kinds) == {"diagnostic", "difference", "prediction"}


def test_a_packed_group_is_no_longer_than_the_index_says(dataset, tmp_path):
    found = index(dataset, tmp_path / "out")
    samples = nvila.Preprocessor.open(dataset / "base")(rows(dataset), inline=True).samples
    for group in range(found.groups.max() + 1):
        of = np.flatnonzero(found.groups == group)
        estimate = found.prefix[of[0]] + found.suffix[of].sum()
        packed = nvila.packed_length([samples[i] for i in of])
        assert packed <= estimate <= packed + 8 * len(of)


def test_a_second_call_reads_what_the_first_wrote_unless_the_records_changed(dataset, tmp_path):
    first = index(dataset, tmp_path / "out")
    changed = [{**row, "id": row["id"] + "x"} for row in rows(dataset)]
    assert index(dataset, tmp_path / "out", changed).ids.tolist() == first.ids.tolist()
    assert index(dataset, tmp_path / "out", changed, version="2").ids.tolist() == [i + "x" for i in first.ids]


def one_by_one(record, prepare):
    """Tokens by the encoding's own list of offsets: what can be shared, the others, those of answers."""
    messages = prepare.tokenizer.escape_controls(
        chat.place_images(record["conversations"], [1] * len(record["images"]), "", True)
    )
    ids, labels = chat.encode(messages, prepare.tokenizer)
    text, _ = chat.render(messages, generation=False)
    question = messages[0]["value"].strip()
    end = text.index(question) + len(question.rpartition("\n")[0])
    offsets = prepare.tokenizer.backend.encode(text, add_special_tokens=False).offsets
    prefix = sum(stop <= end for _, stop in offsets)
    return prefix, len(ids) - prefix, int((labels[1:] != chat.IGNORE).sum())


def test_texts_encoded_at_once_count_as_each_alone(dataset):
    prepare = nvila.Preprocessor.open(dataset / "base")
    odd = rows(dataset)
    odd[0]["conversations"][1]["value"] = "  ünïcödé 😀 肺 e\u0301dema,\n\ntwo paragraphs  "
    odd[1]["conversations"][0]["value"] = "<image>\n\n  is there\tan <|im_end|> 😀\n肺 edema? "
    odd[2]["conversations"] += [{"from": "human", "value": "and here?"}, {"from": "gpt", "value": "no\u00a0."}]
    odd[3]["conversations"][0]["value"] = "<image>one line"
    found = lengths.measure(odd, prepare)
    for record, counted in zip(odd, found):
        prefix, suffix, supervised = one_by_one(record, prepare)
        more = sum(sum(lengths._placeholder_tokens(size, prepare.config)) - 1 for size in lengths.image_sizes(record))
        assert (counted.prefix, counted.suffix, counted.supervised) == (prefix + more, suffix, supervised)


def test_a_stopped_index_goes_on_from_the_blocks_that_it_measured(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(record_index, "BLOCK", 3)
    whole = index(dataset, tmp_path / "whole")
    assert not (tmp_path / "whole" / record_index.PARTS).exists()
    measured: list[str] = []

    def counting(some, preprocessor):
        measured.extend(record["id"] for record in some)
        return lengths.measure(some, preprocessor)

    monkeypatch.setattr(record_index, "measure", counting)
    stopped = index(dataset, tmp_path / "out", should_stop=lambda: len(measured) >= 6)
    assert stopped is None and len(measured) == 6
    again = index(dataset, tmp_path / "out")
    assert measured == [row["id"] for row in rows(dataset)]  # none twice
    for name, column in vars(whole).items():
        assert np.array_equal(getattr(again, name), column), name


def test_a_block_of_other_records_or_cut_off_is_measured_again(dataset, tmp_path):
    part = tmp_path / "out" / record_index.PARTS / "000000.npz"
    part.parent.mkdir(parents=True)
    whole = index(dataset, tmp_path / "whole")
    np.savez(part, version="another", rows=np.zeros(3))
    assert index(dataset, tmp_path / "out").ids.tolist() == whole.ids.tolist()
    part.parent.mkdir()
    part.write_bytes(b"PK cut off")
    assert index(dataset, tmp_path / "out", version="2").ids.tolist() == whole.ids.tolist()


def test_which_samples_go_together_and_in_what_order_does_not_hang_on_where_the_images_lie(dataset, tmp_path):
    here = index(dataset, tmp_path / "here")
    names = sorted({image for row in rows(dataset) for image in row["images"]}, reverse=True)
    moved = {image: tmp_path / f"{number}{Path(image).suffix}" for number, image in enumerate(names)}
    for image, link in moved.items():
        link.symlink_to(image)
    there = [{**row, "images": [str(moved[image]) for image in row["images"]]} for row in rows(dataset)]
    assert index(dataset, tmp_path / "there", there).groups.tolist() == here.groups.tolist()


def spoil(dataset, tmp_path, how):
    bad = rows(dataset)
    if how == "missing image":
        bad[3]["images"] = ["nowhere/x.png"]
    elif how == "unreadable image":
        file = tmp_path / "broken.png"
        file.write_bytes(b"no image")
        bad[3]["images"] = [str(file)]
    elif how == "empty answer":
        bad[3]["conversations"][1]["value"] = " \n"
    elif how == "no answer":
        del bad[3]["conversations"][1]
    elif how in ("image of 16 bits", "image that exif turns"):
        pixels, exif = Image.new("L", (64, 64), 9), Image.Exif()
        exif[0x0112] = 6
        file = tmp_path / "odd.jpg"
        if how == "image of 16 bits":
            file = file.with_suffix(".png")
            Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(file)
        else:
            pixels.save(file, exif=exif)
        bad[3]["images"] = [str(file)]
        bad[3]["meta"].pop("sizes", None)
    elif how in ("image of two pages", "png that exif turns"):
        one, file = Image.new("L", (64, 64), 9), tmp_path / ("odd.tif" if "pages" in how else "odd.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        more = {"save_all": True, "append_images": [Image.new("L", (64, 64), 90)]} if "pages" in how else {"exif": exif}
        one.save(file, **more)
        bad[3]["images"] = [str(file)]
        bad[3]["meta"].pop("sizes", None)
    elif how == "absurd image":
        file = tmp_path / "absurd.png"
        file.write_bytes(png_of(20000, 20000))
        bad[3]["images"] = [str(file)]
        bad[3]["meta"].pop("sizes", None)
    elif how in FIELDS:
        FIELDS[how](bad[3])
    else:
        bad[3]["conversations"][0]["value"] += " and so on" * 300
    return bad


def png_of(width, height):
    """A PNG's header without its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def turn(number, value):
    return lambda record: record["conversations"][number].update(value=value)


def further(question, answer):
    return lambda record: record["conversations"].extend(
        [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    )


FIELDS = {
    "answer null": turn(1, None),
    "answer a number": turn(1, 4),
    "question null": turn(0, None),
    "question of images alone": turn(0, "<image>\n"),
    "image in an answer": turn(1, "As <image> shows, yes."),
    "image in a later question": further("and <image> here?", "yes"),
    "later answer empty": further("and here?", " "),
    "later answer null": further("and here?", None),
    "images null": lambda record: record.update(images=None),
    "images a number": lambda record: record.update(images=[3]),
    "meta null": lambda record: record.update(meta=None),
    "type null": lambda record: record.update(meta={"type": None}),
    "answer of signs that no one sees": turn(1, "\N{ZERO WIDTH SPACE} \N{WORD JOINER}\ufeff"),
    "answer of dashes": turn(1, "--- \N{EM DASH}"),
    "question of signs": turn(0, "<image>\n ?"),
    "senders of another kind": lambda record: [turn.update({"from": "user"}) for turn in record["conversations"]],
    "image by its own name": lambda record: record.update(image=record.pop("images")[0]),
    "images one path": lambda record: record.update(images=record["images"][0]),
    "image as an object": lambda record: record.update(images=[{"path": record["images"][0]}]),
    "image as a link": lambda record: record.update(images=["file://" + record["images"][0]]),
    "text in parts": turn(0, [{"type": "text", "text": "<image>\nwhat?"}]),
    "type unknown": lambda record: record["meta"].update(type="vqa"),
    "type in capitals": lambda record: record["meta"].update(type="Difference"),
    "sizes of other images": lambda record: record["meta"].update(sizes=[[64, 64], [64, 64]]),
    "sizes empty": lambda record: record["meta"].update(sizes=[[0, 64]]),
    "sizes as text": lambda record: record["meta"].update(sizes=[["64", "64"]]),
    "sizes an object": lambda record: record["meta"].update(sizes={"width": 64}),
    "needed images as text": lambda record: record["meta"].update(needed_images="1"),
    "sizes of true": lambda record: record["meta"].update(sizes=[[True, True]]),
    "needed images true": lambda record: record["meta"].update(needed_images=True),
    "needed images below none": lambda record: record["meta"].update(needed_images=-1),
    "a NUL byte in an answer": turn(1, "Yes\0, edema."),
    "a colour of the terminal in an answer": turn(1, "\x1b[31mYes."),
    "a lost letter in a question": turn(0, "<image>\nis there ede\ufffdma?"),
    "answer nan": turn(1, "nan"),
    "answer null as text": turn(1, " Null. "),
    "answer of a script": turn(1, "[object Object]"),
    "answer of a sheet": turn(1, "#N/A"),
    "answer no time": turn(1, "NaT"),
    "question undefined": turn(0, "<image>\nundefined"),
    "image of a long name": lambda record: record.update(images=["a" * 5000]),
    "image a folder": lambda record: record.update(images=["."]),
    "conversations null": lambda record: record.update(conversations=None),
    "conversations of text": lambda record: record.update(conversations=["what?", "this"]),
}
REASONS = {
    "missing image": "nowhere/x.png is missing",
    "unreadable image": "broken.png: cannot be read",
    "empty answer": "its answer is empty",
    "no answer": "not a human turn with an answer",
    "absurd image": "absurd.png: cannot be read",
    "answer null": "its answer is not text (turn 2)",
    "answer a number": "its answer is not text (turn 2)",
    "question null": "its question is not text (turn 1)",
    "question of images alone": "its question is empty (turn 1)",
    "image in an answer": "<image> is in turn 2",
    "image in a later question": "<image> is in turn 3",
    "later answer empty": "its answer is empty (turn 4)",
    "later answer null": "its answer is not text (turn 4)",
    "images null": "its images are not a list of paths",
    "images a number": "its images are not a list of paths",
    "meta null": "it has no meta.type",
    "type null": "it has no meta.type",
    "answer of signs that no one sees": "its answer is empty (turn 2)",
    "answer of dashes": "its answer is empty (turn 2)",
    "question of signs": "its question is empty (turn 1)",
    "senders of another kind": "not a human turn with an answer",
    "image by its own name": "its images are not a list of paths",
    "images one path": "its images are not a list of paths",
    "image as an object": "its images are not a list of paths",
    "image as a link": "is missing",
    "text in parts": "its question is not text (turn 1)",
    "type unknown": "its meta.type is none of abnormality,",
    "type in capitals": "its meta.type is none of abnormality,",
    "sizes of other images": "its meta.sizes are not a [width, height]",
    "sizes empty": "its meta.sizes are not a [width, height]",
    "sizes as text": "its meta.sizes are not a [width, height]",
    "sizes an object": "its meta.sizes are not a [width, height]",
    "needed images as text": "its meta.needed_images is not a whole number",
    "sizes of true": "its meta.sizes are not a [width, height]",
    "needed images true": "its meta.needed_images is not a whole number",
    "needed images below none": "its meta.needed_images is not a whole number",
    "a NUL byte in an answer": "its answer has control characters or lost ones (turn 2)",
    "a colour of the terminal in an answer": "its answer has control characters or lost ones (turn 2)",
    "a lost letter in a question": "its question has control characters or lost ones (turn 1)",
    "answer nan": "its answer is a missing value (turn 2)",
    "answer null as text": "its answer is a missing value (turn 2)",
    "answer of a sheet": "its answer is a missing value (turn 2)",
    "answer no time": "its answer is a missing value (turn 2)",
    "answer of a script": "its answer is a missing value (turn 2)",
    "question undefined": "its question is a missing value (turn 1)",
    "image of a long name": "is missing",
    "image a folder": "image . is missing",
    "conversations null": "its conversations are not a list of turns",
    "conversations of text": "its conversations are not a list of turns",
    "image of 16 bits": "odd.png: more than 8 bits a pixel",
    "image that exif turns": "odd.jpg: its pixels are stored turned or mirrored",
    "image of two pages": "odd.tif: it holds 2 pictures",
    "png that exif turns": "odd.png: its pixels are stored turned or mirrored",
    "too long": "more than train.max_tokens=512",
}


@pytest.mark.parametrize("how", REASONS)
def test_a_bad_record_stops_or_is_left_out_and_never_replaced(dataset, tmp_path, how):
    bad = spoil(dataset, tmp_path, how)
    with pytest.raises(UserError, match=r"1 of \d+ records are bad; the first is record 4") as stopped:
        index(dataset, tmp_path / "stop", bad)
    assert REASONS[how] in str(stopped.value) and bad[3]["id"] in str(stopped.value)
    found = index(dataset, tmp_path / "skip", bad, on_bad="skip")
    assert found.ids.tolist() == [row["id"] for row in bad if row is not bad[3]]
    rejected = [json.loads(line) for line in (tmp_path / "skip" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["id"], row["row"]) for row in rejected] == [(bad[3]["id"], 3)]
    assert REASONS[how] in rejected[0]["reason"]


@pytest.mark.parametrize("sizes", [[], [None], None])
def test_sizes_that_are_not_known_are_read_from_the_files(dataset, tmp_path, sizes):
    plain, bare = index(dataset, tmp_path / "plain"), rows(dataset)
    for row in bare:
        row["meta"]["sizes"] = sizes and sizes * len(row["images"])
    assert index(dataset, tmp_path / "bare", bare).prefix.tolist() == plain.prefix.tolist()


@pytest.mark.parametrize("without", [[3], [3, 5]])
def test_a_record_without_an_id_is_a_bad_record_like_any_other(dataset, tmp_path, without):
    bad = rows(dataset)
    bad[3].pop("id")
    bad[without[-1]]["id"] = None
    with pytest.raises(UserError, match=rf"{len(without)} of \d+ records are bad; the first is record 4: it has no id"):
        index(dataset, tmp_path / "stop", bad)
    found = index(dataset, tmp_path / "skip", bad, on_bad="skip")
    assert found.ids.tolist() == [row["id"] for at, row in enumerate(bad) if at not in without]
    rejected = [json.loads(line) for line in (tmp_path / "skip" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["id"], row["row"], row["reason"]) for row in rejected] == [("", at, "it has no id") for at in without]


def test_records_of_which_none_has_an_id_are_refused_whatever_the_setting(dataset, tmp_path):
    bare = [{key: value for key, value in row.items() if key != "id"} for row in rows(dataset)]
    with pytest.raises(UserError, match=r"none of the \d+ records can be trained on; the first: it has no id"):
        index(dataset, tmp_path, bare, on_bad="skip")


def test_a_line_that_is_no_record_is_named_whatever_the_setting(dataset, tmp_path):
    prepare = nvila.Preprocessor.open(dataset / "base")
    lines = (dataset / "records.jsonl").read_text().splitlines()
    file = tmp_path / "broken.jsonl"
    for line, message in ((lines[4][:40], "broken.jsonl line 5: not JSON"), ("[]", "line 5: a list where a JSON")):
        file.write_text("\n".join([*lines[:4], line, *lines[5:]]))
        with pytest.raises(UserError, match=message):
            record_index.build(
                Records(file), prepare, Ranks(), folder=tmp_path, max_tokens=512, on_bad="skip", version="1"
            )


def test_an_unforeseen_error_names_its_record_to_every_rank(dataset, tmp_path, monkeypatch):
    def failing(some, preprocessor):
        if any(record["id"] == name for record in some):
            raise KeyError("tokenizer")
        return [Measure(1, 1, 1)] * len(some)

    name = rows(dataset)[2]["id"]
    monkeypatch.setattr(record_index, "measure", failing)
    with pytest.raises(UserError, match="record 3: KeyError"):
        index(dataset, tmp_path / "out", on_bad="skip")


def test_sizes_in_a_record_replace_the_reading_of_headers(dataset, tmp_path, monkeypatch):
    plain = index(dataset, tmp_path / "plain")
    sized = rows(dataset)
    for row in sized:
        row["meta"]["sizes"] = [list(lengths.image_size(image)) for image in row["images"]]
    monkeypatch.setattr(lengths, "image_size", None)
    found = index(dataset, tmp_path / "sized", sized)
    assert (found.prefix.tolist(), found.suffix.tolist()) == (plain.prefix.tolist(), plain.suffix.tolist())


def test_nothing_to_train_on_and_doubled_ids_are_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="no record"):
        index(dataset, tmp_path / "none", [])
    doubled = rows(dataset)
    doubled[5]["id"] = doubled[2]["id"]
    with pytest.raises(UserError, match=doubled[2]["id"]):
        index(dataset, tmp_path / "doubled", doubled)


def test_an_image_that_breaks_after_it_was_indexed_stops_the_training_and_is_named(dataset, tmp_path):
    changed = rows(dataset)
    image = tmp_path / "image.png"
    image.write_bytes(Path(changed[2]["images"][0]).read_bytes())
    changed[2]["images"] = [str(image)]
    found = index(dataset, tmp_path / "out", changed)
    batcher = Batcher(changed, found, nvila.Preprocessor.open(dataset / "base"), Pictures())
    assert batcher.build([SharedSequence((2,), 1)]).samples.tolist() == [2] * int(found.supervised[2])
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"record {changed[2]['id']}: .*image\.png"):
        batcher.build([SharedSequence((2,), 1)])


def test_sizes_that_are_not_those_of_the_image_stop_the_training_and_are_named(tmp_path):
    dataset = tiny.make(_folder(tmp_path / "tiny"), patients=2, aspect="dynamic", image=(150, 90))
    changed = rows(dataset)
    changed[2]["meta"]["sizes"] = [[90, 450]] * len(changed[2]["images"])
    found = index(dataset, tmp_path / "out", changed, max_tokens=8192)
    batcher = Batcher(changed, found, nvila.Preprocessor.open(dataset / "base"), Pictures())
    with pytest.raises(UserError, match=f"record {changed[2]['id']} has other tokens"):
        batcher.build([SharedSequence((2,), 1)])


def _folder(path):
    path.mkdir()
    return path


def test_dicoms_are_counted_and_read_as_their_jpgs(dataset, tmp_path):
    phantom.write(tmp_path / "phantom", Phantom(patients=1, dicom_every=1, size=100), seed=0)
    pairs = [
        (str(file), str(next((tmp_path / "phantom" / "mimic-cxr").rglob(f"{file.stem}.dcm"))))
        for file in (tmp_path / "phantom" / "mimic-cxr-jpg").rglob("*.jpg")
    ]
    changed = [{**row, "images": list(pair[:1])} for row, pair in zip(rows(dataset)[:2], pairs)]
    dicoms = [{**row, "id": row["id"] + "d", "images": list(pair[1:])} for row, pair in zip(rows(dataset)[:2], pairs)]
    found = index(dataset, tmp_path / "out", changed + dicoms)
    assert found.prefix[:2].tolist() == found.prefix[2:].tolist()
    batcher = Batcher(changed + dicoms, found, nvila.Preprocessor.open(dataset / "base"), Pictures())
    jpg, dicom = (batcher.build([SharedSequence((i,), 1)]).batch.tiles.float() for i in (0, 2))
    assert (jpg - dicom).abs().mean() < 3  # the JPG was compressed


def test_the_content_of_an_image_and_not_its_name_says_how_it_is_read(dataset, tmp_path):
    phantom.write(tmp_path / "phantom", Phantom(patients=1, dicom_every=1, size=100), seed=0)
    dicom, jpg = (next((tmp_path / "phantom").rglob(f"*.{ending}")) for ending in ("dcm", "jpg"))
    for file, ending in ((dicom, ".jpg"), (dicom, ""), (jpg, ".dcm"), (jpg, ".png")):
        named = tmp_path / f"image{ending}"
        named.write_bytes(file.read_bytes())
        expected = images.grey_levels(file)
        assert lengths.image_size(str(named)) == expected.shape[::-1]
        lengths.image_size.cache_clear()
        for pictures in (Pictures(), Pictures(cache_gb=1)):
            picture = pictures.open(str(named))
            read = picture if isinstance(picture, np.ndarray) else np.array(Image.open(picture))
            assert np.array_equal(read, expected)


def test_kept_pictures_are_the_same_and_stay_within_their_room(dataset):
    paths = sorted({path for row in rows(dataset) for path in row["images"]})
    pictures = Pictures(cache_gb=3 * 64 * 64 / 2**30)
    for path in [*paths, *paths]:
        assert np.array_equal(pictures.open(path), np.array(Image.open(path)))
    assert pictures.open(paths[-1]) is pictures.open(paths[-1])
    assert Pictures().open(paths[0]) == paths[0]
    assert len(pictures._cache) == 3
