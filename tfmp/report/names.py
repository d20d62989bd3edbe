"""What the known measures are called, and in which unit; others are shown by their own name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Measure:
    """How a measure is shown.

    Attributes:
        name: For people.
        unit: One of `tfmp.report.numbers.UNITS`.
        text: What it is, in a few words.
    """

    name: str
    unit: str = "number"
    text: str = ""


MEASURES = {
    "accuracy": Measure("Accuracy", "share", "right at the first guess"),
    "top5_accuracy": Measure("Top-5 accuracy", "share", "the true class is among the first five"),
    "rmse": Measure("RMSE", "decimal", "in the target's unit; lower is better"),
    "mae": Measure("MAE", "decimal", "in the target's unit; lower is better"),
    "r2": Measure("R2", "decimal", "share of the variance explained; 0 for the mean"),
    "mean_iou": Measure("Mean IoU", "decimal", "overlap of each class, averaged"),
    "mean_dice": Measure("Mean Dice", "decimal", "overlap of each class, averaged"),
    "bits_per_token": Measure("Bits a token", "decimal", "lower is better"),
    "perplexity": Measure("Perplexity", "decimal", "lower is better; the vocabulary by chance"),
    "frechet": Measure(
        "Distance (Frechet)", "decimal", "of generated images from real ones; lower is better"
    ),
    "confidence": Measure("Confidence", "share", "mean of the largest probability"),
    "classes": Measure("Classes", "decimal", "that generated images seem to be of"),
    "judge_accuracy": Measure("Judge's accuracy", "share", "of real images; it gives the others"),
    "nll": Measure("Negative log-likelihood", "decimal", "in nats; lower is better"),
    "brier": Measure("Brier score", "decimal", "0 to 2; lower is better"),
    "ece": Measure(
        "Calibration error", "share", "confidence against accuracy, bins of equal width"
    ),
    "adaptive_ece": Measure(
        "Adaptive calibration error", "share", "likewise, bins of equally many images"
    ),
    "temperature": Measure("Temperature", "decimal", "logits are divided by it"),
    "examples": Measure("Images", "count"),
    "non_finite": Measure("Images with non-finite logits", "count", "counted as wrong"),
    "loss": Measure("Loss", "decimal"),
    "learning_rate": Measure("Learning rate"),
    "loss_scale": Measure("Loss scale", "count"),
    "skipped_steps": Measure("Skipped steps", "count", "their gradients were not finite"),
    "good_steps": Measure("Good steps", "count"),
    "auroc": Measure("AUROC", "share", "50 % by chance"),
    "fpr_at_95_tpr": Measure("False positives at 95 % true positives", "share"),
    "auroc_energy": Measure("AUROC by energy", "share"),
    "auroc_max_logit": Measure("AUROC by largest logit", "share"),
    "mce": Measure("mCE", "share"),
}
PREFIXES = {"val_": "Validation ", "test_": "Test ", "worst_": "Worst "}


def measure(key) -> Measure:
    """How the measure of a key in a file of results is shown; of an unknown one by a guess."""
    if key in MEASURES:
        return MEASURES[key]
    for prefix, words in PREFIXES.items():
        if key.startswith(prefix):
            inner = measure(key.removeprefix(prefix))
            return dataclasses.replace(inner, name=words + within(inner.name))
    words = str(key).replace("_", " ")
    shares = ("accuracy", "error", "share", "auroc", "ece")
    unit = "share" if str(key).endswith(shares) else "number"
    return Measure(words[:1].upper() + words[1:], unit)


def within(name) -> str:
    """A measure's name within a sentence: without its capital, but for an abbreviation's."""
    return name if name[:2].isupper() else name[0].lower() + name[1:]
