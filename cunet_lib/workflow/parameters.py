"""Parameters of notebooks: their names, types and choices, checked before any work.

``make`` and ``cunet run`` check them before a kernel starts (:func:`check_parameters`). Papermill
only warns of a name that a notebook does not have, and would run it with the default. Every
notebook therefore checks what papermill put into it (:func:`check_injected`).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from cunet_lib.core.settings import ROOT, ConfigError, problem
from cunet_lib.core.systems import INSTRUMENTS, STEPS, VARIANTS

NOTEBOOKS = ROOT / "notebooks"

KINDS = {
    "instrument": Literal[INSTRUMENTS],
    "variant": Literal[tuple(VARIANTS)],
    "seed": Annotated[int, Field(ge=0)],
    "model": Annotated[str, Field(pattern=r"^[A-Za-z0-9_]*$")],  # part of a file's name
    "against": Literal[tuple(VARIANTS)],
}
"""Parameters that mean the same in every notebook; others are of the type of their default."""

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
    return next((_literals(text) for text, tags in code_cells(path) if "parameters" in tags), {})


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
    known = {}
    for node in ast.parse((ROOT / "cunet_lib/models/film.py").read_text(encoding="utf-8")).body:
        if isinstance(getattr(node, "value", None), ast.Dict):
            table = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            names = map(ast.literal_eval, node.value.keys)
            known[table.lower().rstrip("s")] = dict(zip(names, node.value.values, strict=True))
    for name, variant in VARIANTS.items():
        if control := known["control"].get(variant.control):
            given = [*control.args, *(each.value for each in control.keywords)]
            units = next((each.keys for each in given if isinstance(each, ast.Dict)), None)
            known["film"] = [*map(ast.literal_eval, units)] if units else [variant.film]
        for part in ("control", "film", "placement"):
            if (value := getattr(variant, part)) not in known[part]:
                raise ConfigError(
                    f"Variant {name} of cunet_lib/core/systems.py has the {part} {value!r}; "
                    f"there are: {', '.join(known[part])}."
                )
        if variant.beyond != (*STEPS,)[: len(variant.beyond)]:
            raise ConfigError(
                f"Variant {name} of cunet_lib/core/systems.py goes beyond the paper by "
                f"{variant.beyond!r}; it must be the first of {(*STEPS,)!r}."
            )
        if variant.shares and variant.placement != "decoder":
            raise ConfigError(
                f"Variant {name} of cunet_lib/core/systems.py has shares, whose FiLM acts in the "
                f"decoder: its placement must be 'decoder', not {variant.placement!r}."
            )


def check_injected(history: Sequence[str] | None = None) -> None:
    """Check what papermill put into the running notebook; call it before anything else.

    Does nothing where papermill injected nothing, as in JupyterLab. ``history``: sources of the
    cells that have run, in order; those of the running kernel if not given.

    Raises
    ------
    ConfigError
        If a parameter's name is unknown (the message lists the valid ones), or its value is of
        another type than the default or none of the choices.
    """
    if history is None:
        from IPython import get_ipython

        shell = get_ipython()
        history = shell.user_ns.get("In", []) if shell else []
    cells = [source for source in history if source]
    given = [place for place, source in enumerate(cells) if source.startswith(INJECTED)]
    if given:  # right after the tagged cell
        _checked(_literals(cells[given[-1] - 1]), _literals(cells[given[-1]]))


def _literals(source: str) -> dict[str, Any]:
    """Names that a cell assigns, and their values."""
    found = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, value = statement.targets[0].id, statement.value
            try:
                found[name] = ast.literal_eval(value)
            except ValueError as error:  # such as float('nan')
                raise ConfigError(
                    f"Parameter {name} must be a plain value (given: {ast.unparse(value)})."
                ) from error
    return found


def _checked(
    defaults: Mapping[str, Any], parameters: Mapping[str, Any], notebook: str = ""
) -> dict[str, Any]:
    unknown = [name for name in parameters if name not in defaults]
    if unknown:
        raise ConfigError(
            f"{f'Notebook {notebook}' if notebook else 'This notebook'} has no parameter "
            f"{', '.join(map(repr, unknown))}; valid: {', '.join(defaults)}."
        )
    checked = {}
    for name, value in parameters.items():
        kind = KINDS.get(name, type(defaults[name]))
        try:
            # Text is read as what it should be; other values are what they are.
            checked[name] = TypeAdapter(kind).validate_python(
                value, strict=not isinstance(value, str)
            )
        except ValidationError as error:
            of = f" of {notebook}" if notebook else ""
            hint = "; papermill passes text as it is with -r" if kind is str else ""
            raise ConfigError(f"Parameter {name}{of}: {problem(error)}{hint}.") from error
    return checked
