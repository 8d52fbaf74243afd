"""A marker planted in every text of the restricted data, and a search for it in all that a failing stage leaves."""

from __future__ import annotations

import errno
import json
import os
import struct
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import evaluate, experts, export, instruct, judge, outcomes, predict, prepare, prognose, rewrite, train
from lumen_hpc.cluster import plan, worker
from lumen_hpc.cluster.attempts import Attempts
from lumen_hpc.cluster.redaction import describe
from lumen_hpc.cluster.stage import Run, Step
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import EngineSettings, Settings
from lumen_hpc.data import images
from lumen_hpc.data.mimic_cxr import _view
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.errors import UserError
from lumen_hpc.serving import media
from lumen_hpc.training.lengths import image_size
from tests.data.small_dataset import METADATA, MIMIC_ALL, QUESTIONS, SPLIT, Dataset

MARKER = "Zebrowski"
"""As a patient's name would look."""
DATA = {"rejected.jsonl"}
"""Files that hold the data themselves, by design, in the run's private folder."""


class Quiet:
    """A watchdog that never barks."""

    def beat(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture
def run(tmp_path) -> Run:
    settings = Settings()
    settings.data.source = "mimic"
    settings.prepare.images = "none"
    settings.rewrite.shards = 1
    return Run(tmp_path / "run", settings, Profile())


@pytest.fixture
def fail(run, monkeypatch, capsys, caplog) -> Callable[..., str]:
    """Runs one shard of a stage as its job would; returns all that it printed, logged and wrote, and it must fail."""

    def failing(stage, model: str = "") -> str:
        monkeypatch.setattr(plan, "inputs", lambda *_: {index: "inputs" for index in range(64)})
        step = Step(stage.STAGE, model)
        attempts = Attempts(run, step, 0, 0)
        (run.folder / step.name).mkdir(parents=True, exist_ok=True)
        task = worker.Task(run, step)
        assert worker._Writer(task, [step], attempts, Quiet()).write([0]) == 1, "the stage was meant to fail"
        printed = capsys.readouterr()
        files = [path for path in (run.folder / step.name).rglob("*") if path.is_file() and path.name not in DATA]
        content = "\n".join(path.read_bytes().decode(errors="replace") for path in files)
        assert "failures.jsonl" in {path.name for path in files}
        return f"{printed.out}\n{printed.err}\n{caplog.text}\n{content}"

    return failing


def rows(**fields: object) -> list[dict]:
    """A question whose texts hold the marker."""
    row = {
        "question_id": "q1", "subject_id": 1, "study_id": 2, "ref_study_id": None, "type": "presence",
        "question": f"is there {MARKER}?", "short_answer": f"yes {MARKER}", "closed": False, "interval_days": None,
        "split": "test",
    }  # fmt: skip
    return [row | fields]


CELLS = [
    *((QUESTIONS, column) for column in range(7)),
    *((METADATA, column) for column in (0, 1, 2, 7, 8, 10)),
    *((SPLIT, column) for column in range(4)),
    *((MIMIC_ALL, column) for column in (0, 1, 2, 5)),
]


@pytest.mark.parametrize(("table", "column"), CELLS)
def test_prepare_names_the_column_and_not_the_text(run, fail, tmp_path, table, column):
    dataset = Dataset(tmp_path / "data")
    dataset.tables[table][1][column] = MARKER
    dataset.tables[QUESTIONS][2][5] = "the answer is outside the grammar"  # so that it fails in any case
    dataset.write()
    run.settings.data.mimic_cxr, run.settings.data.diff_vqa = dataset.data.mimic_cxr, dataset.data.diff_vqa
    assert MARKER not in fail(prepare)


@pytest.mark.parametrize(
    ("position", "code"), [(MARKER, ""), ("", MARKER), (f"PA {MARKER}", ""), (f"PA-{MARKER}", "x")]
)
def test_a_text_in_a_column_of_views_is_no_view(tmp_path, position, code):
    """The report has a row for each view."""
    dataset = Dataset(tmp_path / "data")
    for row in dataset.tables[METADATA][1:]:
        row[4], row[10] = position, code
    dataset.write().run()
    text = (dataset.out / "studies.jsonl").read_text()
    assert MARKER not in text and '"view":"other"' in text


@pytest.mark.parametrize(
    "text", ["PA", "AP", "LATERAL", "LL", "AP AXIAL", "AP LLD", "PA RLD", "XTABLE LATERAL", "SWIMMERS", "LAO", "RPO",
             "left lateral", "postero-anterior", ""],
)  # fmt: skip
def test_the_views_of_the_release_stay(text):
    view, _ = _view(text, "")
    assert view == text


@pytest.mark.parametrize("table", [QUESTIONS, METADATA, SPLIT, MIMIC_ALL])
def test_prepare_prints_no_record_where_the_header_is_missing(run, fail, tmp_path, table):
    dataset = Dataset(tmp_path / "data")
    dataset.tables[table][0] = [MARKER] * len(dataset.tables[table][0])
    dataset.write()
    run.settings.data.mimic_cxr, run.settings.data.diff_vqa = dataset.data.mimic_cxr, dataset.data.diff_vqa
    assert MARKER not in fail(prepare)


@pytest.mark.parametrize(
    "defect", [{}, {"type": MARKER}, {"type": "difference"}, {"question": 5}, {"short_answer": None}]
)
def test_rewrite_names_the_question_and_not_its_text(run, fail, defect):
    write_jsonl(run.folder / "prepare" / "questions.jsonl", rows(**defect))
    assert MARKER not in fail(rewrite)


def test_rewrite_with_a_broken_line_of_json(run, fail):
    path = run.folder / "prepare" / "questions.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"question_id": "{MARKER}, \n')
    assert MARKER not in fail(rewrite)


def test_instruct_names_the_question_and_not_its_text(run, fail):
    write_jsonl(run.folder / "prepare" / "questions.jsonl", rows(type=MARKER))
    write_jsonl(run.folder / "prepare" / "studies.jsonl", [{"study_id": 2, "subject_id": 1, "image": MARKER}])
    assert MARKER not in fail(instruct)


def record(**fields: object) -> dict:
    meta = rows()[0] | {"long_answer": f"There is {MARKER}."}
    turns = [{"from": "human", "value": f"<image>\n{MARKER}?"}, {"from": "gpt", "value": MARKER}]
    return {"id": "q1", "images": ["/nowhere/x.jpg"], "conversations": turns, "meta": meta} | fields


@pytest.mark.parametrize("engine", ["grammar", "server"])
def test_judge_prints_no_answer(run, fail, monkeypatch, engine):
    monkeypatch.setattr("lumen_hpc.language.server_engine.RETRIES", 0)
    run.settings.judge.engine = EngineSettings(kind=engine, model="m", endpoint="http://127.0.0.1:9/v1")
    run.profile.data_use.endpoints = ["http://127.0.0.1:9"]
    run.settings.predict.shards = 1
    write_jsonl(run.folder / "instruct" / "lumen-test.jsonl", [record()])
    answer = {"question_id": "q1", "model": "lumen", "answer": MARKER if engine == "server" else {MARKER: MARKER}}
    write_jsonl(run.folder / "predict-lumen" / "shard-00000-of-00001.jsonl", [answer])
    assert MARKER not in fail(judge, "lumen")


@pytest.mark.parametrize("defect", [{}, {"conversations": [{"from": MARKER, "value": MARKER}]}, {"meta": {MARKER: 1}}])
def test_predict_names_the_record_and_not_its_text(run, fail, monkeypatch, defect):
    from lumen_hpc.nvila.tiny import make_tiny
    from lumen_hpc.training.predict import NativeAnswerer, Predictor

    model = make_tiny(["is there edema?"])
    monkeypatch.setattr(
        "lumen_hpc.serving.predictor.open_predictor",
        lambda weights, settings, model=model, **_: Predictor(NativeAnswerer(tiny, 1024), settings, "nvila"),
    )
    tiny = model
    run.settings.predict.shards = 1
    write_jsonl(run.folder / "instruct" / "lumen-test.jsonl", [record(**defect)])
    assert MARKER not in fail(predict, "nvila")


@pytest.mark.parametrize("defect", [{"conversations": [{"from": MARKER, "value": MARKER}]}, {"meta": {MARKER: 1}}])
def test_prognose_names_the_question_and_not_its_text(run, fail, monkeypatch, defect):
    from lumen_hpc.nvila.tiny import make_tiny
    from lumen_hpc.training.predict import NativeAnswerer, Predictor

    model = make_tiny(["is there edema?"])

    def open_predictor(weights: Path, settings: object, **_: object) -> Predictor:
        return Predictor(NativeAnswerer(model, 1024), settings, "lumen")

    monkeypatch.setattr("lumen_hpc.serving.predictor.open_predictor", open_predictor)
    run.settings.predict.shards = 1
    write_jsonl(run.folder / "instruct" / "outcomes-test.jsonl", [record(**defect)])
    assert MARKER not in fail(prognose, "lumen-outcomes")


@pytest.mark.parametrize("broken", [False, True])
def test_export_that_would_publish_a_record_does_not_repeat_it(run, fail, monkeypatch, broken):
    sentence = f"The patient {MARKER} has a small left pleural effusion."
    card = run.folder / "export-lumen" / "README.md"

    def publish(source: Path, target: Path, text: str) -> list[Path]:
        card.write_text(f"Trained on: {sentence}")
        target.mkdir()
        return [card]

    monkeypatch.setattr("lumen_hpc.nvila.config_files.read_config", lambda folder: None)
    monkeypatch.setattr("lumen_hpc.serving.model_card.model_card", lambda *_, **__: "")
    monkeypatch.setattr("lumen_hpc.serving.export.export", publish)
    turns = {MARKER: sentence} if broken else [{"from": "gpt", "value": sentence}]
    write_jsonl(run.folder / "instruct" / "lumen-train.jsonl", [{"id": "q1", "conversations": turns}])
    try:
        output = fail(export, "lumen")
    finally:
        card.unlink()
    assert MARKER not in output.replace(f"Trained on: {sentence}", "")
    assert not list((run.folder / "export-lumen").glob("*-lumen")), broken


@pytest.mark.parametrize("stage", [evaluate, experts, outcomes, train])
def test_the_other_stages_print_no_record_of_theirs(run, fail, stage):
    write_jsonl(run.folder / "instruct" / "lumen-test.jsonl", [{MARKER: MARKER}])
    write_jsonl(run.folder / "instruct" / "lumen-train.jsonl", [{MARKER: MARKER}])
    (run.folder / "prepare").mkdir(parents=True)
    for name in ("studies.jsonl", "questions.jsonl"):
        write_jsonl(run.folder / "prepare" / name, [{MARKER: MARKER, "study_id": MARKER, "image": MARKER}])
    run.settings.train.base = run.settings.data.mimic_iv = str(run.folder)
    assert MARKER not in fail(stage, "lumen" if stage is train else "")


def raised(error: BaseException, cause: BaseException | None = None, note: str = "") -> BaseException:
    if note:
        error.add_note(note)
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        raised(KeyError(MARKER)),
        raised(ValueError(f"invalid literal: {MARKER}")),
        raised(RuntimeError(MARKER)),
        raised(UnicodeDecodeError("utf-8", MARKER.encode(), 0, 1, MARKER)),
        raised(UserError("question q1 is wrong"), KeyError(MARKER)),
        raised(OSError("no space"), KeyError(MARKER)),
        raised(OSError(f"required argument is not an integer for data_element: {MARKER}")),  # as pydicom's
        raised(OSError(errno.ENAMETOOLONG, "File name too long", f"{MARKER} has a small effusion")),
        raised(OSError(errno.ENOSPC, "No space left on device"), note=f"while writing {MARKER}"),
        raised(MemoryError(), note=MARKER),
    ],
)
def test_an_unforeseen_error_keeps_its_type_and_its_places_only(error):
    assert MARKER in "".join(traceback.format_exception(error)), "the attack must work without the guard"
    message, text = describe(error, restricted=True)
    assert MARKER not in message + text.replace("MARKER", "")
    assert type(error).__name__ in message and Path(__file__).name in text
    message, _ = describe(error, restricted=False)
    assert "left out" not in message


