"""The ``cunet`` command: a thin face of the library.

Errors that the user can mend (:class:`ValueError`, a missing file) are one sentence on stderr and
exit status 2; a notebook that fails is told in a few lines, exit status 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import signal
import sys
from collections.abc import Sequence

from cunet_lib.config import ConfigError, load_profile, profile_names
from cunet_lib.files import UNWRITABLE, WriteError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    # `make` and schedulers stop jobs with SIGTERM: clean up as after Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return options.command(options)
    except FileNotFoundError as error:
        named = error.filename and f"No file {error.filename}: {error.strerror}."
        return _complain(named or str(error))
    except ConfigError as error:
        return _complain(str(error))
    except OSError as error:
        if isinstance(error, WriteError):
            return _complain(str(error))
        if error.errno in UNWRITABLE and error.filename:
            return _complain(f"{error.filename}: {error.strerror}.")
        raise
    except KeyboardInterrupt as stop:
        logging.disable()  # asyncio's complaints about tasks that ended with the kernel
        _complain(str(stop) or "Stopped; nothing half-written was kept.")
        return 130


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _complain(message: str) -> int:
    print(message, file=sys.stderr, flush=True)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cunet", description="The Conditioned U-Net study from the command line."
    )
    version = importlib.metadata.version("cunet-lib")
    parser.add_argument("--version", action="version", version=f"cunet {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run one notebook and keep its executed copy")
    run.add_argument("stage", help="such as 00_corpus or 02_train_unet.bass-seed0")
    run.add_argument("--profile", default="demo", help="settings (default: %(default)s)")
    run.add_argument("--overrides", default="", help="such as 'name=try train.learning_rate=3e-4'")
    run.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a further notebook parameter; may be repeated",
    )
    run.set_defaults(command=_run)

    params = commands.add_parser("params", help="print the models' parameter counts")
    params.add_argument(
        "--profile",
        default="paper",
        help="paper (default) or one of: " + ", ".join(profile_names()),
    )
    params.set_defaults(command=_params)

    for name, command, text in (
        ("verify", _verify, "compare the results with the committed ones"),
        ("report", _report, "write the results as web pages"),
        ("check", _check, "check the corpus of a profile; every problem by file"),
    ):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("profile", nargs="?", default="demo", help="(default: %(default)s)")
        sub.set_defaults(command=command)
    plan = commands.add_parser("plan", help="estimate hours, disk and memory of the whole study")
    plan.add_argument("profile", nargs="?", default="demo", help="(default: %(default)s)")
    plan.add_argument("--seeds", default="0", help="as in SEEDS of make (default: %(default)s)")
    plan.set_defaults(command=_plan)
    kernel = commands.add_parser("kernel", help="register the Jupyter kernel of the notebooks")
    kernel.set_defaults(command=_kernel)
    return parser


def _run(options: argparse.Namespace) -> int:
    from cunet_lib.runner import NotebookFailed, parse_stage, run_notebook, stopped

    given = dict(options.parameters)
    settings = load_profile(
        given.get("profile", options.profile), given.get("overrides", options.overrides)
    )
    parameters = {"profile": options.profile, "overrides": options.overrides, **given}
    stage = parse_stage(options.stage, parameters)
    try:
        run_notebook(stage.notebook, stage.output(settings), stage.parameters)
    except NotebookFailed as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stopped(stage, settings)) from None
    return 0


def _params(options: argparse.Namespace) -> int:
    sizes = {}
    if options.profile != "paper":
        settings = load_profile(options.profile)
        sizes = {
            "shape": settings.patch_shape,
            "filters": settings.model.filters,
            "blocks": settings.model.blocks,
        }
    from cunet_lib.models import parameter_table

    table = parameter_table(**sizes)
    thousands = dict.fromkeys(("parameters", "trainable"), "{:,}".format)
    print(table.to_string(index=False, formatters=thousands))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from cunet_lib.report import verify

    return 1 if verify(load_profile(options.profile)) else 0


def _report(options: argparse.Namespace) -> int:
    from cunet_lib.report import build_report
    from cunet_lib.runner import shown

    print(shown(build_report(load_profile(options.profile))))
    return 0


def _check(options: argparse.Namespace) -> int:
    from cunet_lib.layout import check_corpus
    from cunet_lib.progress import progress

    layout = check_corpus(load_profile(options.profile), progress=progress("tracks checked"))
    print(f"The corpus is in order. {layout.summary()}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from cunet_lib.planning import calibrate, estimate, extent_of

    settings = load_profile(options.profile)
    seeds = options.seeds.split()
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise ConfigError("--seeds must be whole numbers with spaces between, such as '0 1 2'.")
    extent = extent_of(settings)
    print(estimate(settings, extent, calibrate(settings), seeds=len(set(seeds))).text())
    return 0


def _kernel(options: argparse.Namespace) -> int:
    from cunet_lib.runner import register_kernel

    register_kernel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
