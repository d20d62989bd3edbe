"""How much of its accuracy a classifier loses on corrupted images.

The error of a corruption is the mean over its severities. Divided by another classifier's, the
baseline's, it is the corruption error CE; its mean over the 15 corruptions of ImageNet-C is mCE.
The relative ones count only what is lost beyond the error on clean images. Both are ratios: 1 is
as good as the baseline, where the paper writes 100 %.

References:
    Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions
        and perturbations": section 3.2 (the corruptions), 4.1 (CE, mCE and the relative ones), and
        table 1 (AlexNet's error on clean images).
"""

import math

import numpy as np

IMAGENET_C = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
GROUPS = {"imagenet_c": IMAGENET_C, "extra": EXTRA}
SEVERITIES = (1, 2, 3, 4, 5)

# Mean error over the five severities of ImageNet-C at 224 px, as its authors publish it beside the
# data (github.com/hendrycks/robustness); none of the extra ones.
ALEXNET = dict(
    zip(
        IMAGENET_C,
        (
            *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268),
            *(0.785948, 0.798360, 0.866816, 0.826572, 0.819324),
            *(0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
        ),
        strict=True,
    )
)
ALEXNET_CLEAN = 0.435


def corruption_errors(errors, baseline) -> dict[str, float]:
    """CE of each corruption.

    Args:
        errors: Corruption -> [severities], error of the classifier, 0-1.
        baseline: Likewise, of the baseline, on the same severities; what it lacks is left out.

    Returns:
        Corruption -> ratio; NaN where the baseline makes no error.
    """
    return {
        name: _ratio(np.mean(values), np.mean(baseline[name]))
        for name, values in errors.items()
        if name in baseline
    }


def relative_errors(errors, clean, baseline, baseline_clean) -> dict[str, float]:
    """Relative CE of each corruption.

    Args:
        errors: As for `corruption_errors`.
        clean: The classifier's error on clean images, 0-1.
        baseline: As for `corruption_errors`.
        baseline_clean: The baseline's error on clean images.

    Returns:
        Corruption -> ratio; NaN where the baseline loses nothing.
    """
    return {
        name: _ratio(np.mean(values) - clean, np.mean(baseline[name]) - baseline_clean)
        for name, values in errors.items()
        if name in baseline
    }


def mean_over(values, names=IMAGENET_C) -> float:
    """Mean over the corruptions of ImageNet-C, or other `names`, that are there; NaN if none is.

    Args:
        values: Corruption -> number.
        names: Which count.
    """
    chosen = [values[name] for name in names if name in values]
    return float(np.mean(chosen)) if chosen else math.nan


def _ratio(ours, theirs):
    return float(ours / theirs) if theirs > 0 else math.nan
