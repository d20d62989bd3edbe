"""Comparing two benchmark files: of the same device, versions and work only."""

import json
import pathlib

from tfmp.commands.benchmark import rows
from tfmp.errors import DifferentError, UserError

FORMAT = "tfmp benchmark 3"
WORK = ("recipe", "model", "image_size", "dataset", "tf32")
# What may differ: the version under test, and the memory that others had left free.
FREE = ("tfmp", "memory_bytes")


def load(file):
    """A benchmark file's content.

    Raises:
        UserError: It can't be read, or is something else.
    """
    try:
        content = json.loads(pathlib.Path(file).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"Can't read --compare={file}: {error}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"Expected a file that `python -m tfmp benchmark` wrote. Received: {file}.")
    return content


def check(old, new):
    """Refuses what can't be compared; the version of tfmp itself may differ.

    Args:
        old: Content of a benchmark file.
        new: Likewise, or as far as it is known yet.

    Raises:
        UserError: Device, versions or work differ; names what.
    """
    places = [(name, old["config"], new["config"]) for name in WORK]
    before, after = old["environment"], new["environment"]
    for part in ("device", "versions", "peer"):
        # A peer that one of the files lacks has no rows to compare.
        if before.get(part) and after.get(part):
            places += _leaves(before[part], after[part])
    differ = [
        f"{name} was {a.get(name)!r} and is {b.get(name)!r}"
        for name, a, b in places
        if name not in FREE and a.get(name) != b.get(name)
    ]
    if differ:
        raise UserError(
            f"These figures can't be compared: {'; '.join(differ)}. Measure both on the same "
            "device with the same versions."
        )


def _leaves(before, after):
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _leaves(a, b)
        else:
            yield name, before, after


def compare(old, new, tolerance):
    """Prints the speeds of both files and their ratio.

    Args:
        old: Content of a benchmark file.
        new: Likewise.
        tolerance: Share of the speed that may be lost.

    Raises:
        UserError: They can't be compared, or have no good row in common.
        DifferentError: A row is slower by more than the tolerance.
    """
    check(old, new)
    before, after = (
        {rows.key(row): row for row in content["rows"] if row["status"] == "ok"}
        for content in (old, new)
    )
    common = [key for key in after if key in before]
    if not common:
        raise UserError("These files have no good measurement of the same work in common.")
    slower = []
    print("\nexamples/s before and now, and their ratio")
    for key in common:
        ratio = rows.speed(after[key]) / rows.speed(before[key])
        name = f"{key[0]}: {rows.Case(*key[1:])}"
        verdict = "slower" if ratio < 1 - tolerance else ""
        print(
            f"  {name:<64}  {rows.speed(before[key]):>10,.0f}  {rows.speed(after[key]):>10,.0f}  "
            f"{ratio:.3f}  {verdict}".rstrip()
        )
        if verdict:
            slower.append(f"{name} by {1 - ratio:.1%}")
    if slower:
        raise DifferentError(f"Slower than --tolerance={tolerance:g} allows: {'; '.join(slower)}.")
