"""Attention: the one place where tokens look at each other, whatever the model.

It is a single operation of Keras' in the model's graph, so that a saved model loads without tfmp,
and a training step can compute the same in another way (`tfmp.training.attention`).
"""

from keras import ops


def attention(queries, keys, values, *, causal: bool = False, mask=None):
    """Every query's weighted mean of the values; the weights are softmax(q . k / sqrt(size)).

    Safe in float16: queries are divided before they meet the keys, since undivided products pass
    float16's largest value, 65504, and then NaN comes out; mask and softmax are of float32, and a
    pair that is masked has a weight of exactly 0 wherever the query sees any key. (A query that
    sees none gets the mean of all values, and no NaN.)

    Args:
        queries: `keras.KerasTensor` [batch, queries, heads, size].
        keys: [batch, keys, heads, size].
        values: [batch, keys, heads, size].
        causal: Whether query i sees only keys 0 to i.
        mask: bool, of a shape that broadcasts to [batch, heads, queries, keys]: whether a query
            may see a key. None: it may.

    Returns:
        [batch, queries, heads, size], the dtype of the values.
    """
    return ops.dot_product_attention(
        queries * queries.shape[-1] ** -0.5,
        keys,
        values,
        mask=mask,
        scale=1.0,
        is_causal=causal,
    )
