"""Parameters of notebooks: their names, types and choices, checked before any work.

``make`` and ``cunet run`` check them before a kernel starts (:func:`check_parameters`). Papermill
itself assigns whatever name it is given and only warns, so that a run with a misspelt parameter
would end in the results of the default. Every notebook therefore checks for itself
(:func:`check_injected`) what papermill put into it.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cunet_lib.core.settings import ConfigError, parse_yaml, quoted
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS

CHOICES = {"instrument": INSTRUMENTS, "variant": VARIANTS}
"""Values of the parameters that mean the same in every notebook."""

INJECTED = "# Parameters"
"""First line of the cell that papermill puts after the ``parameters`` cell."""


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Parameters of a notebook and their defaults, read from its ``parameters`` cell.

    Papermill's own ``inspect_notebook`` overlooks a parameter whose comment contains ``=``.
    """
    import nbformat

    for cell in nbformat.read(path, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            return {
                name: ast.literal_eval(value) for name, value in _assignments(cell.source).items()
            }
    return {}


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with strings read as the types of the notebook's defaults.

    Raises
    ------
    ConfigError
        If the notebook has no parameter of that name, or the value is of another type or none of
        the choices.
    """
    return _checked(notebook_parameters(path), parameters, f"Notebook {path.stem}")


def check_injected(history: Sequence[str] | None = None) -> None:
    """Check what papermill put into the running notebook; call it in the first cell of code.

    Does nothing where papermill injected nothing, as in JupyterLab.

    Parameters
    ----------
    history
        Sources of the cells that have run, in order; those of the running kernel if not given.

    Raises
    ------
    ConfigError
        If a parameter's name is unknown (the message lists the valid ones), or its value is of
        another type than the default or none of the choices.
    """
    if history is None:
        from IPython import get_ipython

        shell = get_ipython()
        history = [] if shell is None else shell.user_ns.get("In", [])
    sources = list(history)
    given = [place for place, source in enumerate(sources) if _is_injected(source)]
    if not given:
        return
    # Papermill's cell follows the tagged one, which thus was the last before it.
    before = [source for source in sources[: given[-1]] if source and not _is_injected(source)]
    if not before:
        return
    declared = {name: ast.literal_eval(v) for name, v in _assignments(before[-1]).items()}
    values = {}
    for name, expression in _assignments(sources[given[-1]]).items():
        try:
            values[name] = ast.literal_eval(expression)
        except ValueError as error:  # such as float('nan')
            raise ConfigError(
                f"Parameter {name} must be a plain value (given: {ast.unparse(expression)})."
            ) from error
    _checked(declared, values, "This notebook")


def _is_injected(source: str) -> bool:
    return source.split("\n", 1)[0].strip() == INJECTED


def _assignments(source: str) -> dict[str, ast.expr]:
    return {
        target.id: statement.value
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _checked(
    defaults: Mapping[str, Any], parameters: Mapping[str, Any], who: str
) -> dict[str, Any]:
    unknown = [name for name in parameters if name not in defaults]
    if unknown:
        raise ConfigError(
            f"{who} has no parameter {', '.join(map(repr, unknown))}; valid: {', '.join(defaults)}."
        )
    of = "" if who == "This notebook" else f" of {who.removeprefix('Notebook ')}"
    return {
        name: _valid(name, defaults[name], value, f"Parameter {name}{of}")
        for name, value in parameters.items()
    }


def _valid(name: str, default: Any, value: Any, what: str) -> Any:
    value = _as_type_of(default, value, what)
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"{what} must be one of {', '.join(CHOICES[name])} (given: {value!r}).")
    if name == "seed" and value < 0:
        raise ConfigError(f"{what} must be a whole number, 0 or above (given: {value!r}).")
    return value


def _as_type_of(default: Any, value: Any, what: str) -> Any:
    if isinstance(default, str):
        if isinstance(value, str):
            return value
        raise ConfigError(
            f"{what} must be a string (given: {quoted(value)}; "
            "papermill passes text as it is with -r)."
        )
    parsed = value
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError):  # it stays text then, which is of another type
            parsed = parse_yaml(value)
    if isinstance(default, float) and type(parsed) in (int, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
            parsed = float(parsed)
    if default is not None and type(parsed) is not type(default):
        raise ConfigError(
            f"{what} must be of type {type(default).__name__} (given: {quoted(value)})."
        )
    return parsed