def test_an_engine_in_this_process_logs_no_prompt(tmp_path, caplog, capfd, monkeypatch):
    from lumen_hpc.language.engine import open_engine
    from lumen_hpc.language.vllm_engine import prepare_process
    from sandbox.small_models import tiny_llama

    caplog.set_level("WARNING")
    engine = open_engine(
        EngineSettings(kind="transformers", model=str(tiny_llama(tmp_path / "m")), dtype="float32", max_model_len=4096)
    )
    conversation = [[{"role": "user", "content": f"{MARKER} {MARKER}<|im_end|> "}]]
    engine.chat(conversation, max_tokens=2, temperature=0.7, seed=1)
    engine.chat(conversation, max_tokens=2, temperature=0.0, seed=1, choices=["1", "2"])
    output = "".join(capfd.readouterr()) + caplog.text
    assert MARKER not in output
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_CACHE_ROOT", "VLLM_PORT", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    prepare_process()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "WARNING"


def test_the_server_logs_no_request(tmp_path):
    from lumen_hpc.config.schema import Serve
    from lumen_hpc.serving import supervisor

    words = supervisor.server_arguments(Serve(), tmp_path, tmp_path / "t", "float32", "127.0.0.1", 1, False)
    assert {"--disable-log-stats", "--disable-uvicorn-access-log"} <= set(words)
    assert not {word for word in words if "log-requests" in word or "log-outputs" in word}


