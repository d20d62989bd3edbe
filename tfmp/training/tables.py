"""What is learned from the rows of a table: classes, or a number."""

import dataclasses
import json
import pathlib

import keras
import tensorflow as tf
from keras import ops

from tfmp import files
from tfmp.errors import UserError
from tfmp.training.learner import Learner

DESCRIPTION = "columns.json"


class TableLearner(Learner):
    """What both have in common: categories that a training step takes for unseen ones.

    Args:
        model: Keras model, dict of "numeric" float32 and "categorical" int32 [batch, columns], of
            either or both -> [batch, outputs] float32. It is trained in place.
        unseen_rate: Share of categories that a training step takes for unseen ones, so that their
            embedding is learned. What is taken is a function of the seed, the step and the replica.
        seed: Seed of that.
        name: Name of the learner.
    """

    def __init__(self, model, *, unseen_rate=0.0, seed=0, name="table_learner"):
        super().__init__(model, seed=seed, name=name)
        self.unseen_rate = unseen_rate

    def prepare(self, features, labels):
        """Takes some categories for unseen ones; arguments and result as `Learner.prepare`."""
        if self.unseen_rate and "categorical" in features:
            codes = features["categorical"]
            drawn = tf.random.stateless_uniform(tf.shape(codes), self.draw_seed())
            unseen = drawn < self.unseen_rate
            features = {**features, "categorical": tf.where(unseen, tf.zeros_like(codes), codes)}
        return super().prepare(features, labels)


class TableClassifier(TableLearner):
    """A classifier of rows: cross entropy of integer labels, accuracy.

    Arguments as for `TableLearner`; the model's outputs are logits.
    """

    monitor = "accuracy"
    monitor_mode = "max"

    def make_metrics(self):
        """Accuracy."""
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


class TableRegressor(TableLearner):
    """A regression on rows: squared errors in deviations of the target, errors in its unit.

    Args:
        model: As for `TableLearner`, -> [batch, 1] float32 in the target's unit.
        mean: Mean of the target over the training rows.
        deviation: Its standard deviation.
        **kwargs: As for `TableLearner`.
    """

    monitor = "rmse"
    monitor_mode = "min"

    def __init__(self, model, *, mean, deviation, **kwargs):
        super().__init__(model, name="table_regressor", **kwargs)
        self.mean = mean
        self.deviation = deviation

    def targets(self, labels):
        """The labels [batch, 1] float32, in their unit."""
        return tf.cast(labels, tf.float32)[:, None]

    def target_spec(self):
        """`keras.KerasTensor` of `targets`."""
        return keras.KerasTensor((None, 1))

    def make_loss(self):
        """Mean squared error of the standardized target: about 1 for its mean."""
        return StandardizedSquaredError(self.deviation)

    def make_metrics(self):
        """Root mean squared error and mean absolute error in the target's unit, and R2."""
        return [
            keras.metrics.RootMeanSquaredError(name="rmse"),
            keras.metrics.MeanAbsoluteError(name="mae"),
            R2Score(self.mean, self.deviation),
        ]


@keras.saving.register_keras_serializable(package="tfmp")
class StandardizedSquaredError(keras.losses.Loss):
    """Mean squared error in squared deviations of the target, a weighted mean.

    Args:
        deviation: Standard deviation of the target.
    """

    def __init__(self, deviation):
        super().__init__(name="squared_error", reduction="mean_with_sample_weight")
        self.deviation = deviation

    def call(self, y_true, y_pred):
        """The squared error of each example, [batch]; either argument is [batch, 1] or [batch]."""
        y_true, y_pred = (ops.reshape(y, (-1,)) for y in (y_true, y_pred))
        return ops.square((y_true - y_pred) / self.deviation)

    def get_config(self):
        """What the loss is made of."""
        return {"deviation": self.deviation}


class R2Score(keras.metrics.Metric):
    """Coefficient of determination of a target of any size, over all examples.

    The target's variance is the difference of two sums, which float32 can't tell apart where the
    mean is far above the deviation, as in Keras' own. R2 is the same of the standardized target.

    Args:
        mean: About the mean of the target.
        deviation: About its standard deviation.
        name: Name of the metric.
    """

    def __init__(self, mean, deviation, name="r2"):
        super().__init__(name=name)
        self.mean = mean
        self.deviation = deviation
        names = ("count", "sum", "squares", "residual")
        self._sums = [self.add_variable((), "zeros", name=x) for x in names]

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch; arguments [batch, 1], weights [batch]."""
        y = ops.reshape((y_true - self.mean) / self.deviation, (-1,))
        residual = ops.reshape((y_true - y_pred) / self.deviation, (-1,))
        weights = ops.ones_like(y) if sample_weight is None else ops.reshape(sample_weight, (-1,))
        for total, x in zip(self._sums, (ops.ones_like(y), y, y**2, residual**2), strict=True):
            total.assign_add(ops.sum(weights * x))

    def result(self):
        """A scalar float32: 1 for no error, 0 for the mean of these examples."""
        count, total, squares, residual = self._sums
        return 1 - residual / (squares - total**2 / count)


def describe(table, folder):
    """Writes what makes a model's features of a row, to columns.json.

    Args:
        table: A `tfmp.data.tables.Table`.
        folder: Path of the run's folder; made if need be.

    Raises:
        UserError: The folder's file is of other training rows, or can't be written.
    """
    file = folder / DESCRIPTION
    described = _described(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        former = json.loads(file.read_text()) if file.exists() else None
        if former is not None and former != json.loads(json.dumps(described)):
            raise UserError(
                f"{table.name} is not the table that the run in {folder} began with. Choose "
                "another --workdir, or bring the former table back."
            )
        files.write_json(file, described)
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"Can't use {file}: {error}.") from None


def check_weights(table, weights):
    """Holds a table to the columns that weights were trained on, where those are known.

    Args:
        table: A `tfmp.data.tables.Table`.
        weights: Path of a file of weights, beside which a run has left columns.json.

    Raises:
        UserError: The model would take numbers or codes for others, or classes.
    """
    file = pathlib.Path(weights).expanduser().with_name(DESCRIPTION)
    if not file.exists():
        return
    try:
        former = json.loads(file.read_text())
        now = json.loads(json.dumps(_described(table)))
        names = ("task", "numeric", "with_missing", "categorical", "class_names")
        different = [name for name in names if former[name] != now[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"Can't use {file}: {error}.") from None
    if different:
        raise UserError(
            f"Expected the columns and classes of {file}, which the weights beside it were trained "
            f"on. Received other ones in {table.name}: {', '.join(different)}. Give such a table, "
            "or weights of this one."
        )


def _described(table):
    return dataclasses.asdict(table.columns) | {
        "task": table.task,
        "class_names": table.class_names,
    }
