"""Pictures of an evaluation: the reliability diagram and the confusion matrix."""

import numpy as np

# Above these numbers of classes, names and counts would run into each other.
MOST_NAMES = 40
MOST_COUNTS = 20

# Names are those of folders and files: "$" is no mathematics.
NAMES = {"parse_math": False}


def reliability(bins, file, title):
    """Draws accuracy over confidence, and how many examples each bin has.

    Args:
        bins: A `tfmp.metrics.calibration.Bins`.
        file: Path of the PNG file.
        title: Title of the figure.
    """
    figure, (above, below) = _figure((5, 6), 2, height_ratios=[3, 1], sharex=True)
    figure.suptitle(f"{title}\nECE {bins.error:.4f}", **NAMES)
    widths = np.diff(bins.edges)
    edge = {"align": "edge", "edgecolor": "white", "linewidth": 0.5}
    heights = np.nan_to_num(bins.accuracy)
    above.bar(bins.edges[:-1], heights, widths, **edge, color="lightsteelblue", label="accuracy")
    above.plot([0, 1], [0, 1], "k--", linewidth=1, label="calibrated")
    above.plot(bins.confidence, bins.accuracy, "ko", markersize=4, label="at mean confidence")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    # Above the axes: inside of them it would cover bars.
    above.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    below.bar(bins.edges[:-1], bins.count, widths, **edge, color="gray")
    below.set(xlabel="confidence", ylabel="examples")
    _write(figure, file)


def confusion(matrix, class_names, file, title):
    """Draws the share of each true class that is predicted as each class.

    Args:
        matrix: [classes, classes + 1] integers, as `classification.confusion` returns it.
        class_names: One name a class.
        file: Path of the PNG file.
        title: Title of the figure.
    """
    names = [*class_names, *(["not finite"] if matrix[:, -1].any() else [])]
    matrix = matrix[:, : len(names)]
    side = min(max(4.0, 0.45 * len(names)), 14.0)
    figure, axes = _figure((side + 1.5, side), 1)
    figure.suptitle(title, **NAMES)
    totals = np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(matrix / totals, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, **NAMES)
        axes.set_yticks(range(len(class_names)), class_names, **NAMES)
    if len(names) <= MOST_COUNTS:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = matrix[row, column] > totals[row, 0] / 2
            text = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(column, row, matrix[row, column], color="white" if dark else "black", **text)
    _write(figure, file)


def _figure(size, rows, sharex=False, **grid):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, sharex=sharex, gridspec_kw=grid or None)


def _write(figure, file):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    partial = file.with_name(file.name + ".partial")
    FigureCanvasAgg(figure).print_png(partial)
    partial.replace(file)
