"""Text that a language model of bytes writes."""

import codecs

import numpy as np

from tfmp.errors import UserError

BYTES = 256


def sample(model, prompt, count, *, temperature=1.0, seed=0):
    """Draws bytes, each from the model's prediction behind all before it.

    The model sees the last `context` bytes, and computes all of them anew for each byte.

    Args:
        model: Keras model, tokens [batch, context] integers -> logits [batch, context, vocabulary],
            which at a place depend on the tokens up to it alone. Tokens above 255 are not drawn.
        prompt: Bytes to go on from, one or more.
        count: Bytes to draw.
        temperature: What the logits are divided by; 0: always the likeliest byte.
        seed: Of the random draws.

    Yields:
        int of 0-255, `count` times.
    """
    context = model.input_shape[1]
    text, random = list(prompt), np.random.default_rng(seed)
    for _ in range(count):
        seen = text[-context:]
        tokens = np.zeros((1, context), np.int64)
        tokens[0, : len(seen)] = seen
        logits = model.predict_on_batch(tokens)[0, len(seen) - 1, :BYTES].astype(np.float64)
        if temperature:
            # The largest of these is drawn with the probability of its softmax (Gumbel's trick).
            logits = logits / temperature + random.gumbel(size=len(logits))
        text.append(int(np.argmax(logits)))
        yield text[-1]


def write(model, prompt, count, *, temperature=1.0, seed=0):
    """Prints a text as it is drawn, without the prompt, and returns it; arguments as of `sample`.

    What is no UTF-8 becomes a replacement character.
    """
    # (A command line holds bytes that are no UTF-8 as surrogates.)
    prompt = prompt.encode(errors="surrogateescape")
    drawn = sample(model, prompt, count, temperature=temperature, seed=seed)
    written = ""
    for piece in codecs.iterdecode((bytes([byte]) for byte in drawn), "utf-8", errors="replace"):
        written += piece
        print(piece, end="", flush=True)
    print()
    return written


def check(model, name):
    """Raises a `UserError` unless a model is a language model of bytes.

    Args:
        model: Keras model.
        name: What to call it.
    """
    shapes = [getattr(model, kind, None) for kind in ("input_shape", "output_shape")]
    tokens, logits = (shape if isinstance(shape, tuple) else () for shape in shapes)
    if len(tokens) != 2 or logits[:-1] != tokens or logits[-1] < BYTES or not tokens[1]:
        raise UserError(
            "Expected a language model of bytes, from [batch, context] to [batch, context, 256 or "
            f"more]. Received: {name}, from {shapes[0]} to {shapes[1]}."
        )
