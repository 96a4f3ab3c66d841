"""Styles of music: tempi, grooves, time keepers, bass lines and the roles of other instruments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A genre's ranges and choices; ``swing`` is (level in steps, least, most)."""

    tempo: tuple[float, float]
    grooves: tuple[str, ...]
    keepers: tuple[str, ...]
    bass: tuple[str, ...]
    roles: tuple[str, ...]
    meter: str = "4/4"
    swing: tuple[int, float, float] = (2, 0.0, 0.0)
    machine: float = 0.2
    synth_bass: float = 0.2
    percussion: float = 0.2
    pace: str = "mid"
    rap: float = 0.0
    duck: float = 0.0
    fills: float = 0.7
    density: float = 1.0


STYLES: dict[str, Style] = {
    "rock": Style(
        (104, 148), ("rock", "drive"), ("hat8", "hat4", "ride8", "crash4"),
        ("root8", "pump", "follow"), ("power", "strum", "riff", "organ", "solo"), machine=0.05,
    ),
    "punk": Style(
        (150, 180), ("punk", "drive"), ("hat8", "ride4", "crash4"), ("root8", "pump"),
        ("power", "power", "solo"), machine=0.0, synth_bass=0.0, pace="fast",
    ),
    "indie": Style(
        (110, 140), ("rock", "four"), ("hat8", "hat16", "tamb8", "ride8"),
        ("root8", "arpeggio", "octave"), ("clean arp", "strum", "pad", "lead"), machine=0.2,
    ),
    "ballad": Style(
        (62, 84), ("ballad",), ("hat8", "ride8", "hat16", "rim8"), ("sustained", "follow"),
        ("keys", "pad", "strings", "arpeggio", "solo"), pace="slow", fills=0.6,
    ),
    "funk": Style(
        (92, 118), ("funk",), ("hat16", "hat8", "hatopen16"), ("syncopated", "slap"),
        ("clav", "stab", "scratch", "organ"), swing=(1, 0.0, 0.35), machine=0.1, percussion=0.5,
    ),
    "disco": Style(
        (112, 126), ("four",), ("offbeat", "hat16"), ("octave", "syncopated"),
        ("scratch", "strings", "stab", "keys"), machine=0.25, percussion=0.5, duck=0.15,
    ),
    "house": Style(
        (118, 130), ("four",), ("offbeat", "shaker16", "hat16"), ("offbeat", "syncopated"),
        ("stab", "pad", "pluck", "arpeggio"), machine=0.9, synth_bass=0.8, duck=0.8, fills=0.4,
    ),
    "techno": Style(
        (124, 142), ("four",), ("hat16", "offbeat", "ride8"), ("pulse16", "offbeat"),
        ("pluck", "arpeggio", "pad", "riff synth"), machine=0.95, synth_bass=0.95, duck=0.7,
        fills=0.3,
    ),
    "hiphop": Style(
        (80, 102), ("hiphop",), ("hat8", "hat16"), ("follow", "syncopated", "sustained"),
        ("keys", "pluck", "stab", "lead"), swing=(1, 0.1, 0.6), machine=0.6, synth_bass=0.4,
        rap=0.65, fills=0.3,
    ),
    "trap": Style(
        (66, 78), ("trap",), ("roll", "roll", "hat16"), ("glide", "follow"),
        ("pluck", "pad", "mallet", "lead"), machine=0.95, synth_bass=0.9, rap=0.6, fills=0.3,
    ),
    "rnb": Style(
        (70, 98), ("hiphop", "ballad"), ("hat16", "rim8", "hat8"), ("syncopated", "sustained"),
        ("epiano", "pad", "clean arp", "strings"), swing=(1, 0.0, 0.5), machine=0.5,
        synth_bass=0.4, rap=0.1,
    ),
    "reggae": Style(
        (68, 92), ("reggae",), ("hat8", "rim8"), ("dub",), ("skank", "organ", "stab", "lead"),
        swing=(2, 0.1, 0.7), machine=0.05, percussion=0.5,
    ),
    "shuffle": Style(
        (96, 138), ("shuffle",), ("swung8", "ride8"), ("walking", "pump"),
        ("strum", "organ", "piano", "solo"), swing=(2, 0.8, 1.0), machine=0.0, synth_bass=0.0,
    ),
    "swing": Style(
        (120, 176), ("jazz",), ("ridejazz",), ("walking",), ("piano", "brass", "solo", "jazz comp"),
        swing=(2, 0.7, 1.0), machine=0.0, synth_bass=0.0,
    ),
    "bossa": Style(
        (112, 144), ("bossa",), ("hat8", "shaker16"), ("bossa",),
        ("nylon", "keys", "solo", "strings"), machine=0.05, synth_bass=0.05, percussion=0.7,
    ),
    "latin": Style(
        (92, 124), ("latin", "tresillo"), ("hat8", "shaker16", "cowbell4"), ("tumbao", "arpeggio"),
        ("montuno", "brass", "strum", "solo"), machine=0.15, percussion=1.0,
    ),
    "dancehall": Style(
        (90, 108), ("tresillo",), ("hat16", "shaker16", "hat8"), ("follow", "offbeat", "dub"),
        ("pluck", "stab", "mallet", "pad"), machine=0.85, synth_bass=0.7, percussion=0.5, rap=0.3,
        duck=0.3,
    ),
    "breakbeat": Style(
        (128, 176), ("break",), ("hat8", "ride8", "hat16"), ("sustained", "syncopated", "pulse16"),
        ("pad", "pluck", "stab", "riff synth"), machine=0.5, synth_bass=0.8, duck=0.2, fills=0.5,
    ),
    "metal": Style(
        (110, 172), ("metal", "half", "punk"), ("crash4", "ride8", "hat4"), ("follow", "root8"),
        ("chug", "power", "solo", "riff"), machine=0.0, synth_bass=0.0, density=1.2,
    ),
    "country": Style(
        (100, 140), ("train", "rock"), ("hat8", "none"), ("rootfive", "walking"),
        ("strum", "picking", "fiddle", "solo"), swing=(2, 0.0, 0.4), machine=0.0, synth_bass=0.0,
    ),
    "folk": Style(
        (84, 124), ("ballad", "train"), ("shaker16", "tamb8", "none"), ("rootfive", "sustained"),
        ("picking", "strum", "strings", "pipe"), machine=0.0, synth_bass=0.0, percussion=0.5,
    ),
    "waltz": Style(
        (92, 150), ("waltz",), ("hat8", "ride4", "hat4"), ("waltz", "sustained"),
        ("keys", "strings", "accordion", "strum"), meter="3/4", machine=0.1,
    ),
    "sixeight": Style(
        (48, 70), ("sixeight",), ("hat6", "ride6", "hat12"), ("sixeight", "sustained"),
        ("arpeggio", "organ", "clean arp", "strings", "solo"), meter="6/8", machine=0.1,
    ),
    "synthpop": Style(
        (100, 132), ("rock", "four", "drive"), ("hat16", "hat8", "offbeat"),
        ("pulse16", "octave", "root8"), ("riff synth", "pad", "arpeggio", "lead"), machine=0.85,
        synth_bass=0.9, duck=0.2,
    ),
    "halftime": Style(
        (126, 160), ("half",), ("hat8", "ride8", "crash4"), ("sustained", "follow", "pump"),
        ("power", "pad", "clean arp", "lead"), machine=0.3, synth_bass=0.4,
    ),
}  # fmt: skip

