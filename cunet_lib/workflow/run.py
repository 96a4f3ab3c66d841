"""Run one notebook with parameters: lines streamed, a log kept, failures told in a few lines.

A stage is a notebook and what it is about: ``00_corpus``, ``02_train_unet.bass-seed0``,
``04_evaluate.unet-seed0``. Its executed copy bears the stage's name and appears only when the whole
notebook has run; until then it lies in the profile's ``logs`` folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cunet_lib.core.files import UNWRITABLE, WriteError, replacing
from cunet_lib.core.processes import THREAD_VARIABLES, duration
from cunet_lib.core.settings import ROOT, ConfigError, Profile
from cunet_lib.core.startup import ENVIRONMENT
from cunet_lib.workflow.parameters import check_parameters, notebook_parameters

NOTEBOOKS = ROOT / "notebooks"

SUBJECTS = {
    "02_train_unet": "instrument",
    "03_train_cunet": "variant",
    "04_evaluate": "model",
    "07_conditions": "model",
}
"""Notebooks that run once per subject and seed, and the parameter that names the subject."""

TRAININGS = {"02_train_unet": "unet_", "03_train_cunet": ""}
"""Notebooks that train, and what stands before the subject in the name of the run folder."""


def run_name(stage: str) -> str | None:
    """Name of the run folder that a stage trains into; None if it trains nothing.

    >>> run_name("02_train_unet.bass-seed0"), run_name("05_plot")
    ('unet_bass-seed0', None)
    """
    notebook, _, subject = stage.partition(".")
    return TRAININGS[notebook] + subject if notebook in TRAININGS else None


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error; the message says which cell, why, and where its copy is."""


@dataclass(frozen=True)
class Stage:
    """One run of one notebook.

    Attributes
    ----------
    notebook
        Name of the source notebook, ``"03_train_cunet"``.
    name
        Name of the executed copy without suffix, ``"03_train_cunet.dense_simple-seed0"``.
    parameters
        Values for the notebook's parameters cell.
    """

    notebook: str
    name: str
    parameters: Mapping[str, Any]

    def output(self, settings: Profile) -> Path:
        """Path of the executed copy."""
        return settings.paths.notebooks / f"{self.name}.ipynb"

    def run_folder(self, settings: Profile) -> Path | None:
        """Run folder that it trains into; None if it trains nothing."""
        name = run_name(self.name)
        return settings.paths.runs / name if name else None


def register_kernel() -> Path:
    """Register this interpreter as the Jupyter kernel ``cunet`` in its own environment."""
    from ipykernel import kernelspec

    return Path(
        kernelspec.install(
            kernel_name="cunet",
            display_name="Conditioned U-Net",
            prefix=sys.prefix,
            env=ENVIRONMENT,
        )
    )


