"""What a run cost, and what its model's predictions cost: the cost card of `results.json`.

Plain arithmetic of what was measured. What was not measured is None, with the reason beside it,
and so is all that follows from it.
"""

import math

HOUR_S = 3600.0


def card(fitted, *, epoch_examples, devices, price_per_hour, joules_missing, inference_missing):
    """The cost of training.

    Training is all of `fit`, in every process of the run: compiling, all epochs with their
    validation, saving. Loading data, building the model and the test images are apart.

    Args:
        fitted: A `tfmp.training.loop.Fitted`.
        epoch_examples: Examples of an epoch's training steps.
        devices: Number of GPUs that trained; 1 on a CPU.
        price_per_hour: Price of one of them for an hour, in any currency, or None.
        joules_missing: Why energy may be missing.
        inference_missing: Why there are no predictions' costs yet.

    Returns:
        A dict. `seconds_per_epoch` and `joules_per_epoch` are of an epoch's training steps alone,
        without compiling, validation and saving.
    """
    speed = fitted.examples_per_second
    seconds_per_epoch = epoch_examples / speed if speed else None
    hours = devices * fitted.seconds / HOUR_S
    return {
        "seconds_per_epoch": seconds_per_epoch,
        "joules_per_epoch": _product(fitted.watts, seconds_per_epoch),
        "seconds": fitted.seconds,
        "joules": fitted.joules,
        "joules_missing": joules_missing if fitted.joules is None else None,
        "devices": devices,
        "device_hours": hours,
        "price_per_hour": price_per_hour,
        "price": _product(hours, price_per_hour),
        "inference": None,
        "inference_missing": inference_missing,
        "break_even_inferences": None,
    }


def joules_missing(fitted, device_kind):
    """Why the energy of a run is not known, if it isn't.

    Args:
        fitted: A `tfmp.training.loop.Fitted`.
        device_kind: "gpu", "tpu" or "cpu".
    """
    if device_kind != "gpu":
        return f"no power is read on a {device_kind.upper()}"
    if fitted.joules_before is None:
        return "an earlier part of the run was not measured"
    return "neither nvidia-ml-py nor nvidia-smi told the power throughout"


def with_inference(training, measured):
    """The card with the costs of predictions, and after how many training is the smaller share.

    Args:
        training: The dict of `card`.
        measured: The dict of `tfmp.training.inference.measure`.

    Returns:
        The dict of `card`; the price of a prediction is that of the device's time.
        `break_even_inferences` has the first number of predictions at the best batch size that
        cost more than training did: in `joules`, and in `device_time`, which is the same in money.
    """
    rows = [_prices(row, training["price_per_hour"]) for row in measured["rows"]]
    if not rows:
        return training | {"inference_missing": measured["problem"]}
    best = max(rows, key=lambda row: row["examples_per_second"])
    return training | {
        "inference": {
            "batch_1": next((row for row in rows if row["batch_size"] == 1), None),
            "best": best,
        },
        "inference_missing": measured["problem"],
        "break_even_inferences": {
            "joules": _break_even(training["joules"], best["joules_per_example"]),
            "device_time": _break_even(
                training["device_hours"] * HOUR_S, 1 / best["examples_per_second"]
            ),
        },
    }


def lines(card, device_kind):
    """The card in words.

    Args:
        card: The dict of `card` or `with_inference`.
        device_kind: "gpu", "tpu" or "cpu".

    Returns:
        A dict of str by name.
    """
    hours = "GPU hours" if device_kind == "gpu" else "device hours"
    price, epoch = card["price"], card["seconds_per_epoch"]
    found = {
        "training cost": _joined(
            f"{card['seconds']:.1f} s",
            f"{card['device_hours']:.3g} {hours}",
            _energy(card["joules"]),
            price is not None and f"price {price:.3g}",
        ),
        "an epoch": _joined(epoch and f"{epoch:.3g} s", _energy(card["joules_per_epoch"])),
        "energy": card["joules_missing"] and f"not measured: {card['joules_missing']}",
    }
    for row in (card["inference"] or {}).values():
        if row:  # the best may be batch 1, and each has a line of its own
            found[f"batch {row['batch_size']}"] = _prediction(row)
    if card["inference_missing"]:
        some = "not all measured" if card["inference"] else "not measured"
        found["predictions"] = f"{some}: {card['inference_missing']}"
    if even := card["break_even_inferences"]:
        found["break-even"] = "after " + _joined(
            even["joules"] and f"{even['joules']:,} predictions in energy",
            f"{even['device_time']:,} predictions in device time",
        )
    return {name: text for name, text in found.items() if text}


def _prices(row, price_per_hour):
    speed, watts = row["examples_per_second"], row["watts"]
    return {
        "batch_size": row["batch_size"],
        "examples_per_second": speed,
        "joules_per_example": watts / speed if watts else None,
        "price_per_million": _product(1e6 / speed / HOUR_S, price_per_hour),
    }


def _prediction(row):
    joules, price = row["joules_per_example"], row["price_per_million"]
    return _joined(
        f"{row['examples_per_second']:,.0f} predictions/s",
        joules and f"{joules:.3g} J each",
        price is not None and f"price {price:.3g} a million",
    )


def _break_even(training, prediction):
    """The first whole number of predictions that together cost more than training."""
    if training is None or not prediction:
        return None
    return math.floor(training / prediction) + 1


def _product(a, b):
    return None if a is None or b is None else a * b


def _energy(joules):
    if joules is None:
        return None
    size, unit = (1, "J") if joules < 1e3 else (1e3, "kJ") if joules < 3.6e6 else (3.6e6, "kWh")
    return f"{joules / size:.4g} {unit}"


def _joined(*parts):
    return ", ".join(part for part in parts if part)