GROOVES: dict[str, tuple[tuple[str, str], ...]] = {
    "rock": (
        ("x-------x-x-----", "----x-------x---"),
        ("x-----x-x-------", "----x-------x---"),
        ("x-x-----x-x---o-", "----x-------x---"),
        ("x--o--x-o-x-----", "----x-------x-.-"),
        ("x-----o---x-----", "----x--.-.--x---"),
    ),
    "drive": (
        ("x---x---x---x---", "----x-------x---"),
        ("x-x---x-x-x---x-", "----x-------x---"),
        ("x-o-x-o-x-o-x-o-", "----x-------x---"),
    ),
    "punk": (
        ("x---x---x---x---", "--x---x---x---x-"),
        ("x--xx---x--xx---", "--x---x---x---x-"),
        ("x-----x-x-----x-", "----x-------x---"),
    ),
    "four": (
        ("x---x---x---x---", "----x-------x---"),
        ("x---x---x---x---", "----x-------x--."),
        ("x---x---x---x-o-", "----x--.----x---"),
        ("x---x---x---x---", "----------------"),
    ),
    "ballad": (
        ("x-------x-------", "----x-------x---"),
        ("x------ox-------", "----x-------x---"),
        ("x---------x-----", "----x-------x---"),
        ("x-----o---------", "--------x-------"),
    ),
    "funk": (
        ("x--o--x---x--o--", "----x--.-.--x--."),
        ("x-x-----o-x--x--", "----x-.--.-.x-.-"),
        ("x--x-------x--x-", "----x--.----x---"),
        ("x-o---o--ox-----", ".---x--.-.--x.-."),
    ),
    "hiphop": (
        ("x------x--x-----", "----x-------x---"),
        ("x--o---x--x---o-", "----x-------x---"),
        ("x-----x--xx-----", "----x-------x--."),
        ("x-o----o-x------", "----x--.----x---"),
    ),
    "trap": (
        ("x-----x-------o-", "--------x-------"),
        ("x--x------x-----", "--------x-------"),
        ("x-----o--x----x-", "--------x-----.-"),
    ),
    "reggae": (
        ("--------x-------", "--------x-------"),
        ("x-------x-------", "--------x-------"),
        ("x---x---x---x---", "--------x-------"),
    ),
    "shuffle": (
        ("x-------x-------", "----x-------x---"),
        ("x-----o-x-----o-", "----x--.----x--."),
        ("x---x---x---x---", "----x-.-----x-.-"),
    ),
    "jazz": (
        (".---.---.---.---", "------.-------.-"),
        ("o-------.---.-o-", "--.---o-----.---"),
        (".---.---.---.---", "----o-------o-.-"),
    ),
    "bossa": (
        ("x-----xox-----xo", "x-----x-----x---"),
        ("x-----ox------o-", "--x-----x--x----"),
    ),
    "latin": (
        ("x-----x-----x---", "------x-------x-"),
        ("--x---x---x---x-", "----x-----x-----"),
        ("x--x--x-x--x--x-", "---.--x----.--x-"),
    ),
    "tresillo": (
        ("x---x---x---x---", "---x--x----x--x-"),
        ("x-----x-x-----x-", "---x--x----x--x-"),
        ("x---o---x---o---", "---x--o----x--x-"),
    ),
    "break": (
        ("x-x-------xx----", "----x--.-.--x--."),
        ("x-x---x---x-----", "----x-----.-x---"),
        ("x---------x-----", "----x-------x---"),
        ("x-x----o--x--o--", "----x--.-x----x-"),
    ),
    "metal": (
        ("xoxoxoxoxoxoxoxo", "----x-------x---"),
        ("x-xox-xox-xox-xo", "----x-------x---"),
        ("x-oox-oox-oox-oo", "--------x-------"),
    ),
    "half": (
        ("x-----x---------", "--------x-------"),
        ("x---------x---o-", "--------x-------"),
        ("x--x--x-------x-", "--------x--.----"),
    ),
    "train": (
        ("x-------x-------", ".o.x.o.x.o.x.o.x"),
        ("x---x---x---x---", "..o...x...o...x."),
    ),
    "waltz": (
        ("x-----------", "----o---o---"),
        ("x-------o---", "----x---x---"),
        ("x-----o-----", "--------x---"),
    ),
    "sixeight": (
        ("x-----------", "------x-----"),
        ("x---o-------", "------x-----"),
        ("x---------o-", "------x---.-"),
    ),
}
"""Kick and snare in sixteenths: x accent, o normal, . ghost, - rest."""

