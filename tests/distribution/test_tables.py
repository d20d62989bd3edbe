"""Rows of a table on two replicas: as one device trains, with XLA and metrics of a regression."""

import numpy as np
import pytest
from helpers import NONE, assert_close

from tfmp import policies
from tfmp.data import tables
from tfmp.models import tabular
from tfmp.training import TrainingConfig, compile_learner, optimizers
from tfmp.training.tables import TableRegressor

pytestmark = pytest.mark.replicas(2)


def trained(strategy, table, policy, jit_compile):
    """A regressor after an epoch, and its logs."""
    columns = table.columns
    with strategy.scope(), policies.scope(policy):
        model = tabular.build(
            "mlp",
            means=columns.means,
            deviations=columns.deviations,
            with_missing=columns.with_missing,
            categories=[len(x) for x in columns.categorical.values()],
            target_mean=columns.target_mean,
            target_deviation=columns.target_deviation,
            dropout=0,
            seed=0,
        )
        learner = TableRegressor(
            model, mean=columns.target_mean, deviation=columns.target_deviation
        )
        optimizer = optimizers.build(TrainingConfig(), model, 9)
        compile_learner(learner, optimizer, jit_compile=jit_compile)
    # 35 rows of validation and 32 a step: of the last ones all but 3 are padding.
    logs = learner.fit(
        table.train(32, seed=0),
        steps_per_epoch=9,
        validation_data=table.validation(32),
        verbose=0,
        shuffle=False,
    ).history
    return learner, {name: values[-1] for name, values in logs.items()}


@pytest.mark.parametrize(("policy", "jit_compile"), [("float32", True), ("mixed_float16", False)])
def test_two_replicas_learn_a_table_as_one_does(strategy, policy, jit_compile):
    table = tables.load("diabetes")
    one, logs = trained(NONE, table, policy, jit_compile)
    two, other = trained(strategy, table, policy, jit_compile)
    tolerance = 1e-4 if policy == "float32" else 2e-2
    assert_close(one.model, two.model, rtol=tolerance, atol=tolerance / 10)
    assert logs == pytest.approx(other, rel=tolerance)
    assert set(logs) == {f"{x}{y}" for x in ("", "val_") for y in ("loss", "rmse", "mae", "r2")}
    assert np.isfinite(list(logs.values())).all()
