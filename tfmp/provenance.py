"""What a result was made with: versions and commit."""

import importlib.metadata
import pathlib
import platform
import subprocess

import tensorflow as tf

import tfmp


def versions():
    """Versions of Python and of the packages that decide a run's numbers: a dict of str."""
    packages = ("tfmp", "tensorflow", "keras", "numpy", "tensorflow-datasets")
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = tfmp.__version__ if package == "tfmp" else None
    build = tf.sysconfig.get_build_info()
    return found | {name: build.get(f"{name}_version") for name in ("cuda", "cudnn")}


def git_commit():
    """Commit of the checkout that tfmp runs from, with "+" behind it if changed; else None."""
    folder = pathlib.Path(tfmp.__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*"]
        command += ["--abbrev=40", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
