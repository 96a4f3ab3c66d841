"""Parameters of notebooks: their names, types and choices, checked before any work.

``make`` and ``cunet run`` check them before a kernel starts (:func:`check_parameters`). Papermill
only warns of a name that a notebook does not have, and would run it with the default. Every
notebook therefore checks what papermill put into it (:func:`check_injected`).
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cunet_lib.core.settings import ROOT, ConfigError, parse_yaml, quoted
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS

NOTEBOOKS = ROOT / "notebooks"

CHOICES = {"instrument": INSTRUMENTS, "variant": tuple(VARIANTS)}
"""Values of the parameters that mean the same in every notebook."""

INJECTED = "# Parameters"
"""First line of the cell that papermill puts after the ``parameters`` cell."""


def code_cells(path: Path) -> list[tuple[str, list[str]]]:
    """Source and tags of each code cell of a notebook on disk."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        ("".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Parameters of a notebook and their defaults, read from its ``parameters`` cell.

    Papermill's own ``inspect_notebook`` overlooks a parameter whose comment contains ``=``, and
    takes a second to load.
    """
    for source, tags in code_cells(path):
        if "parameters" in tags:
            return {name: ast.literal_eval(value) for name, value in _assignments(source).items()}
    return {}


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with strings read as the types of the notebook's defaults.

    Raises
    ------
    ConfigError
        If the notebook has no parameter of that name, or the value is of another type or none of
        the choices.
    """
    check_variants()
    return _checked(notebook_parameters(path), parameters, path.stem)


def check_variants() -> None:
    """Refuse a variant whose control network, film or placement the models do not have.

    The names are read from the text of ``models/film.py``: importing it takes Keras' seconds, and
    a study should not render its corpus before it is refused.

    Raises
    ------
    ConfigError
        One sentence that names the variant and what there is.
    """
    known = {"film": ("simple", "complex")}
    for node in ast.parse((ROOT / "cunet_lib/models/film.py").read_text(encoding="utf-8")).body:
        if isinstance(getattr(node, "value", None), ast.Dict):
            table = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            known[table.lower().rstrip("s")] = [ast.literal_eval(key) for key in node.value.keys]
    for name, variant in VARIANTS.items():
        for part in ("control", "film", "placement"):
            if (value := getattr(variant, part)) not in known[part]:
                raise ConfigError(
                    f"Variant {name} of cunet_lib/core/systems.py has the {part} {value!r}; "
                    f"there are: {', '.join(known[part])}."
                )


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
    cells = [source for source in history if source]
    given = [place for place, source in enumerate(cells) if _is_injected(source)]
    # Papermill's cell follows the tagged one, which thus was the last before it.
    before = [source for source in cells[: given[-1]] if not _is_injected(source)] if given else []
    if not before:
        return
    declared = {name: ast.literal_eval(v) for name, v in _assignments(before[-1]).items()}
    values = {}
    for name, expression in _assignments(cells[given[-1]]).items():
        try:
            values[name] = ast.literal_eval(expression)
        except ValueError as error:  # such as float('nan')
            raise ConfigError(
                f"Parameter {name} must be a plain value (given: {ast.unparse(expression)})."
            ) from error
    _checked(declared, values)


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
    defaults: Mapping[str, Any], parameters: Mapping[str, Any], notebook: str = ""
) -> dict[str, Any]:
    unknown = [name for name in parameters if name not in defaults]
    if unknown:
        raise ConfigError(
            f"{f'Notebook {notebook}' if notebook else 'This notebook'} has no parameter "
            f"{', '.join(map(repr, unknown))}; valid: {', '.join(defaults)}."
        )
    of = f" of {notebook}" if notebook else ""
    return {
        name: _valid(name, defaults[name], value, f"Parameter {name}{of}")
        for name, value in parameters.items()
    }


def _valid(name: str, default: Any, value: Any, what: str) -> Any:
    """A value, text read as the type of the default; refused if it is of another type."""
    given = value
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ConfigError(
                f"{what} must be a string (given: {quoted(given)}; "
                "papermill passes text as it is with -r)."
            )
    elif isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError):  # it stays text then, which is of another type
            value = parse_yaml(value)
    if isinstance(default, float) and type(value) in (int, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
            value = float(value)
    if default is not None and type(value) is not type(default):
        raise ConfigError(
            f"{what} must be of type {type(default).__name__} (given: {quoted(given)})."
        )
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"{what} must be one of {', '.join(CHOICES[name])} (given: {value!r}).")
    if name == "seed" and value < 0:
        raise ConfigError(f"{what} must be a whole number, 0 or above (given: {value!r}).")
    return value
