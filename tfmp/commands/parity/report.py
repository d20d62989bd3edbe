"""What a comparison says on the screen."""

from tfmp.evaluation.parity import title

# Of the classes and groups that are equivalent the screen shows these; parity.json has all.
MOST_PARTS = 3

COSTS = {
    "training_seconds": ("training", "{:,.1f} s"),
    "seconds_to_target": ("to the target", "{:,.1f} s"),
    "examples_per_second": ("speed", "{:,.0f} examples/s"),
    "peak_memory_bytes": ("peak memory", "{:,.0f} bytes"),
    "joules": ("energy", "{:,.0f} J"),
    "final_loss_scale": ("loss scale", "{:,.0f}"),
    "skipped_steps": ("skipped steps", "{:,.0f}"),
}


def text(results, workdir) -> str:
    """The figures for people.

    Args:
        results: What parity.json holds.
        workdir: Folder of the files.
    """
    reference, other = results["kinds"]
    head = ("", reference, other, "difference", "95 % interval", "margin", "verdict")
    table = [head, *map(_test, [*_shown(results["tests"]), *results["also"]])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "",
        f"{reference} against {other}: {results['runs'][0]} and {results['runs'][1]} runs, "
        f"{results['examples']:,} test examples",
        "",
        *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in table),
        "",
        _flips(results),
        *_costs(results["costs"]),
        *_visible(results["tests"]),
        f"  {'file':<16}{workdir / 'parity.json'}",
        f"  {'report':<16}python -m tfmp report {workdir}",
    ]
    return "\n".join(lines)


def _shown(tests):
    """All that is not settled, and of the rest the parts that lost most."""
    settled = [
        row
        for row in tests
        if row["metric"] in ("class_accuracy", "group_accuracy") and row["verdict"] == "equivalent"
    ]
    kept = sorted(settled, key=lambda row: row["difference"])[:MOST_PARTS]
    return [row for row in tests if row not in settled or row in kept]


def _test(row):
    low, high = row["interval"]
    return (
        title(row),
        *(f"{mean:.4f}" for mean in row["means"]),
        f"{row['difference']:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{row['margin']:g}" if "margin" in row else "-",
        _in_words(row),
    )


def _in_words(row):
    verdict = row.get("verdict", "not tested")
    if verdict != "open":
        return verdict
    needed = row["runs_needed"]
    return f"open: {needed} runs would do" if needed else "open: too few test examples"


def _flips(results):
    flips, which = results["flips"], "of one seed" if results["paired"] else "of both kinds"
    return (
        f"  {'flips':<16}{flips['between_kinds']:.2%} of predictions between two runs {which}; "
        f"between two of the reference {flips['among_reference']:.2%}, of the other "
        f"{flips['among_other']:.2%}"
    )


def _costs(costs):
    for name, (words, form) in COSTS.items():
        one, other = costs[name]
        if one is None or other is None:
            continue
        ratio = f" ({other / one:.2f} of it)" if one and name != "final_loss_scale" else ""
        yield f"  {words:<16}{form.format(one)} and {form.format(other)}{ratio}"


def _visible(tests):
    accuracy = next(row for row in tests if row["metric"] == "accuracy")
    yield (
        f"  {'could be seen':<16}a difference of accuracy of {accuracy['smallest_visible']:.4f}, "
        "in four of five such comparisons"
    )
