"""Pictures of an evaluation: the reliability diagram and the confusion matrix."""

import numpy as np


def reliability(bins, file, title):
    """Draws accuracy over confidence, and how many examples each bin has.

    Args:
        bins: A `tfmp.metrics.classification.Bins`.
        file: Path of the PNG file.
        title: Title of the figure.
    """
    figure, (above, below) = _figure((5, 5.5), 2, height_ratios=[3, 1])
    figure.suptitle(title)
    widths = np.diff(bins.edges)
    heights = np.nan_to_num(bins.accuracy)
    above.bar(bins.edges[:-1], heights, widths, align="edge", edgecolor="white", label="accuracy")
    above.plot([0, 1], [0, 1], "k--", linewidth=1, label="calibrated")
    above.plot(bins.confidence, bins.accuracy, "k.", markersize=4, label="mean confidence")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.text(0.98, 0.03, f"ECE {bins.error:.4f}", ha="right", transform=above.transAxes)
    above.legend(loc="upper left")
    below.bar(bins.edges[:-1], bins.count, widths, align="edge", edgecolor="white")
    below.set(xlim=(0, 1), xlabel="confidence", ylabel="examples", yscale="symlog")
    _write(figure, file)


def confusion(matrix, class_names, file, title):
    """Draws the share of each true class that is predicted as each class.

    Args:
        matrix: [classes, classes + 1] integers, as `classification.confusion` returns it.
        class_names: One name a class.
        file: Path of the PNG file.
        title: Title of the figure.
    """
    classes = len(class_names)
    side = min(max(4.0, 0.45 * classes), 14.0)
    figure, axes = _figure((side + 1, side), 1)
    figure.suptitle(title)
    totals = np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(matrix[:, :classes] / totals, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    if classes <= 30:
        axes.set_xticks(range(classes), class_names, rotation=90)
        axes.set_yticks(range(classes), class_names)
    if classes <= 20:
        for row, column in zip(*np.nonzero(matrix[:, :classes]), strict=True):
            dark = matrix[row, column] > totals[row, 0] / 2
            text = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(column, row, matrix[row, column], color="white" if dark else "black", **text)
    _write(figure, file)


def _figure(size, rows, **grid):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, gridspec_kw=grid or None)


def _write(figure, file):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(file)
