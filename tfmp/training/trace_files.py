"""precision_trace.json and precision_trace.png: what `tfmp.Tracer` has seen."""

import dataclasses
import json
import math

import tensorflow as tf

from tfmp import files, provenance
from tfmp.training.layer_maxima import COLUMNS

JSON = "precision_trace.json"
PNG = "precision_trace.png"

FLOAT16_MAX = 65504.0

# Looks that are kept: beyond it every second one is dropped.
MOST_LOOKS = 1000


@dataclasses.dataclass
class Trace:
    """What was seen, step by step; steps are counted from 1.

    Attributes:
        made_with: Versions and commit.
        every: Calls of the step from one look to the next.
        loss_scale: [step, scale] of each change, by the optimizer's name; the scale is that of
            the steps behind it.
        skipped: [step, skipped steps] where there were any.
        overflows: Dicts of the steps that were run once more.
        warnings: Dicts of the layers that come near to float16's limit.
        unseen: Layers whose outputs no traced step shows.
        steps: The steps that were looked at.
        gradient_norm: Of each, the norm of all gradients together, unscaled; None: not finite.
        dtypes: Dtype of each layer's output.
        headroom: Bits to 65504 by layer, at each look; 0: infinite or NaN, None: all zero.
        gradients: By layer, of its gradients: "headroom" of the scaled loss', and the shares
            "underflow", "underflow_unscaled" and "zeros", at each look.
    """

    made_with: dict
    every: int
    loss_scale: dict[str, list] = dataclasses.field(default_factory=dict)
    skipped: list = dataclasses.field(default_factory=list)
    overflows: list = dataclasses.field(default_factory=list)
    warnings: list = dataclasses.field(default_factory=list)
    unseen: list = dataclasses.field(default_factory=list)
    steps: list = dataclasses.field(default_factory=list)
    gradient_norm: list = dataclasses.field(default_factory=list)
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
    headroom: dict[str, list] = dataclasses.field(default_factory=dict)
    gradients: dict[str, dict[str, list]] = dataclasses.field(default_factory=dict)

    @property
    def warned(self):
        """The layers that were warned about."""
        return {x["layer"] for x in self.warnings}

    def add_scales(self, step, before, after):
        """Adds the loss scales before and after a step, in the order of `loss_scale`."""
        for changes, old, new in zip(self.loss_scale.values(), before, after, strict=True):
            if not changes:
                changes.append([step - 1, float(old)])
            if changes[-1][1] != new:
                changes.append([step, float(new)])

    def add_skips(self, step, count):
        """Adds a step that was skipped, or of one call up to this step so many."""
        self.skipped.append([step, count])

    def add_overflow(self, found):
        """Adds what running a step once more has shown: a dict with "step"."""
        self.overflows.append(found)

    def add_warning(self, step, layer, headroom):
        """Adds a layer that comes near to float16's limit."""
        self.warnings.append({"step": step, "layer": layer, "headroom": headroom})

    def add_look(self, step, largest, dtypes, weights, gradients):
        """Adds what a traced step has measured.

        Args:
            step: Its number.
            largest: Largest magnitude of each layer's outputs.
            dtypes: Dtype of each layer's outputs.
            weights: List of (layer's path, number of entries).
            gradients: [weights, len(COLUMNS)] float32, as `Maxima.gradients` has them.
        """
        if len(self.steps) >= MOST_LOOKS:
            self._thin()
        self.steps.append(step)
        self.dtypes.update(dtypes)
        for path, value in largest.items():
            self._column(self.headroom, path).append(_headroom(value))
        by_layer: dict[str, list] = {}
        for (path, size), row in zip(weights, gradients.astype(float), strict=True):
            figures = dict(zip(COLUMNS, row, strict=True))
            by_layer.setdefault(path, []).append(figures | {"size": size})
        square = float(gradients[:, COLUMNS.index("square")].sum())
        self.gradient_norm.append(math.sqrt(square) if math.isfinite(square) else None)
        for path, rows in by_layer.items():
            columns = self.gradients.setdefault(path, {})
            for name, value in _of_layer(rows).items():
                self._column(columns, name).append(value)
        for values in self._series():
            values += [None] * (len(self.steps) - len(values))

    def write(self, folder):
        """Writes the JSON file."""
        files.write_json(folder / JSON, dataclasses.asdict(self))

    def _column(self, columns, name):
        # A layer that the first looks didn't have.
        return columns.setdefault(name, [None] * (len(self.steps) - 1))

    def _series(self):
        yield from self.headroom.values()
        for columns in self.gradients.values():
            yield from columns.values()

    def _thin(self):
        for values in (self.steps, self.gradient_norm, *self._series()):
            del values[1::2]


