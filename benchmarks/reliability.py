"""The outcome of ``make torture`` in words and tables."""

from __future__ import annotations

import re

PHASES = {
    "preprocessing": (r"0[01]_.*", 0.2),
    "training": (r"0[23]_.*", 0.4),
    "evaluation": (r"04_.*", 0.25),
    "plotting": (r"05_.*|report", 0.15),
}
"""Names of a phase's stages, and its share of the kills; in the order of the study."""

EPOCHS = 6
"""Of every training in a clone; the profile's second and last takes half a second."""


def report(record: dict) -> str:
    """The outcome as Markdown."""
    strikes = [strike for strike in record["strikes"] if strike["signal"]]
    counts = {
        name: sum(strike["signal"] == name for strike in strikes)
        for name in ("SIGKILL", "SIGTERM", "SIGINT")
    }
    phases = ", ".join(
        f"{phase} {sum(bool(re.fullmatch(pattern, strike['stage'])) for strike in strikes)}"
        for phase, (pattern, _) in PHASES.items()
    )
    shown = record["bad_input"]
    stops = [strike["ended_in"] for strike in strikes if strike["signal"] == "SIGINT"]
    rows = [
        ("Kills", f"{len(strikes)} ({', '.join(f'{n} {name}' for name, n in counts.items())})"),
        ("Kills by phase", phases),
        ("Results that differ from an undisturbed run", ", ".join(record["differences"]) or "none"),
        ("Trainings that went on from a checkpoint", str(sum(record["resumed"].values()))),
        ("Finished trainings used again", str(sum(record["reused"].values()))),
        ("Ctrl-C to the end", f"at most {max(stops):.1f} s" if stops else "not tried"),
        ("Undisturbed run", f"{record['undisturbed_seconds']:.0f} s"),
        ("Killed run, all its starts together", f"{record['killed_seconds']:.0f} s"),
        ("Results that differ between two clones", ", ".join(record["clones_differ"]) or "none"),
        ("Bad inputs shown", f"{sum(shown['cases'].values())}"),
        ("Bad inputs without a clean refusal", str(len(shown["failed"]))),
    ]
    lines = [
        "# Reliability of `make reproduce`",
        "",
        f"Profile `smoke` with {EPOCHS} epochs a training, {record['kills']} kills planned from "
        f"seed {record['seed']}, {record['cores']} cores, {record['machine']}, Python "
        f"{record['python']}. Each kill was followed by the same command again. Made by "
        "`make torture`.",
        "",
        "| what | outcome |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "## Every kill",
        "",
        "| stage | moment | signal | after (s) | ended in (s) | stages that told what is kept |",
        "|---|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {strike['stage']} | {strike['when']} | {strike['signal'] or 'none: it had finished'} "
        f"| {strike['after']} | {strike.get('ended_in', '')} | {strike.get('told', '')} |"
        for strike in record["strikes"]
    ]
    lines += ["", "## Bad input", "", "| kind | cases |", "|---|---:|"]
    cases = record["bad_input"]["cases"]
    lines += [f"| {kind} | {number} |" for kind, number in sorted(cases.items())]
    return "\n".join(lines) + "\n"
