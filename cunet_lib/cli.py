"""The ``cunet`` command: a thin face of the library.

Errors that the user can mend (:class:`ConfigError`, a file that cannot be read or written) are one
sentence on stderr and exit status 2; a notebook that fails is told in a few lines, exit status 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import io
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cunet_lib.core.files import WriteError
from cunet_lib.core.processes import end_with
from cunet_lib.core.settings import ConfigError, folder, load_profile, printable
from cunet_lib.core.startup import OWN_KERAS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    # File names may hold bytes that are no text; they shall not end the command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    # `make` and schedulers stop jobs with SIGTERM, a terminal that is closed with SIGHUP: clean up
    # as after Ctrl-C. What nohup started goes on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    os.environ.update(OWN_KERAS)
    try:
        # The make, or the worker of a cluster, that this belongs to; it may be killed.
        if parent := os.environ.get("CUNET_PARENT"):
            end_with(int(parent))
        # Notebooks run in a folder of their own.
        for name in ("CUNET_DATA", "CUNET_RESULTS", "CUNET_MUSDB"):
            if given := os.environ.get(name):
                os.environ[name] = str(folder(given))
        if getattr(options, "profile", "").endswith((".yaml", ".yml")):
            options.profile = str(folder(options.profile))
        if (music := os.environ.get("CUNET_MUSDB")) and not Path(music).is_dir():
            raise ConfigError(f"MUSDB={music} is no folder; give the one with train and test.")
        # Each command says whether, or what, failed.
        return 1 if options.command(options) else 0
    except ConfigError as error:
        return _complain(str(error))
    except WriteError as error:
        return _complain(printable(error))
    except OSError as error:
        if not error.filename or not error.strerror:
            raise
        named = printable(os.fsdecode(error.filename))
        return _complain(f"{named} cannot be read or written: {error.strerror}; check it.")
    except KeyboardInterrupt as stop:
        logging.disable()  # asyncio's complaints about tasks that ended with the kernel
        _complain(
            str(stop)
            or "Stopped; nothing half-written was kept, and the same command starts again."
        )
        return 130


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

    def add(name, command, text, **options):
        sub = commands.add_parser(name, help=text, **options)
        sub.set_defaults(command=command)
        return sub.add_argument

    given = {"default": "demo", "help": "settings (default: %(default)s)"}

    argument = add("run", _run, "run one notebook, unless its executed copy is up to date")
    argument("stage", help="such as 00_corpus or 02_train_unet.bass-seed0")
    argument("--profile", **given)
    argument("--overrides", default="", help="such as 'name=try train.learning_rate=3e-4'")
    further = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    argument("-p", dest="parameters", **further, help="a notebook parameter; may be repeated")

    for name, command, text in (
        ("verify", _verify, "compare the results with the committed ones"),
        ("report", _report, "write the report, one page"),
        ("check", _check, "check the corpus of a profile; every problem by file"),
        ("cluster", _cluster, "check a cluster's workers and count their slots"),
    ):
        add(name, command, text)("profile", nargs="?", **given)
    argument = add("plan", _plan, "estimate hours, disk and memory of the whole study")
    argument("profile", nargs="?", **given)
    argument("--overrides", default="", help="such as seeds=3")
    argument("--jobs", type=int, default=1, help="as in JOBS of make (default: %(default)s)")

    argument = add("stages", _stages, "list stages, each as stage:what-it-reads")
    argument("goals", nargs="+", metavar="STAGE")
    argument("--profile", **given)
    argument("--overrides", default="", help="such as seeds=3")

    argument = add("sweep", _sweep, "run a training notebook over a grid of settings")
    argument("stage", help="02_train_unet or 03_train_cunet")
    argument("--grid", required=True, help="'variant=a,b train.learning_rate=1e-3,3e-4'")
    argument("--profile", **given)
    argument("--dry-run", action="store_true", help="check the grid and list its runs")

    about = "Separate songs: any format, rate, channels and length. A name that begins with a dash "
    about += "is given as ./-name."
    argument = add("separate", _separate, "separate songs with a model", description=about)
    argument("songs", nargs="*", metavar="SONG", help="audio files, folders of them, or - (stdin)")
    asked = "such as: vocals, vocals=0.5 (at half level), vocals+drums (their sum in one file), "
    asked += "accompaniment (all but vocals); by default each instrument"
    argument("--instruments", nargs="+", metavar="WHAT", help=asked)
    argument("--two-stems", metavar="WHAT", help="one instrument, and all others as accompaniment")
    argument("--model", help="a name that `cunet models` lists, or a path")
    argument("--out", default="separated", help="folder (default: %(default)s)")
    argument("--format", default="wav", help="wav, flac, aiff, ogg, mp3 (default: wav)")
    argument("--bits", type=int, help="of a sample: 16, 24, 32 (wav and aiff), 16, 24 (flac)")
    argument("--bitrate", metavar="RATE", help="of ogg and mp3, such as 192k")
    argument("--start", type=float, default=0.0, metavar="S", help="begin at this second")
    argument("--length", type=float, metavar="S", help="separate so many seconds")
    argument("--residual", action="store_true", help="also write what is left over")
    highs = "frequencies above those the model hears: separated by what it hears below, or left "
    highs += "out (default: %(default)s)"
    argument("--highs", choices=("extend", "cut"), default="extend", help=highs)
    overlap = "what neighbouring patches share, in patches of the training's length, from 0 to "
    overlap += "below 1 (default: %(default)s)"
    argument("--overlap", type=float, default=0.25, metavar="SHARE", help=overlap)
    argument("--force", action="store_true", help="replace existing files")
    argument("--quiet", action="store_true", help="print errors alone")
    argument("--json", action="store_true", help="print a line of JSON for each song")

    add("models", _models, "list trained models and their scores")
    add("kernel", _kernel, "register the Jupyter kernel of the notebooks")
    return parser


def _run(options: argparse.Namespace) -> bool:
    from cunet_lib.workflow.run import run_stage

    parameters = {"profile": options.profile, "overrides": options.overrides}
    parameters |= dict(options.parameters)
    return not run_stage(options.stage, parameters, address=_scheduler())


def _scheduler() -> str:
    """Address of the Dask scheduler that takes the runs; empty for this machine."""
    address = os.environ.get("CUNET_CLUSTER", "")
    if address and "://" not in address:
        raise ConfigError(
            f"CLUSTER={address} is no address of a Dask scheduler, such as tcp://host:8786; unset "
            "it to run on this machine."
        )
    return address


def _cluster(options: argparse.Namespace) -> None:
    from cunet_lib.workflow.cluster import slots

    address = _scheduler()
    if not address:
        raise ConfigError("No cluster is named; set CUNET_CLUSTER=tcp://host:port.")
    print(slots(address, load_profile(options.profile)))


def _verify(options: argparse.Namespace) -> int:
    from cunet_lib.report.verify import verify

    return verify(load_profile(options.profile))


def _report(options: argparse.Namespace) -> None:
    from cunet_lib.report.page import write_page
    from cunet_lib.workflow.run import shown

    print(shown(write_page(load_profile(options.profile))))


def _check(options: argparse.Namespace) -> None:
    from cunet_lib.preprocess.check import check_corpus

    layout = check_corpus(load_profile(options.profile))
    print(f"The corpus is in order. {layout.summary()}")


def _plan(options: argparse.Namespace) -> None:
    if options.jobs < 1:
        raise ConfigError(f"--jobs must be above 0, not {options.jobs}.")
    from cunet_lib.workflow import plan

    settings = load_profile(options.profile, options.overrides)
    music, corpus = plan.lengths(settings)
    unit = plan.calibrate(settings, max(map(max, music.values())))
    parts = plan.estimate(settings, music, corpus, unit)
    print(plan.text(settings, parts, music, options.jobs))


def _stages(options: argparse.Namespace) -> None:
    from cunet_lib.workflow.stages import edges

    for stage, read in edges(load_profile(options.profile, options.overrides), *options.goals):
        print(f"{stage}:{read}")


def _separate(options: argparse.Namespace) -> bool:
    from cunet_lib.separation import songs
    from cunet_lib.signal.writing import Output

    if not options.songs:
        raise ConfigError("No song given; name them before --instruments.")
    output = Output(options.format, bits=options.bits, bitrate=options.bitrate)
    separator = songs.ready(options.model, highs=options.highs, overlap=options.overlap)
    wanted = songs.requests(options.instruments, separator.model, two_stems=options.two_stems)
    talk = not (options.quiet or options.json)
    if talk:
        model = separator.found
        print(f"Model {model.name}, trained on: {model.trained_on}.", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="cunet-") as folder:
        stdin = Path(folder) / "stdin"
        if "-" in options.songs:
            with stdin.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        for result in songs.separate_files(
            [stdin if song == "-" else Path(song) for song in options.songs],
            separator,
            wanted,
            residual=options.residual,
            out=Path(options.out),
            output=output,
            start=options.start,
            length=options.length,
            force=options.force,
            show=talk,
        ):
            if result.error:
                failed = True
                _complain(result.error)
            elif talk:
                print(result, flush=True)
            if options.json:
                print(json.dumps(dataclasses.asdict(result), default=str), flush=True)
    return failed


def _models(options: argparse.Namespace) -> None:
    from cunet_lib.report.card import scores_of
    from cunet_lib.separation import catalog

    print(catalog.table(scores_of))


def _sweep(options: argparse.Namespace) -> list:
    from cunet_lib.workflow import sweep

    planned = sweep.plan(options.profile, options.stage, options.grid)
    if options.dry_run:
        print(planned.text())
        return []
    return sweep.run(planned, address=_scheduler())


def _kernel(options: argparse.Namespace) -> None:
    from cunet_lib.workflow.run import register_kernel

    register_kernel()


if __name__ == "__main__":
    sys.exit(main())