KEEPERS: dict[str, tuple[tuple[int, str], ...]] = {
    "hat8": ((42, "x-o-x-o-x-o-x-o-"),),
    "hat4": ((42, "x---x---x---x---"),),
    "hat16": ((42, "xooo" * 4),),
    "hatopen16": ((42, "xoo-xooox-ooxoo-"), (46, "---x---------o--")),
    "offbeat": ((46, "--x---x---x---x-"), (42, "x--ox--ox--ox--o")),
    "ride8": ((51, "x-o-x-o-x-o-x-o-"), (44, "----o-------o---")),
    "ride4": ((51, "x---x---x---x---"),),
    "ridejazz": ((51, "x---x-o-x---x-o-"), (44, "----x-------x---")),
    "crash4": ((57, "x---x---x---x---"),),
    "tamb8": ((54, "o-x-o-x-o-x-o-x-"),),
    "shaker16": ((70, "o.x.o.x.o.x.o.x."),),
    "rim8": ((42, "o-o-o-o-o-o-o-o-"), (37, "----x-------x---")),
    "swung8": ((42, "x-o-x-o-x-o-x-o-"),),
    "cowbell4": ((56, "x---x---x---x---"), (42, "--o---o---o---o-")),
    "roll": ((42, "x-o-x-o-x-o-xooo"), (46, "--------------o-")),
    "hat6": ((42, "x-o-o-x-o-o-"),),
    "ride6": ((51, "x-o-o-x-o-o-"),),
    "hat12": ((42, "xooooo" * 2),),
    "none": (),
}
"""Time keepers: General MIDI drum key and steps, repeated or cut to the bar."""

