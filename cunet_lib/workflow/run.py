"""Run one notebook with parameters: lines streamed, a log kept, failures told in a few lines.

The executed copy bears its stage's name and appears only when the whole notebook has run; until
then it lies in the profile's ``logs`` folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from cunet_lib.core.files import UNWRITABLE, WriteError, replacing
from cunet_lib.core.processes import THREAD_VARIABLES, duration
from cunet_lib.core.settings import ROOT, ConfigError, Profile
from cunet_lib.core.startup import ENVIRONMENT
from cunet_lib.workflow.parameters import NOTEBOOKS, check_parameters
from cunet_lib.workflow.stages import Stage, notebook_names


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error; the message says which cell, why, and where its copy is."""


def register_kernel() -> Path:
    """Register this interpreter as the Jupyter kernel ``cunet`` in its own environment."""
    import matplotlib.font_manager  # noqa: F401  # builds its list of fonts once, here
    from ipykernel import kernelspec

    return Path(
        kernelspec.install(
            kernel_name="cunet",
            display_name="Conditioned U-Net",
            prefix=sys.prefix,
            env=ENVIRONMENT,
        )
    )


def stopped(stage: Stage, settings: Profile) -> str:
    """What a stage that was stopped has kept, and how to go on: one sentence for the terminal."""
    folder = stage.run_folder(settings)
    if folder is None:
        return (
            f"{stage.name} | Stopped; what was finished is kept, nothing half-written is; "
            "the same command goes on."
        )
    from cunet_lib.train.checkpoint import kept

    return f"{stage.name} | Stopped; {kept(folder)}."


def say(line: str) -> None:
    """Write one line to the terminal at once, whole even beside other jobs' lines."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run_notebook(
    name: str | Path,
    output: str | Path,
    parameters: Mapping[str, Any],
    *,
    kernel: str = "cunet",
    echo: Callable[[str], None] = say,
    logs: str | Path | None = None,
    fingerprint: str = "",
) -> Path:
    """Execute a notebook and keep the executed copy.

    Parameters
    ----------
    name
        A notebook of ``notebooks/`` (``"00_corpus"``) or a path to one.
    output
        Where the executed copy goes; it is put there only when every cell has run.
    parameters
        Values for the ``parameters`` cell; strings are read as the types of its defaults.
    kernel
        Jupyter kernel.
    echo
        Called with each line for the terminal: what the notebook prints, prefixed with the stage.
    logs
        Folder for ``<stage>.log`` and unfinished copies; by default ``logs`` beside the folder of
        ``output``.
    fingerprint
        What the copy's metadata shall say that it was made from.

    Raises
    ------
    ConfigError
        If the notebook, the kernel or a parameter does not exist.
    NotebookFailed
        If a cell raises or the kernel dies; the message has a few lines for the terminal, and the
        copy up to that cell is ``<logs>/<stage>.failed.ipynb``.
    cunet_lib.core.files.WriteError
        If the copy or the log cannot be written.
    """
    source = Path(name) if Path(name).suffix == ".ipynb" else NOTEBOOKS / f"{name}.ipynb"
    if not source.is_file():
        raise ConfigError(f"No notebook {source.stem!r}; there are: {', '.join(notebook_names())}.")
    values = check_parameters(source, parameters)
    output = Path(output).resolve()
    stage = output.stem
    logs = Path(logs).resolve() if logs else output.parent.parent / "logs"
    began = time.monotonic()
    try:
        for folder in (logs, output.parent):
            folder.mkdir(parents=True, exist_ok=True)
        (logs / f"{stage}.failed.ipynb").unlink(missing_ok=True)
        echo(f"{stage} | started")
        with (logs / f"{stage}.log").open("w", encoding="utf-8", buffering=1) as log:
            log.write(f"notebook {source.name}, parameters {values}\n")
            partial = logs / f"{stage}.partial.ipynb"
            _execute(source, partial, values, kernel, lambda line: echo(f"{stage} | {line}"), log)
            seconds = time.monotonic() - began
            log.write(f"done in {seconds:.1f} s\n")
        _finish(partial, source, output, fingerprint)
        # Later stages believe in this file: it is brought to the disk before it bears its name.
        with replacing(output) as copy:
            shutil.copyfile(partial, copy)
        partial.unlink()
    except OSError as error:
        if error.errno not in UNWRITABLE or isinstance(error, WriteError):
            raise
        written = Path(error.filename or logs / stage)
        raise WriteError(error.errno, error.strerror, written) from error
    echo(f"{stage} | done in {duration(seconds)}")
    return output


def _execute(
    source: Path,
    partial: Path,
    values: Mapping[str, Any],
    kernel: str,
    echo: Callable[[str], None],
    log: TextIO,
) -> None:
    import jupyter_client.kernelspec
    import nbclient.exceptions
    import papermill

    lines, groups = _Lines(echo, log), []
    with tempfile.TemporaryDirectory(prefix="cunet-") as scratch, _quiet_papermill():
        try:
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
        except (papermill.PapermillExecutionError, nbclient.exceptions.DeadKernelError) as error:
            failed = partial.with_name(partial.name.replace(".partial.", ".failed."))
            partial.replace(failed)
            message = _failure(failed, Path(log.name), error)
            log.write(f"\n{message}\n{getattr(error, 'traceback', None) or [error]}\n")
            raise NotebookFailed(message) from error
        finally:
            lines.finish()
            # The kernel leads its own process group; its workers must not outlive it.
            for group in groups:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)


class _Lines:
    """A text file that passes on whole lines; what a carriage return overwrites is dropped."""

    def __init__(self, echo: Callable[[str], None] | None, log: TextIO):
        self._echo = echo
        self._log = log
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._pass_on(line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: part of a line stays until the line ends."""

    def finish(self) -> None:
        if self._rest:
            self._pass_on(self._rest)
        self._rest = ""

    def _pass_on(self, line: str) -> None:
        line = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
        self._log.write(f"{line}\n")
        if self._echo and line:
            self._echo(line)


