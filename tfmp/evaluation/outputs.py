"""The folder of an evaluation's files, and what they say they were made with."""

import dataclasses
import datetime

from tfmp import files, hardware, provenance
from tfmp.errors import UserError


def new_workdir(tool, asked, results):
    """The folder for the files; it is made by `make_workdir`, when all else is right.

    Args:
        tool: Start of the default folder's name.
        asked: The folder that the user named, or None.
        results: Name of the file that may not be there yet.

    Returns:
        A `pathlib.Path`.

    Raises:
        UserError: It holds results, or can't be used.
    """
    workdir = files.workdir(tool, asked)
    try:
        if (workdir / results).exists():
            raise UserError(
                f"{workdir} holds an evaluation. Choose another --workdir, or remove its {results}."
            )
    except OSError as error:
        raise UserError(f"Can't use --workdir={workdir}: {error}.") from None
    return workdir


def make_workdir(workdir):
    """Makes the folder once all else is right, and writes to it before the work and not after.

    Raises:
        UserError: It can't be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / "probe.partial"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"Can't write to --workdir={workdir}: {error}.") from None


def made_with(config, subject, data, split="test", **more):
    """What a file of results says of its origin: a dict.

    Args:
        config: The tool's settings, a dataclass.
        subject: A `tfmp.evaluation.Subject`.
        data: A `tfmp.data.Data`.
        split: The part of it that was predicted.
        **more: What this tool adds, such as the policy.
    """
    run = subject.run
    return {
        "config": dataclasses.asdict(config),
        "model": str(subject.path),
        "model_sha256": subject.sha256,
        "logits": subject.logits,
        "run": {key: run.get(key) for key in ("name", "policy", "seed", "git_commit", "final")},
        **more,
        "tf32": hardware.tf32_in_force(),
        "device": dataclasses.asdict(hardware.describe()),
        "data": {
            "name": data.name,
            "split": split,
            "examples": data.sizes[split],
            "input_shape": data.input_shape,
            "class_names": data.class_names,
        },
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
