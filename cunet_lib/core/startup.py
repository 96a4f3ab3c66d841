"""TensorFlow without its start-up noise, Keras without its user's settings, and nothing in passing.

TensorFlow writes lines such as ``oneDNN custom operations are on`` to file descriptor 2 while its
shared libraries load. ``TF_CPP_MIN_LOG_LEVEL`` is read only afterwards, so no setting silences them
(tensorflow/tensorflow issue 100442). :func:`silence` sets the variables for what comes later, and
holds back descriptor 2 for the moments in which ``tensorflow`` itself is imported. What was held
back is shown if that import fails.

Some libraries try to import others that they can do without, and that the study never asks them
for. Each process would pay for that: :data:`SPARED` names them, and to those importers alone they
seem not to be installed.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # C++ messages below FATAL; errors still arrive as exceptions
    "TF_CPP_MAX_VLOG_LEVEL": "0",
    "GRPC_VERBOSITY": "ERROR",
    # TensorFlow leaves oneDNN off on processors without AVX-512, where trainings take twice as
    # long without it.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # several trainings may share one GPU
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # "frozen modules" lines of the notebooks' debugger
}
"""Variables that :func:`silence` sets where the user has not."""

OWN_KERAS = {"KERAS_HOME": os.devnull}
"""For the study's own processes, commands and kernels: no ``keras.json`` is read or written."""

SPARED = {
    # Reads a grammar of two seconds to check international addresses; notebooks hold none.
    "rfc3987_syntax": "jsonschema",
    # For its wrappers that look like scikit-learn's models; with it comes scipy.stats.
    "sklearn": "keras",
    # For galleries of images.
    "matplotlib": "keras",
}
"""Packages that are not loaded for the one other package that would use them if they were there."""


def silence() -> None:
    """Set :data:`ENVIRONMENT`, hold back what ``import tensorflow`` writes; heed :data:`SPARED`.

    TensorFlow gets as many threads as ``CUNET_THREADS`` says (all cores if it is unset; its own
    variables, where set, come first). Keras gets TensorFlow as its backend, or JAX where the user
    asks for it and it is installed.
    """
    threads = os.environ.get("CUNET_THREADS")
    share = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "2"} if threads else {}
    for name, value in (ENVIRONMENT | share).items():
        os.environ.setdefault(name, value)
    if os.environ.get("KERAS_BACKEND") != "jax" or importlib.util.find_spec("jax") is None:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def plain_keras() -> Iterator[None]:
    """Have Keras build networks as the study means them, whatever this process set before.

    Raises
    ------
    cunet_lib.core.settings.ConfigError
        If Keras was imported before this package, with another backend.
    """
    import keras

    from cunet_lib.core.settings import ConfigError

    if (backend := keras.backend.backend()) not in ("tensorflow", "jax"):
        raise ConfigError(
            f"Keras runs on {backend} here; import cunet_lib before keras, or set KERAS_BACKEND "
            "to tensorflow."
        )
    plain = {"image_data_format": "channels_last", "floatx": "float32", "epsilon": 1e-7}
    before = {name: getattr(keras.config, name)() for name in plain}
    try:
        for name, value in plain.items():
            getattr(keras.config, f"set_{name}")(value)
        yield
    finally:
        for name, value in before.items():
            getattr(keras.config, f"set_{name}")(value)


class _Finder(importlib.abc.MetaPathFinder):
    """Says that :data:`SPARED` packages are missing, and loads ``tensorflow`` quietly."""

    def find_spec(self, fullname, path=None, target=None):
        importer = SPARED.get(fullname.partition(".")[0])
        if importer is not None and _importing().partition(".")[0] == importer:
            raise ModuleNotFoundError(
                f"{fullname} is not loaded for {importer} here (cunet_lib.core.startup).",
                name=fullname,
            )
        if fullname != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_quietly(module):
                with _held_back():
                    load(module)

            spec.loader.exec_module = load_quietly
        return spec


def _importing() -> str:
    """Name of the module whose ``import`` statement runs; empty if there is none."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("importlib"):
        frame = frame.f_back
    return "" if frame is None else frame.f_globals.get("__name__", "")


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Send descriptor 2 to a temporary file; copy the file to stderr if the body raises."""
    try:
        kept = os.dup(2)
    except OSError:  # no stderr at all: nothing to hold back
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
