"""Reports: a page for people and a file for programs, of what a run and its examinations left.

    subjects = report.read(["runs/digits", "runs/digits-evaluated"])
    report.write(report.build(subjects), pathlib.Path("runs/digits"))

It reads files alone: neither TensorFlow nor Keras is loaded. `report.json` holds

    format      "tfmp report 1"
    title       what was examined
    summary     its verdicts, a list of sentences
    subjects    list of `name` and `sources`: `kind`, `file`, `sha256`, `made_with`
    numbers     key -> `value` and `unit`: each number of the page, and no other
    written     time, UTC; `tfmp`: version

A key is SUBJECT/FILE#POINTER, where the pointer (RFC 6901) is the number's place in that file, such
as `digits/evaluation.json#/accuracy/digits`; of `metrics.csv` it is `/ROW/COLUMN`, from row 0. What
the report computes itself, a difference or a ratio, has the key of its number behind `against/` and
the name of the subject it is held against. Units: `UNITS` in `tfmp/report/numbers.py`. In
`report.html` each number is a `<data>` element with its key and its value as in `report.json`.
"""

from tfmp.report.page import build, check_jinja, write
from tfmp.report.sources import read

__all__ = ["build", "check_jinja", "read", "write"]