def notebook_names() -> list[str]:
    """Names of the source notebooks, in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def parse_stage(name: str, parameters: Mapping[str, Any] | None = None) -> Stage:
    """Read a stage's name, ``<notebook>`` or ``<notebook>.<subject>-seed<n>``.

    The name of a run beside the study's own ends with its suffix:
    ``03_train_cunet.dense_complex-seed0-steady``.

    Parameters
    ----------
    name
        The stage; without a subject, ``parameters`` or the notebook's defaults supply it.
    parameters
        Further notebook parameters; strings are read as the type of the parameter's default.

    Raises
    ------
    ConfigError
        If there is no such notebook, the name is malformed, or a parameter is unknown, of another
        type, or in contradiction to the name.
    """
    notebook, _, run = name.partition(".")
    if notebook not in notebook_names():
        raise ConfigError(f"No notebook {notebook!r}; there are: {', '.join(notebook_names())}.")
    subject = SUBJECTS.get(notebook)
    chosen = dict(parameters or {})
    if "." in name:
        match = re.fullmatch(r"(?P<subject>\w+)-seed(?P<seed>\d+)(?:-(?P<suffix>\w+))?", run)
        if subject is None or match is None:
            form = f"{notebook}.<{subject}>-seed<number>" if subject else notebook
            raise ConfigError(f"Stage {name!r} must look like {form}.")
        given = {subject: match["subject"], "seed": int(match["seed"])}
        if match["suffix"]:
            given["suffix"] = match["suffix"]
        for key, value in given.items():
            if str(chosen.setdefault(key, value)) != str(value):
                raise ConfigError(f"Stage {name!r} and parameter {key} = {chosen[key]} disagree.")
    values = check_parameters(NOTEBOOKS / f"{notebook}.ipynb", chosen)
    if subject:
        known = {**notebook_parameters(NOTEBOOKS / f"{notebook}.ipynb"), **values}
        missing = {subject, "seed"} - set(known)
        if missing:
            raise ConfigError(f"Notebook {notebook} has no parameter {', '.join(sorted(missing))}.")
        name = f"{notebook}.{known[subject]}-seed{known['seed']}"
        if not re.fullmatch(r"\w+", str(known[subject])):
            raise ConfigError(f"Parameter {subject} = {known[subject]!r} must be a plain name.")
        if known.get("suffix"):
            if not re.fullmatch(r"[A-Za-z0-9_]+", known["suffix"]):
                raise ConfigError(
                    f"Parameter suffix = {known['suffix']!r} may hold letters, digits and _ only."
                )
            name += f"-{known['suffix']}"
    return Stage(notebook, name, values)


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
    kernel: str = "cunet",
    echo: Callable[[str], None] = say,
    logs: str | Path | None = None,
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

    Returns
    -------
    Path
        ``output``.

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
    stage = Path(output).stem
    try:
        return _run(name, output, parameters, kernel, echo, logs)
    except OSError as error:
        if error.errno not in UNWRITABLE or isinstance(error, WriteError):
            raise
        folder = Path(logs) if logs else Path(output).parent.parent / "logs"
        written = Path(error.filename or folder / stage)
        raise WriteError(error.errno, error.strerror, written) from error


def _run(
    name: str | Path,
    output: str | Path,
    parameters: Mapping[str, Any],
    kernel: str,
    echo: Callable[[str], None],
    logs: str | Path | None,
) -> Path:
    import jupyter_client.kernelspec
    import nbclient.exceptions
    import papermill

    source = Path(name) if Path(name).suffix == ".ipynb" else NOTEBOOKS / f"{name}.ipynb"
    if not source.is_file():
        raise ConfigError(f"No notebook {source.stem!r}; there are: {', '.join(notebook_names())}.")
    values = check_parameters(source, parameters)
    output = Path(output).resolve()
    stage = output.stem
    logs = Path(logs).resolve() if logs else output.parent.parent / "logs"
    log_path = logs / f"{stage}.log"
    partial = logs / f"{stage}.partial.ipynb"
    failed = logs / f"{stage}.failed.ipynb"
    logs.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)

    began = time.monotonic()
    echo(f"{stage} | started")
    with (
        log_path.open("w", encoding="utf-8", buffering=1) as log,
        tempfile.TemporaryDirectory(prefix="cunet-") as scratch,
        _quiet_papermill(),
    ):
        log.write(f"notebook {source.name}, parameters {values}\n")
        lines = _Lines(lambda line: echo(f"{stage} | {line}"), log)
        manager, kernel_groups = _kernel_manager_class(Path(scratch), log)
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
                kernel_manager_class=manager,
            )
        except jupyter_client.kernelspec.NoSuchKernel as error:
            raise ConfigError(
                f"The Jupyter kernel {kernel!r} is not registered; `make env` does it."
            ) from error
        except (papermill.PapermillExecutionError, nbclient.exceptions.DeadKernelError) as error:
            partial.replace(failed)
            message = _failure(stage, failed, log_path, error)
            log.write(f"\n{message}\n{getattr(error, 'traceback', None) or [error]}\n")
            raise NotebookFailed(message) from error
        finally:
            lines.finish()
            # The kernel leads its own process group; its workers must not outlive it.
            for group in kernel_groups:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
        seconds = time.monotonic() - began
        log.write(f"done in {seconds:.1f} s\n")
    _without_machine_paths(partial, source, output)
    # Make believes in this file: it is brought to the disk before it bears its name.
    with replacing(output) as copy:
        shutil.copyfile(partial, copy)
    partial.unlink()
    echo(f"{stage} | done in {duration(seconds)}")
    return output


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


def _kernel_manager_class(scratch: Path, log: TextIO) -> tuple[type, list[int]]:
    """Make a kernel manager class whose kernel is silent, isolated and has the right threads.

    Returns the class and a list to which each started kernel's process group is added.
    """
    from jupyter_client.manager import AsyncKernelManager

    environment = _kernel_environment(scratch)
    groups: list[int] = []

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
            await super().start_kernel(
                **{**kwargs, "env": environment, "stdout": subprocess.DEVNULL, "stderr": log}
            )
            groups.append(self.provisioner.pid)

    return QuietKernelManager, groups


def _kernel_environment(scratch: Path) -> dict[str, str]:
    """Environment of the kernel.

    The user's IPython start-up files and Keras settings are no part of the study, and the kernel
    imports the same ``cunet_lib`` as this process.
    """
    threads = os.environ.get("CUNET_THREADS")
    limits = dict.fromkeys(THREAD_VARIABLES, threads) if threads else {}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"IPYTHONDIR": str(scratch), "KERAS_HOME": str(scratch), "PYTHONPATH": path}
    return {**ENVIRONMENT, **limits, **os.environ, **own}


def _failure(stage: str, copy: Path, log: Path, error: Exception) -> str:
    """Tell a failure: notebook, cell, error, copy, log; five lines at most."""
    number, first_line = _last_started_cell(copy)
    name = getattr(error, "ename", None)
    if name:
        reason = f"{name}: {error.evalue.strip()}" if error.evalue.strip() else name
        # A long message keeps its first lines here; all of it is in the copy. Our own are written
        # for the reader, line by line.
        reason = "\n  ".join(reason.splitlines()[: None if name == "ConfigError" else 3])
    else:
        reason = "the kernel died; perhaps the machine ran out of memory"
    return (
        f"{stage} failed in cell [{number}]: {first_line}\n"
        f"  {reason}\n"
        f"  Executed copy: {shown(copy)}\n"
        f"  Log: {shown(log)}"
    )


def _last_started_cell(path: Path) -> tuple[int, str]:
    """Number, as in ``In [number]``, and first line of the cell at which execution stopped."""
    import nbformat

    number, stopped = 0, (0, "")
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        number += 1
        if cell.metadata.get("papermill", {}).get("start_time"):
            code = [line for line in cell.source.splitlines() if line.strip()]
            stopped = (number, code[0] if code else "")
    return stopped


def shown(path: Path) -> str:
    """Path as people type it: relative to the working directory where it lies below."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _without_machine_paths(path: Path, source: Path, output: Path) -> None:
    """Make the paths that papermill and warnings left in an executed copy relative."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for key, place in (("input_path", source.resolve()), ("output_path", output)):
        try:
            place = place.relative_to(ROOT)
        except ValueError:  # results elsewhere: the profile's folder and below
            place = Path(*place.parts[-3:])
        notebook.metadata.papermill[key] = place.as_posix()
    for cell in notebook.cells:
        for part in cell.get("outputs", []):
            if "text" in part:
                part["text"] = part["text"].replace(f"{ROOT}/", "")
            for kind, value in part.get("data", {}).items():
                if kind.startswith("text/") and isinstance(value, str):
                    part["data"][kind] = value.replace(f"{ROOT}/", "")
    nbformat.write(notebook, path)
