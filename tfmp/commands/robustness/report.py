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


def _ood(found):
    yield f"  in distribution: these {found['examples']:,} examples"
    header = f"  {'out of distribution':<32}{'score':<13}"
    yield header + "".join(f"{column:>9}" for column in ("AUROC", "AUPR", "AUPR out", "FPR 95"))
    for name, values in found["against"].items():
        label = f"{name}, {values['examples']:,}"
        for score, shown in SCORES.items():
            columns = ("auroc", "aupr", "aupr_out", "fpr_at_95_tpr")
            numbers = "".join(f"{_number(values[score][column]):>9}" for column in columns)
            yield f"  {label:<32}{shown:<13}{numbers}"
            label = ""
        share = values["energy"]["share_inside"]
        yield f"  {'':<32}{'by chance':<13}{0.5:>9.4f}{share:>9.4f}{1 - share:>9.4f}{0.95:>9.4f}"
        if values["non_finite"]:
            yield f"  {values['non_finite']:,} of {name} are not finite"


SCORES = {"max_softmax": "max-softmax", "energy": "energy", "max_logit": "max-logit"}
TABLES = {"input": _input, "ood": _ood}


def _number(value):
    return "unknown" if value is None else f"{value:.4f}"
