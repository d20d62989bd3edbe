"""An MLP and a ResNet for rows of a table: raw numbers and categories in, float32 out.

Of the precision: numbers of a table may be of any size, and float16 ends at 65504. So they are
centered and divided by their deviation in float32, inside the model, and held within 100
deviations. (`keras.layers.Normalization` divides by 1e-7 where the deviation is smaller, and its
variance is infinite where the deviation is above 1.8e19; adapted to rows that are all 123456789,
it finds a variance of 576.) Categories become embeddings. Outputs are float32: logits, or the
target in its own unit. Only Keras' own layers and operations are used: a saved model loads without
tfmp.

References:
    Gorishniy et al. 2021, Revisiting Deep Learning Models for Tabular Data, arXiv:2106.11959,
        section 3.1 (MLP) and 3.2 (ResNet).
    Guo and Berkhahn 2016, Entity Embeddings of Categorical Variables, arXiv:1604.06737.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import layers, ops

from tfmp.errors import UserError
from tfmp.models import parts


def build(
    name: str,
    *,
    means: Sequence[float] = (),
    deviations: Sequence[float] = (),
    with_missing: Sequence[bool] = (),
    categories: Sequence[int] = (),
    outputs: int = 1,
    target_mean: float = 0.0,
    target_deviation: float = 1.0,
    embedding_size: int = 8,
    width: int = 128,
    depth: int = 2,
    dropout: float = 0.1,
    seed: int | None = None,
) -> keras.Model:
    """Builds a model for rows of a table, under the global policy.

    Args:
        name: A key of `MODELS`.
        means: Of each numeric column, over the training rows.
        deviations: Of each numeric column, above 0.
        with_missing: Whether to mark missing values, of each numeric column. Missing numbers are
            NaN and count as the mean.
        categories: Number of categories of each categorical column, without the one for unseen
            values. Their codes begin at 1; every code that is not among them counts as 0, unseen.
        outputs: Number of logits, or 1 for a number.
        target_mean: What is added to the output, and
        target_deviation: what it is multiplied by before, in float32: 0 and 1 for logits.
        embedding_size: Features of an embedded category.
        width: Features between the blocks.
        depth: Blocks.
        dropout: Share of features dropped in each block.
        seed: Seed of the initial weights and of dropout, drawn for each layer from this seed and
            its name. None leaves them to `keras.utils.set_random_seed`.

    Returns:
        A built functional model, of a dict {"numeric": float [batch, columns], "categorical":
        integers [batch, columns]}, without what has no column, to [batch, outputs] float32.

    Raises:
        ValueError: No such model, or a size that can't be.
    """
    if name not in MODELS:
        raise UserError(f"model: expected one of {', '.join(MODELS)}. Received: {name!r}")
    if not len(means) == len(deviations) == len(with_missing) or not all(x > 0 for x in deviations):
        raise UserError(
            "Expected as many means as deviations above 0 and marks of missing values. Received: "
            f"{means}, {deviations} and {with_missing}."
        )
    outputs, width = parts.size("outputs", outputs), parts.size("width", width)
    embedding_size = parts.size("embedding_size", embedding_size)
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: expected 0 to below 1. Received: {dropout}")
    if not len(means) and not len(categories):
        raise UserError("Expected a numeric or a categorical column. Received: none.")
    make = _Layers(width, dropout, seed)
    inputs, found = {}, []
    if len(means):
        inputs["numeric"] = keras.Input((len(means),), name="numeric")
        found += _numbers(inputs["numeric"], means, deviations, with_missing)
    if len(categories):
        inputs["categorical"] = keras.Input((len(categories),), dtype="int32", name="categorical")
        found.append(_embedded(make, inputs["categorical"], categories, embedding_size))
    x = layers.Concatenate(name="features")(found) if len(found) > 1 else found[0]
    x = MODELS[name](make, x, depth)
    x = make.dense(x, outputs, "head", dtype="float32")
    if (target_mean, target_deviation) != (0.0, 1.0):
        x = layers.Rescaling(target_deviation, target_mean, dtype="float32", name="unit")(x)
    return keras.Model(inputs, x, name=name)


class _Layers(parts.Layers):
    """The layers of one network: their common settings, and the seed of each."""

    def __init__(self, width, dropout, seed):
        self.width = width
        super().__init__(seed, dropout)

    def initial(self, name: str):
        """Uniform within 1/sqrt(fan in), as the paper's code has dense layers and embeddings."""
        return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=self.seed(name))

    def dense(self, x, units: int, name: str, **options):
        """A dense layer with bias."""
        kernel = self.initial(name)
        return layers.Dense(units, kernel_initializer=kernel, name=name, **options)(x)


def _numbers(raw, means, deviations, with_missing):
    """Normalized numbers, and marks of those that are missing."""
    yield parts.standardize(raw, means, deviations)
    if marked := [i for i, marks in enumerate(with_missing) if marks]:
        yield ops.cast(ops.take(ops.isnan(raw), marked, axis=1), "float32")


def _embedded(make: _Layers, codes, categories, size: int):
    """Embeddings of all columns side by side: rows of one table, a part of it for each column."""
    rows = np.array(categories, "int32") + 1
    known = ops.logical_and(codes >= 0, codes < rows)
    codes = ops.where(known, codes, 0) + (np.cumsum(rows) - rows).astype("int32")
    # Within 1/sqrt(size), as the paper's code: Keras takes the table's columns for its fan out.
    initial = keras.initializers.RandomUniform(
        -(size**-0.5), size**-0.5, seed=make.seed("embedding")
    )
    x = layers.Embedding(int(rows.sum()), size, embeddings_initializer=initial, name="embedding")(
        codes
    )
    return layers.Flatten(name="embedded")(x)


def _mlp(make: _Layers, x, depth: int):
    """Blocks of a dense layer, ReLU and dropout."""
    for index in range(1, depth + 1):
        x = make.dense(x, make.width, f"block{index}_dense", activation="relu")
        x = make.dropped(x, f"block{index}_dropout")
    return x


def _resnet(make: _Layers, x, depth: int):
    """Blocks of two dense layers, the first twice as wide, normalized before and added to x."""
    x = make.dense(x, make.width, "first")
    for index in range(1, depth + 1):
        name = f"block{index}"
        y = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_norm")(x)
        y = make.dense(y, 2 * make.width, f"{name}_in", activation="relu")
        y = make.dropped(y, f"{name}_in_dropout")
        y = make.dense(y, make.width, f"{name}_out")
        y = make.dropped(y, f"{name}_out_dropout")
        x = layers.Add(name=f"{name}_add")([x, y])
    x = layers.BatchNormalization(epsilon=1e-5, name="norm")(x)
    return layers.ReLU(name="relu")(x)


MODELS: dict[str, Callable] = {"mlp": _mlp, "tabular_resnet": _resnet}
