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
    lines += ["", f"  {'file':<16}{workdir / 'robustness.json'}"]
    return "\n".join([*lines, f"  {'report':<16}python -m tfmp report {workdir}"])


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


def _corruptions(found):
    severities = list(next(iter(found["errors"].values())))
    baseline = found.get("baseline", {})
    yield (
        f"  error of {found['examples']:,} images under corruption; as they are "
        f"{_number(found['clean_error'])}"
    )
    columns = [*severities, "mean", *(["CE"] if baseline else [])]
    yield f"  {'severity':<24}" + "".join(f"{column:>9}" for column in columns)
    for name, errors in found["errors"].items():
        cells = [*map(_number, errors.values()), _number(found["mean_errors"][name])]
        if baseline:
            cells.append(_percent(baseline["ce"][name]) if name in baseline["ce"] else "-")
        yield f"  {name:<24}" + "".join(f"{cell:>9}" for cell in cells)
    yield from _means(found, baseline)
    if found["non_finite"]:
        yield f"  {found['non_finite']:,} corrupted images are not finite, and so wrong"
    constants = found["constants"]
    size = "x".join(map(str, constants["image_shape"]))
    yield f"  {'constants':<16}{constants['kind']}"
    yield f"  {'made by':<16}{constants['made_by']}, from images of {size}"
    for key in ("but", "padding", "gray"):
        if constants.get(key):
            yield f"  {'':<16}{constants[key]}"


def _means(found, baseline):
    """The summary's lines."""
    count, intervals = found["corruptions"], found["intervals"]
    of = "the 15" if count == 15 else f"{count} of the 15"
    named = {"mean_error": f"mean of {of}", "extra_mean_error": "mean of the extra ones"}
    for key, words in named.items():
        if key in intervals:
            low, high = intervals[key]
            yield f"  {words:<24}{found[key]:>9.4f}   {low:.4f} to {high:.4f}"
    if not baseline:
        yield f"  {'mCE':<24}{'none':>9}   it needs a --baseline"
    elif count:
        between = ""
        if "mce" in intervals:
            between = f"   {' to '.join(map(_percent, intervals['mce']))}"
        yield f"  {f'mCE of {of}':<24}{_percent(baseline['mce']):>9}{between}"
        yield (
            f"  {'relative mCE':<24}{_percent(baseline['relative_mce']):>9}   of "
            f"{baseline['name']}, whose error as they are is {_number(baseline['clean_error'])}"
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


def _adversarial(found):
    yield f"  accuracy of {found['examples']:,} images under attack"
    for norm in ("linf", "l2"):
        if norm in found:
            epsilons = ["0", *found[norm]["worst"]]
            yield f"  {norm + ', x/255':<24}" + "".join(f"{e:>9}" for e in epsilons)
            for method, accuracies in found[norm].items():
                numbers = {"0": found["accuracy"]} | accuracies
                yield f"  {method:<24}" + "".join(f"{_number(numbers[e]):>9}" for e in epsilons)
    yield from _gradients(found)
    failed = [check for check in found["checks"] if not check["holds"]]
    for check in failed:
        yield (
            f"  check failed, {check['norm']}: {check['check']} (p = {check['p']:.1g}). Don't "
            "trust these attacks: gradients may be masked, or steps too few."
        )
    if not found["accuracy"]:
        yield "  no image is right even as it is: the checks of the attacks say nothing"
    elif not failed:
        yield f"  all {len(found['checks'])} checks of the attacks hold"


def _gradients(found):
    """What must be said about the gradients, if anything."""
    for policy, quality in found["gradients"].items():
        for kind in ("zero", "non_finite"):
            if quality[kind]:
                yield (
                    f"  gradients in {policy} are {kind.replace('_', '-')} for "
                    f"{quality[kind]:,} of {found['examples']:,} images: they lead nowhere"
                )
    for one in found["differences"]:
        ours, exact = one["accuracy"][one["gradients"]], one["accuracy"]["float32"]
        looks = "more robust than it is" if ours > exact else "less robust by float32 than it is"
        yield (
            f"  gradients differ: under PGD, {one['norm']} {one['epsilon']:g}/255, accuracy is "
            f"{ours:.4f} by {one['gradients']} and {exact:.4f} by float32 (p = {one['p']:.1g}): "
            f"it looks {looks}"
        )
    if len(found["gradients"]) > 1 and not found["differences"]:
        yield "  the precision of the gradients makes no difference beyond chance"


SCORES = {"max_softmax": "max-softmax", "energy": "energy", "max_logit": "max-logit"}
TABLES = {
    "input": _input,
    "corruptions": _corruptions,
    "ood": _ood,
    "adversarial": _adversarial,
}


def _number(value):
    return "unknown" if value is None else f"{value:.4f}"


def _percent(value):
    return "unknown" if value is None else f"{100 * value:.1f} %"
