"""The axis `adversarial`: what survives attacks, and whether these can be trusted."""

from tfmp.report.blocks import Lines, Note, Series

TITLE = "Attacks"
NORMS = {"linf": "L-inf", "l2": "L2"}


def blocks(source, axis, data):
    """What must be said about the attacks, and a picture for each norm."""
    clean = source.share(axis, data, "accuracy")
    images = source.count(axis, data, "examples")
    yield Note(("Of the ", images, " images attacked ", clean, " are right as they are."))
    yield from _gradients(source, (axis, data))
    yield from _differences(source, (axis, data))
    yield from _checks(source, (axis, data))
    for norm, words in NORMS.items():
        methods = source.branch(axis, data, norm)
        epsilons = list(source.branch(axis, data, norm, next(iter(methods), "")))
        series = []
        for method in methods:
            left = (source.share(axis, data, norm, method, epsilon) for epsilon in epsilons)
            series.append(Series(method, (clean, *left)))
        if series:
            places = (0.0, *map(float, epsilons))
            yield Lines(f"Accuracy under attack, {words}", "epsilon, 1/255", places, merged(series))


def say(source, axis, data):
    """What survives the widest attack of each norm."""
    found = []
    for norm, words in NORMS.items():
        for epsilon in list(source.branch(axis, data, norm, "worst"))[-1:]:
            left = source.share(axis, data, norm, "worst", epsilon)
            size = f"Under attack, {words} up to {epsilon}/255, "
            found.append(Note((size, left, f" of {data} stay right.")))
    if _failed(source, (axis, data)):
        found.append(Note("Checks of the attacks fail: don't trust them.", "bad"))
    return found


def headlines(source, axis, data):
    """What survives all attacks of a size."""
    examples = source.at(axis, data, "examples")
    for norm, words in NORMS.items():
        for epsilon in source.branch(axis, data, norm, "worst"):
            place = (axis, data, norm, "worst", epsilon)
            name = f"Accuracy under attack, {words} {epsilon}/255, {data}"
            yield (*place, examples), (name, source.share(*place))


def merged(series):
    """Lines that lie on one another as one."""
    found: dict = {}
    for one in series:
        found.setdefault(tuple(x and x.value for x in one.values), []).append(one)
    return tuple(
        Series(", ".join(one.name for one in same), same[-1].values) for same in found.values()
    )


def _gradients(source, place):
    for policy in source.branch(*place, "gradients"):
        for kind in ("zero", "non_finite"):
            count = source.count(*place, "gradients", policy, kind)
            if count and count.value:
                words = f"Gradients in {policy} are {kind.replace('_', '-')} for "
                yield Note((words, count, " of these images: they lead nowhere."), "warn")


def _differences(source, place):
    for index, one in enumerate(source.items(*place, "differences")):
        at, policy = (*place, "differences", index), one["gradients"]
        text = (
            f"Gradients differ: under PGD, {NORMS.get(one['norm'], one['norm'])} ",
            source.number(*at, "epsilon"),
            "/255, accuracy is ",
            source.share(*at, "accuracy", policy),
            f" by {policy} and ",
            source.share(*at, "accuracy", "float32"),
            " by float32 (p = ",
            source.number(*at, "p", unit="p"),
            "): by the weaker it looks more robust than it is.",
        )
        yield Note(text, "warn")


def _checks(source, place):
    failed = _failed(source, place)
    for index in failed:
        at = (*place, "checks", index)
        norm = source.text(*at, "norm")
        text = (
            f"A check of the attacks fails, {NORMS.get(norm, norm)}: {source.text(*at, 'check')} "
            "(p = ",
            source.number(*at, "p", unit="p"),
            "). Don't trust them: gradients may be masked, or steps too few.",
        )
        yield Note(text, "bad")
    if not source.at(*place, "accuracy"):
        yield Note("No image is right as it is: the checks of the attacks say nothing.", "warn")
    elif not failed:
        yield Note("All checks of the attacks hold.")


def _failed(source, place):
    checks = source.items(*place, "checks")
    return [index for index, check in enumerate(checks) if not check["holds"]]
