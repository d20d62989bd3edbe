"""Corrupts images by imagecorruptions, in a process of its own: `making` starts it by its path.

Neither TensorFlow nor anything of tfmp is loaded here: a worker starts in a second and stays
small. Its first line says what it works with, as JSON. Then it takes tasks from stdin, one a line,
and answers each with a line. It ends when stdin does, and so with the process that started it.

What is drawn for an image depends on the seed, the image's number, the corruption and the severity
alone: not on the number of workers, nor on what was made before.
"""

import ast
import functools
import importlib.metadata
import inspect
import json
import os
import sys

import numpy as np

PACKAGES = ("imagecorruptions-imaug", "numpy", "numba", "pillow", "scikit-image", "scipy")
# The library refuses smaller images.
LEAST_SIDE = 32
# These draw from generators of their own, which numpy's global seed doesn't reach.
OWN_SEED = ("glass_blur", "impulse_noise")
# ITU-R BT.601, as tf.image.rgb_to_grayscale has it.
LUMA = (0.2989, 0.5870, 0.1140)


def corrupt(function, image, severity, seed):
    """One corrupted image.

    An image that is too small for the library is continued by its mirror image on all sides, and
    cut out again. On a gray image noise is drawn as it is; for all else, which the library spoils
    there, it gets three equal channels and its result is made gray.

    Args:
        function: A corruption of the library.
        image: [height, width, channels] uint8, of 1 or 3 channels.
        severity: 1-5.
        seed: Below 2**32.

    Returns:
        An image likewise.
    """
    from PIL import Image

    height, width, channels = image.shape
    missing = [max(LEAST_SIDE - side, 0) for side in (height, width)]
    around = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
    padded = np.pad(image, [*around, (0, 0)], mode="reflect")
    if channels == 1:
        is_noise = function.__name__.endswith("_noise")
        padded = padded[..., 0] if is_noise else np.repeat(padded, 3, axis=-1)
    np.random.seed(seed)
    more = {"seed": seed} if function.__name__ in OWN_SEED else {}
    with np.errstate(all="ignore"):
        found = np.asarray(function(Image.fromarray(padded), severity, **more), np.float64)
    if not np.isfinite(found).all():  # spatter divides by 0 where no drop has fallen
        found = padded
    (top, _), (left, _) = around
    cut = found.astype(np.uint8)[top : top + height, left : left + width]
    if cut.ndim == 3 and channels == 1:
        cut = np.round(cut @ LUMA).astype(np.uint8)
    return cut.reshape(image.shape)


def seed_of(seed, name, severity, index):
    """The seed of one image's corruption, below 2**32."""
    words = [seed, int.from_bytes(name.encode(), "big"), severity, index]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def constants(function):
    """The expressions in a corruption's source that its severity chooses from: a dict of str."""
    return {
        ast.unparse(node.targets[0]): ast.unparse(node.value.value)
        for node in ast.walk(ast.parse(inspect.getsource(function)))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Subscript)
        and ast.unparse(node.value.slice) == "severity - 1"
    }


def main():
    """Does tasks until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for good: the library prints there)
    import cv2
    import imagecorruptions

    cv2.setNumThreads(1)
    # The library reads one of six pictures of frost for each image, which takes longest of all.
    cv2.imread = functools.cache(cv2.imread)  # type: ignore[assignment]
    functions = imagecorruptions.corruption_dict
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(
        json.dumps(
            {
                "versions": versions | {"opencv": cv2.__version__},
                "constants": {name: constants(function) for name, function in functions.items()},
            }
        ),
        file=answers,
        flush=True,
    )
    for line in sys.stdin:
        _do(functions, **json.loads(line))
        print("done", file=answers, flush=True)


def _do(functions, name, severity, seed, start, stop, images, file, offset):
    """Corrupts the images from `start` to `stop`, and writes them to their place in a file.

    Args:
        functions: Corruptions by name.
        name: The corruption.
        severity: 1-5.
        seed: Of the whole set.
        start: Number of the first image.
        stop: Number behind the last.
        images: Path of a .npy file of all images, [examples, height, width, channels] uint8.
        file: Path of the file to write to, which is as long as it has to be.
        offset: Bytes in it before the first image.
    """
    function = functions[name]
    source = np.load(images, mmap_mode="r")
    made = [
        corrupt(function, source[index], severity, seed_of(seed, name, severity, index))
        for index in range(start, stop)
    ]
    with open(file, "r+b") as output:
        output.seek(offset + start * source[0].nbytes)
        output.write(np.stack(made).tobytes())


if __name__ == "__main__":
    main()