@contextlib.contextmanager
def _quiet_papermill() -> Iterator[None]:
    """Keep papermill's and its libraries' notices off the terminal."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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
    own = {"IPYTHONDIR": str(scratch), "KERAS_HOME": str(scratch), "PYTHONPATH": path}
    environment = {**ENVIRONMENT, **limits, **os.environ, **own}

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
    import nbformat

    # The cell at which execution stopped, its number as in `In [number]`.
    code = [c for c in nbformat.read(copy, as_version=4).cells if c.cell_type == "code"]
    begun = [n for n, c in enumerate(code) if c.metadata.get("papermill", {}).get("start_time")]
    number = begun[-1] + 1 if begun else 0
    source = code[number - 1].source.strip() if begun else ""
    if name := getattr(error, "ename", None):
        reason = f"{name}: {error.evalue.strip()}" if error.evalue.strip() else name
        # A long message keeps its first lines here; all of it is in the copy. Our own are written
        # for the reader, line by line.
        reason = "\n  ".join(reason.splitlines()[: None if name == "ConfigError" else 3])
    else:
        reason = "the kernel died; perhaps the machine ran out of memory"
    return (
        f"{log.stem} failed in cell [{number}]: {source.partition(chr(10))[0]}\n"
        f"  {reason}\n"
        f"  Executed copy: {shown(copy)}\n"
        f"  Log: {shown(log)}"
    )


def shown(path: Path) -> str:
    """Path as people type it: relative to the working directory where it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _finish(partial: Path, source: Path, output: Path, fingerprint: str) -> None:
    """Note the fingerprint, and make the paths that papermill and warnings left relative."""
    import nbformat

    notebook = nbformat.read(partial, as_version=4)
    notebook.metadata["cunet"] = {"fingerprint": fingerprint}
    for key, place in (("input_path", source.resolve()), ("output_path", output)):
        inside = place.is_relative_to(ROOT)  # else: the profile's folder and below
        place = place.relative_to(ROOT) if inside else Path(*place.parts[-3:])
        notebook.metadata.papermill[key] = place.as_posix()
    for cell in notebook.cells:
        for part in cell.get("outputs", []):
            if "text" in part:
                part["text"] = part["text"].replace(f"{ROOT}/", "")
            for kind, value in part.get("data", {}).items():
                if kind.startswith("text/") and isinstance(value, str):
                    part["data"][kind] = value.replace(f"{ROOT}/", "")
    nbformat.write(notebook, partial)
