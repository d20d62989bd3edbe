"""From subjects to a page, and to the two files that hold it."""

import base64
import datetime
import pathlib

import tfmp
from tfmp import files
from tfmp.errors import TfmpError, UserError
from tfmp.report import (
    benchmark,
    blocks,
    charts,
    comparison,
    evaluation,
    parity,
    robustness,
    training,
)
from tfmp.report.blocks import Folded, Page, Section, Table
from tfmp.report.leaves import settings

FORMAT = "tfmp report 1"
# What a report of any version has among its first bytes.
MARK, HEAD = b"tfmp report ", 400
# What each kind of file says: title, summary, headlines and sections, in the order of the page.
KINDS = {
    "parity": parity,
    "training": training,
    "evaluation": evaluation,
    "robustness": robustness,
    "benchmark": benchmark,
}


def build(subjects) -> Page:
    """A page of what was read.

    Args:
        subjects: What `tfmp.report.read` returns, one or more.

    Raises:
        UserError: A file does not hold what it should.
    """
    told = [_tell(subject) for subject in subjects]
    if len(subjects) == 1:
        title, summary, _, sections = told[0]
    else:
        title = "Comparison of " + ", ".join(subject.name for subject in subjects)
        headlines = [found for _, _, found, _ in told]
        summary = comparison.summary(subjects, headlines, [notes for _, notes, _, _ in told])
        sections = comparison.sections(subjects, headlines)
        sections += [
            Section(f"{subject.name}: {heading}", tuple(notes), tuple(parts))
            for subject, (heading, notes, _, parts) in zip(subjects, told, strict=True)
        ]
    return Page(
        title,
        tuple(summary),
        (*sections, _origins(subjects)),
        [{"name": subject.name, "sources": _sources(subject)} for subject in subjects],
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tfmp.__version__,
    )


def _tell(subject):
    """(title, summary, headlines, sections) of all of a subject's files."""
    title, summary, sections = "", [], []
    headlines: dict = {}
    for kind, module in KINDS.items():
        source = subject.sources.get(kind)
        if source is None:
            continue
        try:
            title = title or module.title(source)
            summary += module.summary(source, subject.sources)
            headlines |= module.headlines(source)
            sections += module.sections(source, subject.sources)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source.path} is not as tfmp writes it: {type(error).__name__}: {error}."
            ) from error
    return title, summary, headlines, sections


def _sources(subject):
    return [
        {
            "kind": source.kind,
            "file": str(source.path),
            "sha256": source.sha256,
            "made_with": source.made_with() if source.kind != "curves" else None,
        }
        for source in subject.sources.values()
    ]


def _origins(subjects):
    """What each file was made with, folded away."""
    folded = []
    for subject in subjects:
        for source in subject.sources.values():
            rows = [("File", str(source.path)), ("SHA-256", source.sha256)]
            rows += settings(source.made_with()) if source.kind != "curves" else ()
            table = Table(f"Of {source.label}", ("Setting", "Value"), tuple(rows))
            folded.append(Folded(source.label, (table,)))
    return Section("Made with", tuple(folded))


def numbers(page) -> dict:
    """The numbers of a page by key."""
    return {x.key: {"value": x.value, "unit": x.unit} for x in blocks.numbers(page)}


def as_json(page) -> dict:
    """What report.json holds."""
    return {
        "format": FORMAT,
        "title": page.title,
        "summary": [blocks.words(note.text) for note in page.summary],
        "subjects": page.subjects,
        "numbers": numbers(page),
        "written": page.written,
        "tfmp": page.version,
    }


def as_html(page) -> str:
    """What report.html holds: no script, and nothing that is loaded from elsewhere."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"charts": charts, "base64": lambda x: base64.b64encode(x).decode()}
    return environment.get_template("page.html").render(page=page, format=FORMAT)


def check_jinja():
    """Refuses to begin without jinja2.

    Raises:
        UserError: It is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise UserError(
            "A report needs jinja2, which is not installed: pip install 'jinja2>=3.1'"
        ) from None


def write(page, folder):
    """Writes report.json and report.html.

    Args:
        page: What `build` returns.
        folder: A `pathlib.Path`; made where it is not there. A former report in it is replaced.

    Returns:
        What report.json holds.

    Raises:
        UserError: The folder can't be used, or holds files of these names that no report wrote.
        TfmpError: They can't be written.
    """
    text, html = as_html(page), folder / "report.html"
    try:
        for file in (html, html.with_suffix(".json")):
            if file.exists() and MARK not in file.read_bytes()[:HEAD]:
                raise UserError(f"{file} is not a report of tfmp's. Choose another --workdir.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't use --workdir={folder}: {error}.") from None
    try:
        written = files.write_json(html.with_suffix(".json"), as_json(page))
        files.write_text(html, text)
    except OSError as error:
        raise TfmpError(
            f"Can't write the report to {folder}: {error}. Choose another --workdir."
        ) from error
    return written
