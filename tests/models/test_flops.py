"""Multiply-adds against published counts, and by hand."""

import keras
import pytest
from keras import layers

from tfmp import models
from tfmp.models import flops

# 1e9 multiply-adds at 224 px and 1,000 classes: `_ops` in the metadata of torchvision's weights.
PUBLISHED = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    model = models.build(name, classes=1000, input_shape=(224, 224, 3))
    assert flops.multiply_adds(model) / 1e9 == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_by_hand():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 3, padding="same", strides=2, groups=2)(inputs)  # 3*3 * 8 * (3*3*2)
    x = keras.Sequential([layers.DepthwiseConv2D(3, depth_multiplier=2)])(x)  # 1*1 * 16 * 3*3
    x = layers.Dense(5)(layers.Flatten()(layers.BatchNormalization()(x)))  # 16 * 5
    assert flops.multiply_adds(keras.Model(inputs, x)) == 1296 + 144 + 80


def test_attention_by_hand():
    x = keras.Input((5, 2, 3))
    logits = keras.ops.einsum("bqhd,bkhd->bhqk", x, x)  # 2 heads * 5 * 5 * 3
    y = keras.ops.einsum("bhqk,bkhd->bqhd", logits, x)  # the same
    y = layers.EinsumDense("bqhd,hde->bqe", (5, 4))(y)  # 5 * 4 * (2*3)
    assert flops.multiply_adds(keras.Model(x, y)) == 150 + 150 + 120


def test_transposed_convolutions_by_hand():
    inputs = keras.Input((4, 5, 3))
    x = keras.layers.Conv2DTranspose(6, 2, strides=2)(inputs)
    # Each of 4x5 pixels meets a kernel of 2x2, 3 and 6 channels.
    assert flops.multiply_adds(keras.Model(inputs, x)) == 20 * 4 * 3 * 6