def test_errors_of_the_machine_keep_their_message():
    message, _ = describe(TimeoutError("no progress for 600 s"), restricted=True)
    assert message == "TimeoutError: no progress for 600 s", "what the watchdog records, triage looks for"
    with pytest.raises(FileNotFoundError) as caught:
        Path("/nowhere/weights.safetensors").read_bytes()
    assert "/nowhere/weights.safetensors" in describe(caught.value, restricted=True)[0]
    message, _ = describe(raised(OSError(28, "No space left on device")), restricted=True)
    assert "No space left" in message
    message, _ = describe(raised(UserError("question q1 has no long answer")), restricted=True)
    assert "q1" in message


def test_the_record_of_a_failure_has_the_guarded_text(run):
    attempts = Attempts(run, Step(prepare.STAGE), 0, 0)
    (run.folder / "prepare").mkdir(parents=True)
    attempts.record_failure([0], raised(KeyError(MARKER)))
    row = json.loads((run.folder / "prepare" / "failures.jsonl").read_text())
    assert row["error"].startswith("KeyError: the message is left out") and not row["final"]


ELEMENTS = {
    "NumberOfFrames": 0x00280008, "PhotometricInterpretation": 0x00280004, "SpecificCharacterSet": 0x00080005,
    "SamplesPerPixel": 0x00280002, "BitsStored": 0x00280101, "PixelRepresentation": 0x00280103, "HighBit": 0x00280102,
    "PatientOrientation": 0x00200020, "StudyDate": 0x00080020, "AcquisitionDate": 0x00080022, "Rows": 0x00280010,
    "PatientName": 0x00100010, "PatientID": 0x00100020, "TransferSyntaxUID": 0x00020010,
}  # fmt: skip


