"""Makes a page of what a run and its examinations left: report.html, and report.json beside it.

Takes folders that hold results.json, evaluation.json, robustness.json or parity.json, such files
themselves, and the files of `python -m tfmp benchmark`. Files of one model are put together, by
its SHA-256; several models, comparisons or benchmarks stand side by side, with their differences
from the first.

Examples:
    python -m tfmp report runs/digits
    python -m tfmp report runs/digits runs/evaluate-20260101-120000-000 --workdir=shown
    python -m tfmp report runs/float32 runs/mixed_float16 --workdir=compared
    python -m tfmp report parity

Leaves in --workdir:
    report.html     one file for any browser, without scripts and without anything loaded
    report.json     its numbers, key -> value and unit; `tfmp/report/__init__.py` says the form

Reads files alone, without TensorFlow. Needs jinja2: pip install 'jinja2>=3.1'

Exit status: 0 done; 1 the report can't be written; 2 a mistake in the flags, or a file that is
missing, damaged or no result of tfmp's.
"""

import dataclasses
import pathlib

from tfmp import cli, files, report
from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """What to show."""

    runs: tuple[str, ...] = cli.flag(
        (),
        "Folders or files of results; words without a name, too.",
        group="Runs",
        positional=True,
    )
    workdir: str | None = cli.flag(
        None,
        "Folder of the report, where a former report is replaced; none: the RUN, if it is one "
        "folder, else runs/report-DATE-TIME.",
        group="Results",
    )


def run(config):
    """Makes the report; returns what report.json holds."""
    if not config.runs:
        raise UserError("Expected RUN: a folder of results, or several. Received: none.")
    report.check_jinja()
    page = report.build(report.read(config.runs))
    first = pathlib.Path(config.runs[0]).expanduser()
    if config.workdir is None and len(config.runs) == 1 and first.is_dir():
        folder = first
    else:
        folder = files.workdir("report", config.workdir)
    written = report.write(page, folder)
    print("\n".join([*written["summary"], "", f"  report    {folder / 'report.html'}"]), flush=True)
    return written
