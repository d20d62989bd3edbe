"""The files of recipes/cluster: what Slurm and Kubernetes are told, and what they then do."""

import json
import os
import pathlib
import subprocess

import pytest
import yaml
from kubeflow_trainer_api import models

from tfmp import cli, workers
from tfmp.recipes import resnet

CLUSTER = pathlib.Path(__file__).parents[1] / "recipes" / "cluster"
SLURM = CLUSTER / "slurm.sh"
RUNTIME, JOB = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())


def test_bash_reads_the_slurm_file():
    subprocess.run(["bash", "-n", SLURM], check=True)
    words = [x.split() for x in SLURM.read_text().splitlines() if x.startswith("#SBATCH")]
    options = dict(word[1].split("=") for word in words if "=" in word[1])
    assert options["--ntasks-per-node"] == "1" and "--nodes" in options


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (2, 0, False), (3, 0, False), (75, 0, True), (137, 1, True), (75, 20, False)],
)
def test_slurm_starts_again_what_can_go_on(tmp_path, status, restarts, again):
    for name, code in (("srun", f'echo "srun $*"; exit {status}'), ("scontrol", 'echo "$*"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", SLURM, "python", "-m", "tfmp.recipes.resnet", "--workdir=run with space"],
        env=os.environ | variables | path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status
    assert ("requeue 7" in ended.stdout) == again
    (said,) = (x for x in ended.stdout.splitlines() if x.startswith("srun"))
    assert said.endswith("python -m tfmp.recipes.resnet --workdir=run with space --resume")


def fits(document, model):
    """Whether a document is what one of Kubeflow's models of its own schema takes.

    Types and required fields are checked on the way in; a field that is unknown, of JobSet or
    Kubernetes too, doesn't come out again.
    """
    try:
        return model.from_dict(document).to_dict() == document
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("document", "model"),
    [
        (RUNTIME, models.TrainerV1alpha1TrainingRuntime),
        (JOB, models.TrainerV1alpha1TrainJob),
    ],
)
def test_the_manifest_fits_kubeflow_s_schema(document, model):
    assert fits(document, model)
    # Of Kubernetes, deep inside; of Kubeflow; a type.
    for wrong, right in (("restartPolice", "restartPolicy"), ("numNode", "numNodes")):
        text = json.dumps(document)
        assert right not in text or not fits(json.loads(text.replace(right, wrong)), model)
    text = json.dumps(document).replace('"name": "tfmp"', '"name": 1')
    assert not fits(json.loads(text), model)


def container():
    """The container of the runtime, and the program's arguments of the job."""
    (replicated,) = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (found,) = pod["containers"]
    assert replicated["name"] == found["name"] == "node"
    return found, JOB["spec"]["trainer"]


def test_the_manifest_tells_each_worker_who_it_is(monkeypatch):
    found, trainer = container()
    (count,) = trainer["env"]
    assert count == {"name": "WORKERS", "value": str(trainer["numNodes"])}
    pod = {"JOB": "resnet", "WORKERS": "3", "JOB_COMPLETION_INDEX": "2"}
    said = subprocess.run(
        [*found["command"], "printenv", "TF_CONFIG"],
        env=os.environ | pod,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    monkeypatch.setenv("TF_CONFIG", said)
    hosts = tuple(f"resnet-node-0-{index}.resnet:8888" for index in range(3))
    assert workers.in_environment() == workers.Worker(2, hosts, "worker", 2)


def test_the_manifest_s_program_has_flags_that_are_there():
    _, trainer = container()
    program, flags = trainer["args"][:3], trainer["args"][3:]
    assert program == ["python", "-m", "tfmp.recipes.resnet"]
    assert cli.parse(resnet.Config, flags).resume is True


def test_the_commands_stand_in_the_files():
    for file in (SLURM, CLUSTER / "kubernetes.yaml"):
        text = file.read_text()
        command = "sbatch" if file == SLURM else "kubectl apply -f"
        assert f"{command} recipes/cluster/{file.name}" in text
        assert f"{command} recipes/cluster/{file.name}" in (CLUSTER / "README.md").read_text()
