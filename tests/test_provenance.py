"""What a result says it was made with."""

import importlib.metadata

import tensorflow as tf

import tfmp
from tfmp import provenance


def test_libraries_are_those_that_are_installed_and_not_what_tensorflow_was_built_with(monkeypatch):
    installed = {"tensorflow": "2.99", "nvidia-cublas-cu12": "12.9.3.13"}

    def version(package):
        if package in installed:
            return installed[package]
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"cuda_version": "12.5.1"})
    found = provenance.versions()
    assert found["tensorflow"] == "2.99" and found["tfmp"] == tfmp.__version__
    assert found["keras"] is None and found["cuda"] == "12.5.1"
    assert found["nvidia-cublas-cu12"] == "12.9.3.13" and found["nvidia-cudnn-cu12"] is None
