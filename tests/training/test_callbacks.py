"""The CSV log that a resumed run goes on with."""

import math

import keras
import pytest

from tfmp import files
from tfmp.training import callbacks

LOG = "epoch,loss,val_accuracy\n0,1.5,0.5\n1,1.0,0.7\n2,0.5,NA\n"


@pytest.fixture
def log(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text(LOG)
    return file


def test_rows(log, tmp_path):
    rows = files.read_metrics(log)
    assert rows[1] == {"epoch": 1, "loss": 1.0, "val_accuracy": 0.7}
    assert math.isnan(rows[2]["val_accuracy"])
    assert files.read_metrics(tmp_path / "none.csv") == []


@pytest.mark.parametrize("epochs", [0, 1, 2, 3, 9])
def test_rows_of_epochs_to_be_done_again_go(log, epochs):
    files.keep_epochs(log, epochs)
    assert len(files.read_metrics(log)) == min(epochs, 3)
    assert log.read_text() == "" if epochs == 0 else log.read_text().startswith("epoch,loss")


def test_a_row_cut_off_by_a_kill_goes(log):
    log.write_text(LOG.removesuffix(",0.5,NA\n"))
    files.keep_epochs(log, 2)
    assert len(files.read_metrics(log)) == 2


def test_early_stopping_counts_the_epochs_before(log):
    log.write_text("epoch,val_accuracy\n0,0.9\n1,0.8\n2,0.8\n")
    stopping = callbacks.EarlyStopping(3, log, "accuracy", "max")
    stopping.set_model(type("Model", (), {"stop_training": False})())
    stopping.on_train_begin()
    assert not stopping.model.stop_training
    stopping.on_epoch_end(3, {"val_accuracy": 0.85})
    assert stopping.model.stop_training


def test_not_every_step_waits_for_its_logs():
    """A number of a log is asked for by the progress bar only, and at most twice a second."""

    class Log:
        asked = 0

        def __float__(self):
            Log.asked += 1
            return 1.0

    class Sees(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    seen: list = []
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    every = callbacks.Callbacks([Sees()], verbose=2, epochs=1, steps=100, model=model)
    every.on_train_begin()
    every.on_epoch_begin(0)
    for batch in range(100):
        every.on_train_batch_end(batch, {"loss": Log()})
    assert 1 <= Log.asked < 20
    assert len(seen) == 100 and all(isinstance(log, Log) for log in seen)
