"""Prints the tables of docs/scaling.md: what adding up gradients costs, by model, link and GPUs.

What is measured has its place in the repository beside it; all else is arithmetic on it.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Model:
    """What is added up in a training step, and how long the step takes one H100 without that.

    Attributes:
        parameters: Trainable parameters.
        statistics: Moving statistics of BatchNormalization.
        step_ms: Milliseconds of a step; see the page.
    """

    parameters: int
    statistics: int
    step_ms: float

    def megabytes(self, bytes_each=4):
        """Megabytes of the vector that is added up."""
        return (self.parameters + self.statistics) * bytes_each / 1e6


MODELS = {
    "ResNet-50, 256 images": Model(25_557_032, 53_120, 256 / 6.443),
    "ViT-S/16, 256 images": Model(22_049_896, 0, 256 / 8.942),
    "GPT-2 small, 16 windows": Model(124_439_808, 0, 36.3),
}
# Gigabytes/s in each direction, by datasheet: of a GPU, or of a machine's network.
LINKS = {"NVLink 4": 450.0, "PCIe 5.0 x16": 63.0, "100 Gb/s": 12.5, "25 Gb/s": 3.125}
NETWORKS = ("100 Gb/s", "25 Gb/s")
PER_MACHINE = 8


def ring_ms(megabytes, gigabytes_s, members):
    """Milliseconds in which a ring adds up: each member sends all but 1/n of it, twice."""
    return 2 * (members - 1) / members * megabytes / gigabytes_s


def sum_ms(megabytes, link, gpus):
    """Milliseconds of a sum over GPUs, eight in a machine: within each first, then between them."""
    if link not in NETWORKS:
        return ring_ms(megabytes, LINKS[link], gpus)
    within = ring_ms(megabytes, LINKS["NVLink 4"], min(gpus, PER_MACHINE))
    return within + ring_ms(megabytes, LINKS[link], gpus // PER_MACHINE)


def efficiency(model, link, gpus, bytes_each=4):
    """Speed of a GPU among so many as a share of one alone, if the sum overlaps nothing."""
    return model.step_ms / (model.step_ms + sum_ms(model.megabytes(bytes_each), link, gpus))


def float16_error(replicas, seed=0, size=100_000):
    """Relative error (root of the mean square) of a sum in float16, one replica after the other.

    The gradients are normal and independent, as those of small batches nearly are.
    """
    generator = np.random.default_rng(seed)
    exact, rounded = np.zeros(size), np.zeros(size, np.float16)
    for _ in range(replicas):
        gradient = generator.normal(size=size)
        exact += gradient
        rounded += gradient.astype(np.float16)
    return float(np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2)))


def tables():
    """The tables, as Markdown, by their names."""
    bytes_rows = [
        (name, f"{model.parameters:,}", f"{model.megabytes():.0f}", f"{model.megabytes(2):.0f}")
        for name, model in MODELS.items()
    ]
    sums = [
        (name, *(f"{ring_ms(model.megabytes(), rate, 8):.1f}" for rate in LINKS.values()))
        for name, model in MODELS.items()
    ]
    places = [("NVLink 4", 8), *((link, gpus) for link in NETWORKS for gpus in (64, 1024))]
    shares = [
        (
            name,
            *(
                f"{efficiency(model, link, gpus):.2f}, {efficiency(model, link, gpus, 2):.2f}"
                for link, gpus in places
            ),
        )
        for name, model in MODELS.items()
    ]
    heads = [f"{gpus:,} GPUs, {link}" for link, gpus in places]
    errors = [(f"{n:,}", f"{float16_error(n):.4f}") for n in (8, 64, 1024)]
    return {
        "bytes": table(("a GPU computes", "parameters", "MB", "MB in float16"), bytes_rows),
        "sums": table(("ms of a sum over 8", *LINKS), sums),
        "shares": table(("float32, float16", *heads), shares),
        "errors": table(("replicas", "relative error of the sum"), errors),
    }


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("| --- ", "|---") + "\n"
    )


if __name__ == "__main__":
    print("\n".join(tables().values()))
