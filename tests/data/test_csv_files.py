"""CSV files: what a row is, and where it begins."""

import hashlib
import re

import pytest

from tfmp.data import DataError, csv_files


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "with a byte order mark"])
def test_rows_and_the_lines_in_which_they_begin(tmp_path, start, end):
    lines = ["", " a,b ", 'x,"1', '2"', "", '" y, ""z""",\u2028']
    content = (start + end.join(lines)).encode()
    (tmp_path / "some.csv").write_bytes(content)
    found = csv_files.read(tmp_path / "some.csv")
    assert found.names == ["a", "b"] and found.lines == [3, 6] and not found.notes
    assert found.rows == [["x", f"1{end}2"], [' y, "z"', "\u2028"]]
    assert found.column("a") == ["x", 'y, "z"']
    assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "some.csv").write_bytes("a,b\n1,é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"UTF-8. Received: .*some\.csv, line 2: invalid"):
        csv_files.read(tmp_path / "some.csv")
    (tmp_path / "some.csv").write_bytes("a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(DataError, match="line 1: invalid start byte"):
        csv_files.read(tmp_path / "some.csv")


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_separators_are_named(tmp_path, mark):
    file = tmp_path / "table.csv"
    file.write_text(f"age{mark}y\n1,5{mark}2\n")
    with pytest.raises(DataError, match=f"commas.*table.csv.*{re.escape(repr(mark))}"):
        csv_files.read(file)
