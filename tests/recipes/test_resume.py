"""Every recipe goes on with its own data only."""

import dataclasses
import importlib
import json

import pytest

from tfmp import cli, errors, recipes


@pytest.mark.parametrize("name", recipes.names())
def test_a_run_of_other_data_is_refused(name, tmp_path):
    module = importlib.import_module(f"tfmp.recipes.{name}")
    config = cli.parse(module.Config, [f"--workdir={tmp_path}", "--resume"])
    settings = json.dumps(dataclasses.asdict(config))
    (tmp_path / "config.json").write_text(settings)
    (tmp_path / "data.json").write_text(json.dumps({"sizes": {"train": 3}}))
    with pytest.raises(errors.UserError, match="number of training examples was 3 and is"):
        module.run(config)
    assert {x.name for x in tmp_path.iterdir()} == {"config.json", "data.json"}