READERS = {
    "prepare": images.check, "its headers": images.check_header, "experts": images.decode,
    "training": lambda path: image_size(str(path)), "ask": lambda path: media.decode_picture(path.read_bytes()),
    "its day": lambda path: media.acquisition_day(path.read_bytes()),
    "its patient": lambda path: media.patient(path.read_bytes()),
}  # fmt: skip


@pytest.fixture
def dicom() -> bytes:
    """A DICOM that is read, without any element that an attack repeats."""
    import io

    import pydicom
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PixelRepresentation = 0
    out = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.save_as(out, implicit_vr=True, little_endian=True)
    return out.getvalue()


@pytest.mark.parametrize("element", ELEMENTS)
def test_a_name_in_the_wrong_element_of_a_dicom_is_not_repeated(dicom, element, tmp_path, capfd, caplog):
    tag, at, text = ELEMENTS[element], dicom.index(b"\xe0\x7f\x10\x00"), f"{MARKER} Anna Maria ".encode()
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom[:at] + struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(text)) + text + dicom[at:])
    messages = []
    with warnings.catch_warnings(record=True) as caught_warnings:
        for read in READERS.values():
            try:
                read(path)
            except UserError as error:
                messages.append(str(error))
    printed = capfd.readouterr()
    output = "\n".join(
        [*messages, *(str(one.message) for one in caught_warnings), printed.out, printed.err, caplog.text]
    )
    assert MARKER.lower() not in output.lower() and "[25946" not in output, "nor as numbers"
