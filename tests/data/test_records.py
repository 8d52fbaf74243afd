"""JSON lines: whole or not at all, by position, from any process, and named when broken."""

import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumen_hpc.data.records import Records, read_jsonl, write_jsonl
from lumen_hpc.errors import UserError

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault

ROWS = [{"question_id": "a", "answer": "zwölf\nzeilen "}, {"question_id": "b", "answer": None}, {}]


@calm
@given(rows=st.lists(st.dictionaries(st.text(), st.none() | st.integers(-(2**53), 2**53) | st.text(), max_size=3)))
def test_rows_come_back_in_order_and_by_position(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert write_jsonl(path, rows) == len(rows)
    records = Records(path)
    assert list(read_jsonl(path)) == rows
    assert [records[i] for i in range(len(records))] == rows
    assert records[-2:] == rows[-2:]


def test_records_travel_to_another_process_as_their_path(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    travelled = pickle.dumps(Records(tmp_path / "rows.jsonl"))
    assert len(travelled) < 500
    assert pickle.loads(travelled)[0] == ROWS[0]


def test_a_position_outside_the_file_is_an_index_error(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(IndexError, match="row 3"):
        Records(tmp_path / "rows.jsonl")[3]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)

    def broken():
        yield {"question_id": "new"}
        raise RuntimeError("the engine died")

    with pytest.raises(RuntimeError):
        write_jsonl(path, broken())
    assert list(read_jsonl(path)) == ROWS
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", [b'{"cut": ', b"[1, 2]", b'{"a": "\xff"}'])
def test_a_broken_line_is_named(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n" + bad + b"\n{}\n")
    with pytest.raises(UserError, match=r"rows\.jsonl line 2"):
        list(read_jsonl(path))
    with pytest.raises(UserError, match=r"rows\.jsonl line 2"):
        Records(path)[1]


def test_a_last_line_without_newline_counts(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a":1}\n{"a":2}')
    assert [row["a"] for row in Records(tmp_path / "rows.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    "text", [b'{"a":1}\n{"a":2}\n\n', b'\n{"a":1}\n \t\r\n\n {"a":2}\r\n  \n', b'{"a":1}\n\n{"a":2}']
)
def test_blank_lines_are_no_rows(tmp_path, text):
    (tmp_path / "rows.jsonl").write_bytes(text)
    records = Records(tmp_path / "rows.jsonl")
    assert len(records) == 2
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [records[0], records[-1]] == [{"a": 1}, {"a": 2}]


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a":1}\r\n{"a":2}\r\n')
    assert list(read_jsonl(path)) == [Records(path)[0], Records(path)[1]] == [{"a": 1}, {"a": 2}]
