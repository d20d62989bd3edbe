"""What a result was made with: versions and commit."""

import importlib.metadata
import pathlib
import platform
import subprocess

import tensorflow as tf

import tfmp

# NVIDIA's, which `pip install tensorflow[and-cuda]` brings, in the latest version for CUDA 12.
LIBRARIES = ("nvidia-cublas-cu12", "nvidia-cudnn-cu12", "nvidia-cuda-nvcc-cu12", "nvidia-nccl-cu12")


def versions():
    """Versions of Python and of what decides a run's numbers: a dict of str, or None if missing.

    "cuda" and "cudnn" are those that TensorFlow was built with, which may be older than
    `libraries`.
    """
    packages = ("tensorflow", "keras", "numpy", "tensorflow-datasets")
    found = {"python": platform.python_version(), "tfmp": _installed("tfmp") or tfmp.__version__}
    found |= {package: _installed(package) for package in packages}
    build = tf.sysconfig.get_build_info()
    found |= {name: build.get(f"{name}_version") for name in ("cuda", "cudnn")}
    return found | libraries()


def libraries():
    """Versions of NVIDIA's libraries that pip installed: a dict of str, or None if it didn't."""
    return {library: _installed(library) for library in LIBRARIES}


def _installed(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
