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


@pytest.mark.parametrize(
    ("content", "column", "said"),
    [
        (TABLE, "age", "a column out of file, writer. Received: 'age'"),
        ("", "writer", "a column out of none"),
        (TABLE + "4.png,ann\n", "writer", "each of the 3 test examples of digits. Received: 4"),
        ("file,writer\n1.png,ann\n2.png,\n3.png,bob\n", "writer", "none in row 1"),
        ("file,writer\n1.png,ann\n2.png\n3.png,bob\n", "writer", "none in row 1"),
        (b"file,writer\n\xff\xfe,a\n", "writer", "Can't read"),
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
