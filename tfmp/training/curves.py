"""curves.png: how a run went, over its epochs."""

import math


def plot(rows, file, title, metric="accuracy"):
    """Draws loss, a metric, learning rate and loss scale over the epochs.

    Args:
        rows: What `tfmp.files.read_metrics` returns.
        file: Path of the PNG file.
        title: Title of the figure.
        metric: Name of the metric.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(title)
    epochs = [row["epoch"] + 1 for row in rows]
    panels = {
        "loss": ("loss", "val_loss"),
        metric: (metric, f"val_{metric}"),
        "learning rate": ("learning_rate",),
        "loss scale": [name for name in rows[0] if name.endswith("loss_scale")] if rows else [],
    }
    for axes, (label, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=False):
        for name in names:
            values = [row.get(name, math.nan) for row in rows]
            if not all(map(math.isnan, values)):
                axes.plot(epochs, values, label=_label(name))
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines and len(names) > 1:
            axes.legend()
        if label == "loss scale":
            axes.set_yscale("log", base=2)
    FigureCanvasAgg(figure).print_png(file)


def _label(name):
    if name.endswith("_loss_scale"):
        return name.removesuffix("_loss_scale")
    return "validation" if name.startswith("val_") else "training"
