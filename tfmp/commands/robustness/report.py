"""What an examination says on the screen."""


def text(results, name, workdir) -> str:
    """The tables of each axis, for people.

    Args:
        results: What robustness.json holds.
        name: The data set's name there.
        workdir: Folder of the file.
    """
    made = results["made_with"]
    lines = [
        "",
        f"{name}: {results['examples'][name]:,} examples, {made['policy']}, "
        f"accuracy {_number(results['accuracy'][name])}",
    ]
    for axis, table in TABLES.items():
        if axis in results:
            lines += ["", *table(results[axis][name])]
    return "\n".join([*lines, "", f"  {'file':<16}{workdir / 'robustness.json'}"])


def _input(found):
    yield f"  {'input':<18}{'accuracy':>9}{'change':>9}{'flips':>8}  verdict"
    for way, values in found.items():
        if "error" in values:
            yield f"  {way:<18}{'':26}  refused: {values['error'][:60]}"
            continue
        more = f", {values['non_finite']:,} not finite" if values["non_finite"] else ""
        yield (
            f"  {way:<18}{_number(values['accuracy']):>9}{values['accuracy_change']:>+9.4f}"
            f"{values['flips']:>8,}  {values['verdict']}{more}"
        )


TABLES = {"input": _input}


def _number(value):
    return "unknown" if value is None else f"{value:.4f}"