def begin(folder, step, optimizers, every):
    """A new `Trace`, which goes on with that in a folder up to a step.

    Args:
        folder: Path of the folder.
        step: Steps that were done.
        optimizers: Names of the optimizers that scale the loss.
        every: Calls of the step from one look to the next.
    """
    made_with = provenance.versions() | {"commit": provenance.git_commit()}
    new = Trace(made_with, every, {name: [] for name in optimizers})
    file = folder / JSON
    if not step or not file.exists():
        return new
    old = json.loads(file.read_text())
    kept = sum(x <= step for x in old["steps"])
    new.steps, new.gradient_norm = old["steps"][:kept], old["gradient_norm"][:kept]
    new.dtypes = old["dtypes"]
    new.headroom = {path: values[:kept] for path, values in old["headroom"].items()}
    new.gradients = {
        path: {name: values[:kept] for name, values in columns.items()}
        for path, columns in old["gradients"].items()
    }
    new.skipped = [x for x in old["skipped"] if x[0] <= step]
    new.overflows = [x for x in old["overflows"] if x["step"] <= step]
    new.warnings = [x for x in old["warnings"] if x["step"] <= step]
    for name in new.loss_scale:
        new.loss_scale[name] = [x for x in old["loss_scale"].get(name, ()) if x[0] <= step]
    return new


def write_scalars(writer, trace, scales):
    """Writes the last look as TensorBoard's scalars.

    Args:
        writer: A `tf.summary` writer.
        trace: A `Trace`.
        scales: The loss scales, in the order of `trace.loss_scale`.
    """
    values = {f"loss_scale/{name}": x for name, x in zip(trace.loss_scale, scales, strict=True)}
    values["skipped_steps"] = sum(count for _, count in trace.skipped)
    values["gradient_norm"] = trace.gradient_norm[-1]
    values |= {f"headroom/{path}": x[-1] for path, x in trace.headroom.items()}
    for path, columns in trace.gradients.items():
        values |= {f"gradient_{name}/{path}": x[-1] for name, x in columns.items()}
    with writer.as_default(step=trace.steps[-1]):
        for name, value in values.items():
            if value is not None:
                tf.summary.scalar(f"precision/{name}", value)
    writer.flush()


def _headroom(value):
    """Bits from a largest magnitude to 65504."""
    if not value:
        return None
    return math.log2(FLOAT16_MAX / value) if math.isfinite(value) else 0.0


def _of_layer(rows):
    """Figures of a layer's gradients, from those of its weights."""
    total = {name: sum(row[name] for row in rows) for name in ("size", *COLUMNS[1:])}
    shares = {"underflow": "flushed", "underflow_unscaled": "flushed_unscaled"}
    return {
        "headroom": _headroom(max(row["largest"] for row in rows)),
        **{k: total[v] / total["nonzero"] if total["nonzero"] else None for k, v in shares.items()},
        "zeros": 1 - total["nonzero"] / total["size"],
    }


def plot(trace, file):
    """Draws loss scale, skipped steps and gradient norm over the steps, and headroom by layer.

    Args:
        trace: A `Trace`.
        file: Path of the PNG file.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = list(trace.headroom)
    rows = max(4.0, 0.14 * len(layers))
    figure = Figure(figsize=(11, 6 + rows), layout="constrained")
    heights = [2, 1, 2, rows]
    scale, skips, norm, heat = figure.subplots(4, 1, height_ratios=heights)
    last = max([1, *trace.steps, *(x[0] for x in trace.skipped)])
    for name, changes in trace.loss_scale.items():
        if changes:
            points = [*changes, [max(last, changes[-1][0]), changes[-1][1]]]
            scale.step(*zip(*points, strict=True), where="post", label=name)
            scale.legend()
    scale.set_yscale("log", base=2)
    if trace.skipped:
        skips.stem(*zip(*trace.skipped, strict=True), basefmt=" ", markerfmt=".")
    known = [(x, y) for x, y in zip(trace.steps, trace.gradient_norm, strict=True) if y]
    if known:
        norm.plot(*zip(*known, strict=True))
        norm.set_yscale("log")
    for axes, label in ((scale, "loss scale"), (skips, "skipped steps"), (norm, "gradient norm")):
        axes.set(ylabel=label, xlim=(0, last + 1), xlabel="step")
        axes.grid(alpha=0.3)
    if layers and trace.steps:
        values = np.array([trace.headroom[path] for path in layers], float)
        edges = range(len(trace.steps) + 1), range(len(layers) + 1)
        mesh = heat.pcolormesh(*edges, values, vmin=0, vmax=16, cmap="RdYlGn")
        figure.colorbar(mesh, ax=heat, label="headroom: bits to 65504")
        heat.set_yticks(np.arange(len(layers)) + 0.5, layers, fontsize=6)
        heat.invert_yaxis()
        ticks = np.unique(np.linspace(0, len(trace.steps) - 1, 10).astype(int))
        heat.set_xticks(ticks + 0.5, [trace.steps[i] for i in ticks])
        heat.set_xlabel("step")
    FigureCanvasAgg(figure).print_png(file)
