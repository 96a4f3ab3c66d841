"""Run one stage: its notebook with parameters, lines streamed, a log kept, failures in a few lines.

The executed copy bears its stage's name and appears only when the whole notebook has run; until
then it lies in the profile's ``logs`` folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from cunet_lib.core.files import locked, write_atomically, writing
from cunet_lib.core.processes import THREAD_VARIABLES, duration
from cunet_lib.core.settings import ROOT, ConfigError, load_profile
from cunet_lib.core.startup import OWN_KERAS
from cunet_lib.workflow.stages import fingerprint, is_current, parse_stage


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error; the message says which cell, why, and where its copy is."""


def register_kernel() -> None:
    """Register this interpreter as the Jupyter kernel ``cunet`` in its own environment."""
    import matplotlib.font_manager  # noqa: F401  # builds its list of fonts once, here
    from ipykernel import kernelspec

    about = {"kernel_name": "cunet", "display_name": "Conditioned U-Net", "prefix": sys.prefix}
    # What else is silenced, the notebooks' first import does, where the user has not.
    kernelspec.install(**about, env={"PYDEVD_DISABLE_FILE_VALIDATION": "1", **OWN_KERAS})


def say(line: str) -> None:
    """Write one line to the terminal at once, whole even beside other jobs' lines."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run_stage(name: str, parameters: Mapping[str, Any], *, address: str = "") -> bool:
    """Run a stage here, or on a cluster, unless its executed copy is up to date.

    Name and parameters are read by :func:`cunet_lib.workflow.stages.parse_stage`; ``profile`` and
    ``overrides`` are among them. ``address`` is that of a Dask scheduler, empty for this machine.
    Returns False if the notebook failed; the terminal has been told why.

    Raises
    ------
    ConfigError
        If a name, parameter or setting is invalid, the cluster is unfit, or another process
        runs this stage.
    KeyboardInterrupt
        If the run was stopped; the message says what is kept.
    """
    settings = load_profile(parameters["profile"], parameters["overrides"])
    stage = parse_stage(name, parameters)
    made_from = fingerprint(stage, settings)
    if is_current(stage, settings, made_from):
        say(f"{stage.name} | up to date")
        return True
    try:
        if address:
            from cunet_lib.workflow import cluster

            return cluster.run(address, stage, settings)
        busy = f"{stage.name} runs elsewhere; wait for it, or stop it first."
        with locked(settings.paths.logs / f".{stage.name}.lock", busy):
            output = stage.output(settings)
            run_notebook(stage.source, output, stage.parameters, fingerprint=made_from)
    except NotebookFailed as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return False
    except KeyboardInterrupt:
        words = "what was finished is kept, nothing half-written is; the same command continues"
        if folder := stage.run_folder(settings):
            from cunet_lib.train.checkpoint import kept

            words = kept(folder)
        raise KeyboardInterrupt(f"{stage.name} | Stopped; {words}.") from None
    return True


def run_notebook(
    source: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    kernel: str = "cunet",
    echo: Callable[[str], None] = say,
    fingerprint: str = "",
) -> None:
    """Execute a notebook and keep the executed copy.

    Parameters
    ----------
    output
        Where the executed copy goes, ``<results>/<profile>/notebooks/<stage>.ipynb``; it is put
        there only when every cell has run. Log and unfinished copy lie in ``logs`` beside its
        folder.
    parameters
        Values for the ``parameters`` cell, of the types of its defaults.
    echo
        Called with each line for the terminal: what the notebook prints, prefixed with the stage.
    fingerprint
        What the copy's metadata shall say that it was made from.

    Raises
    ------
    ConfigError
        If the kernel does not exist.
    NotebookFailed
        If a cell raises or the kernel dies; the message has a few lines for the terminal, and the
        copy up to that cell is ``logs/<stage>.failed.ipynb``.
    cunet_lib.core.files.WriteError
        If the copy or the log cannot be written.
    """
    stage, logs = output.stem, output.parent.parent / "logs"
    partial, began = logs / f"{stage}.partial.ipynb", time.monotonic()
    with writing(logs / f"{stage}.log"):
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{stage}.failed.ipynb").unlink(missing_ok=True)
        echo(f"{stage} | started")
        with (logs / f"{stage}.log").open("w", encoding="utf-8", buffering=1) as log:
            log.write(f"notebook {source.name}, parameters {parameters}\n")
            _execute(
                source, partial, parameters, kernel, lambda line: echo(f"{stage} | {line}"), log
            )
            seconds = time.monotonic() - began
            log.write(f"done in {seconds:.1f} s\n")
        _keep(partial, source, output, fingerprint)
    echo(f"{stage} | done in {duration(seconds)}")


def _execute(
    source: Path,
    partial: Path,
    values: Mapping[str, Any],
    kernel: str,
    echo: Callable[[str], None],
    log: TextIO,
) -> None:
    import jupyter_client.kernelspec
    import papermill

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    lines, groups, place = _Lines(echo, log), [], tempfile.gettempdir()
    # Names of sockets have an end, at 107 bytes; a folder's name must leave room for them.
    short = place if len(os.fsencode(place)) <= 80 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="cunet-", dir=short) as scratch:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                papermill.execute_notebook(
                    source,
                    partial,
                    parameters=values,
                    kernel_name=kernel,
                    progress_bar=False,
                    stdout_file=lines,
                    stderr_file=_Lines(None, log),
                    cwd=source.parent,
                    start_timeout=180,
                    kernel_manager_class=_kernel_manager(Path(scratch), log, groups),
                )
        except jupyter_client.kernelspec.NoSuchKernel as error:
            raise ConfigError(
                f"The Jupyter kernel {kernel!r} is not registered; `make env` does it."
            ) from error
        except (papermill.PapermillExecutionError, RuntimeError) as error:  # dead, or never begun
            failed = partial.with_name(partial.name.replace(".partial.", ".failed."))
            partial.replace(failed)
            message = _failure(failed, Path(log.name), error)
            log.write(f"\n{message}\n{error}\n")
            raise NotebookFailed(message) from error
        finally:
            lines.finish()
            # The kernel leads its own process group; its workers must not outlive it.
            for group in groups:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)


class _Lines(io.TextIOBase):
    """A text file that passes on whole lines; what a carriage return overwrites is dropped."""

    def __init__(self, echo: Callable[[str], None] | None, log: TextIO):
        self._echo = echo
        self._log = log
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            line = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
            self._log.write(f"{line}\n")
            if self._echo and line:
                self._echo(line)
        return len(text)

    def finish(self) -> None:
        if self._rest:
            self.write("\n")


def _kernel_manager(scratch: Path, log: TextIO, groups: list[int]) -> type:
    """Kernel manager class whose kernel is silent, isolated and has the right threads.

    The user's IPython start-up files and Keras settings are no part of the study, and the kernel
    imports the same ``cunet_lib`` as this process. The process group of each kernel that starts is
    added to ``groups``.
    """
    from jupyter_client.manager import AsyncKernelManager

    threads = os.environ.get("CUNET_THREADS")
    limits = dict.fromkeys(THREAD_VARIABLES, threads) if threads else {}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"IPYTHONDIR": str(scratch), "PYTHONPATH": path, **OWN_KERAS}
    environment = {**limits, **os.environ, **own}

    class QuietKernelManager(AsyncKernelManager):
        def __init__(self, **kwargs):
            # Sockets in a private folder: no port that parallel runs could race for, none to hear.
            super().__init__(
                connection_file=str(scratch / "kernel.json"),
                transport="ipc",
                ip=str(scratch / "kernel"),
                **kwargs,
            )
            # A kernel that computes does not hear that it shall end; Ctrl-C need not wait long.
            self.shutdown_wait_time = 2.0

        async def start_kernel(self, **kwargs):
            streams = {"stdout": subprocess.DEVNULL, "stderr": log}
            await super().start_kernel(**{**kwargs, "env": environment, **streams})
            groups.append(self.provisioner.pid)

    return QuietKernelManager


def _failure(copy: Path, log: Path, error: Exception) -> str:
    """Tell a failure: notebook, cell, error, copy, log; five lines at most."""
    where, reason = "", "the kernel died; perhaps the machine ran out of memory"
    if name := getattr(error, "ename", None):
        where = f" in cell [{error.exec_count}]: {error.source.strip().partition(chr(10))[0]}"
        reason = f"{name}: {error.evalue.strip()}" if error.evalue.strip() else name
        # A long message keeps its first lines here; all of it is in the copy. Our own are written
        # for the reader, line by line.
        reason = "\n  ".join(reason.splitlines()[: None if name == "ConfigError" else 3])
    return (
        f"{log.stem} failed{where}\n  {reason}\n  Executed copy: {shown(copy)}\n  Log: {shown(log)}"
    )


def shown(path: Path) -> str:
    """Path as people type it: relative to the working directory where it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _keep(partial: Path, source: Path, output: Path, fingerprint: str) -> None:
    """Put the executed copy in its place, with its fingerprint and no folder of this machine."""
    import nbformat

    notebook = nbformat.read(partial, as_version=4)
    notebook.metadata["cunet"] = {"fingerprint": fingerprint}
    notebook.metadata.papermill.update(input_path=source.name, output_path=output.name)
    text = nbformat.writes(notebook)
    for folder in (ROOT, output.parent.parent):
        name = json.dumps(f"{folder}/", ensure_ascii=False)[1:-1]
        # Not within the letters of a picture or a sound.
        text = re.sub(rf"(?<![A-Za-z0-9+/]){re.escape(name)}", "", text)
    write_atomically(output, text)
    partial.unlink()
