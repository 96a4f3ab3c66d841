"""TensorFlow without its start-up noise, and libraries without what they load in passing.

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
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # C++ messages below FATAL; errors still arrive as exceptions
    "TF_CPP_MAX_VLOG_LEVEL": "0",
    "GRPC_VERBOSITY": "ERROR",
    "KERAS_BACKEND": "tensorflow",
    # TensorFlow leaves oneDNN off on processors without AVX-512, where trainings take twice as
    # long without it.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # several trainings may share one GPU
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # "frozen modules" lines of the notebooks' debugger
}
"""Variables that :func:`silence` sets where the user has not; the kernel ``cunet`` has them too."""


SPARED = {
    # Reads a grammar of two seconds to check international addresses; notebooks hold none.
    "rfc3987_syntax": "jsonschema",
    # For its wrappers that look like scikit-learn's models; with it comes scipy.stats.
    "sklearn": "keras",
    # For galleries of images.
    "matplotlib": "keras",
}
"""Packages that are not loaded for the one other package that would use them if they were there."""


def share_cores() -> None:
    """Have TensorFlow use as many threads as ``CUNET_THREADS`` says (all cores if it is unset).

    Takes effect only before TensorFlow is imported; its own variables, where set, come first.
    """
    threads = os.environ.get("CUNET_THREADS")
    if threads:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", threads)
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")


def silence() -> None:
    """Set :data:`ENVIRONMENT`, hold back what ``import tensorflow`` writes; heed :data:`SPARED`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not any(isinstance(finder, _SparingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SparingFinder())
        if "tensorflow" not in sys.modules:
            sys.meta_path.insert(0, _QuietFinder())


class _SparingFinder(importlib.abc.MetaPathFinder):
    """Says that a package is missing where :data:`SPARED` says so; else leaves it to the others."""

    def find_spec(self, fullname, path=None, target=None):
        importer = SPARED.get(fullname.partition(".")[0])
        if importer is not None and _importing().partition(".")[0] == importer:
            raise ModuleNotFoundError(
                f"{fullname} is not loaded for {importer} here (cunet_lib.core.startup).",
                name=fullname,
            )


def _importing() -> str:
    """Name of the module whose ``import`` statement runs; empty if there is none."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("importlib"):
        frame = frame.f_back
    return "" if frame is None else frame.f_globals.get("__name__", "")


class _QuietFinder(importlib.abc.MetaPathFinder):
    """Finds ``tensorflow`` as Python would, and has it loaded with descriptor 2 held back."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)  # once is enough, and find_spec below must not come back here
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_quietly(module):
                with _held_back():
                    load(module)

            spec.loader.exec_module = load_quietly
        return spec


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
