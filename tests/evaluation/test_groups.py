"""Groups of test examples from tables; those of TFDS are in tests/data/test_tfds.py."""

import pytest

from tfmp import errors, evaluation

TABLE = "file,writer\n1.png,ann\n2.png,bob\n3.png,ann\n"


def read(tmp_path, content, column="writer", examples=3):
    file = tmp_path / "table.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return evaluation.read_groups(f"{file}:{column}", "digits", examples)


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "with a byte order mark"])
def test_a_table(tmp_path, start):
    assert read(tmp_path, start + TABLE).tolist() == ["ann", "bob", "ann"]
    assert read(tmp_path, start + TABLE, "file").tolist() == ["1.png", "2.png", "3.png"]


def test_a_group_has_no_blanks_around(tmp_path):
    table = f" ,file, writer\n0,{'x' * 200_000},ann\n1,2.png, ann\n2,3.png,ann \n"
    assert read(tmp_path, table).tolist() == ["ann"] * 3


@pytest.mark.parametrize(
    ("content", "column", "said"),
    [
        (TABLE, "age", "a column out of file, writer. Received: 'age'"),
        ("", "writer", "Expected different names of columns .* Received: nothing"),
        ("file,writer\nJ, 1.png,ann\n2.png,bob\n", "writer", "line 2 .* Received: 3"),
        ("writer,writer\n1,ann\n2,bob\n3,ann\n", "writer", "Expected different names"),
        ('file,writer\n1.png,"ann\n2.png,bob\n', "writer", "begins in line 2: unexpected end"),
        (TABLE + "4.png,ann\n", "writer", "each of the 3 test examples of digits. Received: 4"),
        ("file,writer\n1.png,ann\n2.png,\n3.png,bob\n", "writer", "none in row 1"),
        ("file,writer\n1.png,ann\n2.png, \n3.png,bob\n", "writer", "none in row 1"),
        ("file,writer\n1.png,ann\n2.png\n3.png,bob\n", "writer", "2 values in line 3"),
        (b"file,writer\n\xff\xfe,a\n", "writer", r"in UTF-8.*table\.csv, line 2"),
    ],
)
def test_mistakes_in_a_table(tmp_path, content, column, said):
    with pytest.raises(errors.UserError, match=said):
        read(tmp_path, content, column)


def test_other_mistakes(tmp_path):
    with pytest.raises(errors.UserError, match=r"table\.csv:COLUMN"):
        evaluation.read_groups("table.csv", "digits", 3)
    with pytest.raises(errors.UserError, match="Can't read"):
        evaluation.read_groups(f"{tmp_path}/none.csv:a", "digits", 3)
    with pytest.raises(errors.UserError, match=r"data set of TFDS.*FILE\.csv:COLUMN"):
        evaluation.read_groups("writer", "digits", 3)
    many = "n\n" + "".join(f"{i}\n" for i in range(1001))
    with pytest.raises(errors.UserError, match=r"at most 1000 groups. Received: 1001"):
        read(tmp_path, many, "n", 1001)