PERCUSSION: tuple[tuple[tuple[int, str], ...], ...] = (
    ((62, "--o---x---o---x-"), (63, "-------o-------o"), (64, "---o-o-----o-o--")),
    ((60, "x-o-x-ox--o-x-o-"), (61, "-o---o---o---o--")),
    ((75, "x--x--x---x-x---"),),
    ((56, "x-x--x-x-x-x--x-"),),
    ((69, "o.o.x.o.o.o.x.o."),),
    ((54, "----x-------x---"),),
    ((39, "----x-------x---"),),
    ((70, "xoooxoooxoooxooo"),),
    ((81, "o-o-o---o-o-o---"), (54, "--x---x---x---x-")),
    ((76, "x--x---x--x-x---"), (77, "-o---o---o---o--")),
)

ROLES: dict[str, tuple[tuple[str, ...], str, tuple[int, int]]] = {
    "power": (("driven", "clean", "patch:guitar"), "power", (43, 50)),
    "chug": (("driven", "patch:guitar"), "chug", (40, 47)),
    "riff": (("driven", "clean", "patch:guitar"), "riff", (45, 57)),
    "riff synth": (("patch:lead", "patch:pluck", "lead"), "riff", (52, 70)),
    "strum": (("acoustic", "acoustic", "clean", "patch:guitar"), "strum", (52, 60)),
    "nylon": (("acoustic",), "syncopated", (54, 60)),
    "picking": (("acoustic", "folk", "patch:guitar"), "arpeggio", (54, 64)),
    "clean arp": (("clean", "acoustic", "patch:pluck"), "arpeggio", (56, 66)),
    "scratch": (("clean", "patch:guitar", "epiano"), "scratch", (58, 66)),
    "skank": (("clean", "organ", "piano"), "offbeat", (58, 66)),
    "keys": (("piano", "epiano", "piano", "patch:keys"), "block", (54, 64)),
    "piano": (("piano",), "syncopated", (54, 64)),
    "epiano": (("epiano", "patch:keys"), "block", (54, 62)),
    "jazz comp": (("piano", "acoustic", "epiano"), "syncopated", (56, 62)),
    "montuno": (("piano",), "montuno", (60, 66)),
    "clav": (("epiano", "patch:pluck", "clean"), "scratch", (54, 62)),
    "organ": (("organ", "patch:keys"), "sustained", (55, 66)),
    "accordion": (("organ",), "offbeat", (58, 66)),
    "strings": (("strings",), "sustained", (58, 72)),
    "pad": (("pad", "patch:pad", "strings", "patch:pad"), "sustained", (54, 68)),
    "stab": (("brass", "patch:lead", "organ", "patch:pluck"), "stab", (58, 68)),
    "brass": (("brass",), "stab", (56, 66)),
    "arpeggio": (("patch:pluck", "piano", "mallet", "patch:lead", "pizzicato"), "arpeggio",
                 (58, 74)),
    "pluck": (("patch:pluck", "mallet", "pizzicato", "folk"), "ostinato", (60, 76)),
    "mallet": (("mallet",), "ostinato", (62, 78)),
    "lead": (("patch:lead", "lead", "pipe", "reed"), "melody", (62, 76)),
    "solo": (("driven", "reed", "brass", "patch:lead", "organ", "strings"), "melody", (58, 74)),
    "fiddle": (("strings", "folk"), "melody", (62, 74)),
    "pipe": (("pipe", "reed"), "melody", (66, 78)),
}  # fmt: skip
"""Roles of the other stem: families of sound, figure, range of the register's centre."""
