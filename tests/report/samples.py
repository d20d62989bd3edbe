"""What the tools leave, small; made by the tools' own functions where these need no training."""

import numpy as np

from tfmp import evaluation
from tfmp.evaluation import Predictions, parity

MADE = {"device": {"name": "some CPU", "kind": "cpu"}, "versions": {"keras": "3.15.1"}}
NAMES = ["cat", "dog", "owl"]


def predictions(seed, examples=300, skill=1.5):
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % 3
    logits = rng.normal(size=(examples, 3)).astype("float32")
    logits[np.arange(examples), labels] += skill
    return Predictions(logits, labels)


def made_with(model="runs/a", sha="abc", names=NAMES, seed=0):
    return MADE | {
        "config": {"batch_size": 256, "workdir": "somewhere"},
        "model": model,
        "model_sha256": sha,
        "run": {"seed": seed, "final": {"test_accuracy": 0.5, "test_loss": 1.0}},
        "policy": "mixed_float16",
        "data": {"name": "pets", "class_names": names},
    }


def evaluated(found, names=NAMES, data="pets", **made):
    """What evaluation.json holds, of `Predictions`."""
    values, intervals = evaluation.summarize(found, names, replicates=50)
    own = values | {"against_float32": evaluation.compare(found, found)}
    named = {metric: {data: value} for metric, value in values.items()}
    return named | {
        "intervals": {metric: {data: value} for metric, value in intervals.items()},
        "confusion": {data: np.eye(len(names), len(names) + 1, dtype=int).tolist()},
        "reliability": {
            data: {
                "edges": [0.0, 0.5, 1.0],
                "examples": [0, 300],
                "confidence": [None, 0.8],
                "accuracy": [None, 0.7],
            }
        },
        "policies": {
            "mixed_float16": {metric: {data: value} for metric, value in own.items()},
            "float32": named,
        },
        "made_with": made_with(names=names, **made),
    }


def trained(accuracy=0.75, **changes):
    """What results.json holds."""
    cost = dict.fromkeys(["joules", "joules_per_epoch", "price", "price_per_hour"])
    cost |= {"seconds": 83.25, "seconds_per_epoch": 20.5, "device_hours": 0.0231}
    cost |= {"joules_missing": "no power is read on a CPU", "inference_missing": None}
    rates = {"batch_size": 1, "examples_per_second": 321.4, "joules_per_example": None}
    cost["inference"] = {"batch_1": rates, "best": rates | {"batch_size": 64}}
    cost["break_even_inferences"] = {"joules": None, "device_time": 26758}
    return {
        "name": "resnet",
        "config": {"policy": "mixed_float16", "learning_rate": 0.1, "model": "resnet18"},
        "policy": "mixed_float16",
        "data": {"name": "pets", "sizes": {"test": 300}},
        "final": {"test_accuracy": accuracy, "test_loss": 0.61, "val_accuracy": 0.7},
        "best": {"epoch": 2, "val_accuracy": 0.71},
        "epochs": 3,
        "steps": 120,
        "examples_per_second": 1234.5,
        "seconds": {"compile": 9.5},
        "cost": cost,
        "peak_memory_bytes": 3 * 2**30,
        "loss_scale": {"initial": 32768.0, "final": 16384.0, "skipped_steps": 1},
        **MADE,
    } | changes


CURVES = """epoch,accuracy,loss,learning_rate,loss_scale,skipped_steps,val_accuracy,val_loss
0,0.41,2.1,0.1,32768.0,0,0.5,1.9
1,0.6,1.2,0.05,16384.0,1,0.71,1.0
2,0.8,0.7,0.0,16384.0,1,,
"""
ATTACKS = {
    "examples": 100,
    "accuracy": 0.75,
    "gradients": {"mixed_float16": {"zero": 12, "non_finite": 0}, "float32": {"zero": 0}},
    "linf": {
        "noise": {"1": 0.75, "8": 0.74},
        "pgd float32": {"1": 0.5, "8": 0.1},
        "worst": {"1": 0.5, "8": 0.1},
    },
    "differences": [
        {
            "norm": "linf",
            "epsilon": 8.0,
            "gradients": "mixed_float16",
            "accuracy": {"mixed_float16": 0.6, "float32": 0.1},
            "p": 1.2e-7,
        }
    ],
    "checks": [
        {"norm": "linf", "check": "noise of 8 is weaker than PGD", "holds": False, "p": 0.0}
    ],
}
CORRUPTIONS = {
    "examples": 200,
    "corruptions": 2,
    "non_finite": 0,
    "clean_error": 0.25,
    "mean_error": 0.4,
    "extra_mean_error": None,
    "mean_errors": {"fog": 0.35, "gaussian_noise": 0.45},
    "errors": {"fog": {"1": 0.3, "5": 0.4}, "gaussian_noise": {"1": 0.4, "5": 0.5}},
    "intervals": {
        "mean_errors": {"fog": [0.3, 0.4], "gaussian_noise": [0.4, 0.5]},
        "mean_error": [0.36, 0.44],
        "mce": [0.7, 0.9],
    },
    "baseline": {
        "name": "an older run",
        "clean_error": 0.3,
        "ce": {"fog": 0.7, "gaussian_noise": 0.9},
        "relative_ce": {"fog": 1.0, "gaussian_noise": None},
        "mce": 0.8,
        "relative_mce": None,
    },
    "constants": {"kind": "those of ImageNet-C", "image_shape": [8, 8, 1]},
    "images": {"fog": "a-hash"},
}


def examined(**axes):
    """What robustness.json holds."""
    same = {"kind": "dtype", "verdict": "same", "accuracy": 0.75, "accuracy_change": 0.0}
    worse = {"verdict": "breaks", "accuracy": 0.33, "accuracy_change": -0.42, "flips": 126}
    refused = {"kind": "dtype", "verdict": "refused", "error": "no such dtype"}
    scores = {"auroc": 0.9, "aupr": 0.8, "aupr_out": 0.7, "fpr_at_95_tpr": 0.3}
    ood = {"examples": 300, "against": {"folder:x": {"examples": 30, "non_finite": 2}}}
    ood["against"]["folder:x"]["energy"] = scores | {"share_inside": 0.9}
    found = {
        "input": {"uint8": same | {"flips": 0}, "float32 0-1": same | worse, "int4": refused},
        "ood": ood,
        "adversarial": ATTACKS,
        "corruptions": CORRUPTIONS,
    } | axes
    return {
        "examples": {"pets": 300},
        "accuracy": {"pets": 0.75},
        "non_finite": {"pets": 0},
        **{axis: {"pets": values} for axis, values in found.items()},
        "made_with": made_with(),
    }


def compared(skill=1.5, names=NAMES, **changes):
    """What parity.json holds."""
    kinds = [[predictions(10 * k + i, 300, s) for i in range(3)] for k, s in ((1, 1.5), (2, skill))]
    costs = {"training_seconds": [10.0, 5.0], "joules": [None, None], "target_accuracy": 0.7}
    runs = [[made_with(seed=seed) for seed in range(3)] for _ in kinds]
    found = parity.compare(*kinds, names)
    return {
        "kinds": ["float32", "mixed_float16"],
        **found,
        "costs": costs,
        "made_with": {"config": {"margin": 0.005}, "runs": runs},
    } | changes
