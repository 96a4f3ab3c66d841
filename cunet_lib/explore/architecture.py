"""Drawing of a network, made from the record of the built model (``architecture.json``).

Feature maps are boxes to logarithmic scale: height is frequency, width is channels. Skip
connections run above, the control network and its FiLM values below.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from cunet_lib.core.files import read_json, read_run
from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS, LABELS, VARIANTS
from cunet_lib.report.figures import INSTRUMENT_COLOURS, SYSTEM_COLOURS, Figure, drawn, subplots
from cunet_lib.report.records import data_note

_INK = "#2B2B2B"
_FILLS = {
    "input": "#ECECEC",
    "encoder": "#BCCBDA",
    "decoder": "#DCD3BF",
    "mask": "#B9D8B0",
}
_INCHES, _GAP, _CELL = 0.56, 0.62, 0.34  # of a unit; between boxes; of a value of z
_MIDDLE, _BUS = -4.75, -2.95  # heights of the control network and of its line to the encoder
_TEXT = {"ha": "center", "va": "top", "color": _INK, "zorder": 8}


@drawn
def architecture(settings: Profile) -> Figure:
    """Drawing of the shipped C-U-Net and its control network.

    Raises
    ------
    ConfigError
        If there is no run of the model, or its record is damaged.
    """
    model = settings.shipped
    folder = settings.paths.run(model, 0)
    parameters = read_run(folder)["parameters"]
    blocks = read_json(folder / "architecture.json", kind=list)
    control, encoder, decoder = (
        [block for block in blocks if block["part"] == part]
        for part in ("control", "encoder", "decoder")
    )
    fig, axes = subplots(1, 1, size=(1, 1))
    ax, colour = axes[0, 0], SYSTEM_COLOURS[model]
    taps, right, top = _draw_maps(ax, encoder, decoder, colour)
    bottom = _MIDDLE - 2.3
    right = max(right, _draw_control(ax, control, [*encoder, *decoder], taps, colour))
    ax.set_xlim(-0.9, right + 0.5)
    ax.set_ylim(bottom, top + 0.75)
    ax.set_aspect("equal")
    ax.axis("off")
    fig.set_size_inches((right + 1.4) * _INCHES, (top + 0.75 - bottom) * _INCHES)
    ax.set_title(f"{LABELS[model]}: {parameters:,} parameters", fontsize=11.5)
    decoders = "; the decoder runs once for each instrument" * VARIANTS[model].shares
    caption = (
        f"The {LABELS[model]}, drawn from the built model: feature maps as frequency x time x "
        "channels, skip connections above, the control network with FiLM's gammas and betas below; "
        "a dot is FiLM inside the block to its right, before its activation"
        f"{decoders}. {data_note(settings)}"
    )
    return Figure("architecture", fig, caption)


# ------------------------------------------------------------------------------ feature maps


def _draw_maps(
    ax: Axes, encoder: list[dict], decoder: list[dict], colour: str
) -> tuple[list[float], float, float]:
    """Draw input, encoder, decoder, mask and estimate; where FiLM acts, right end and top."""
    shape = encoder[0]["input_shape"]
    top = _height(shape) / 2 + 0.3 + 0.3 * len(encoder)
    mixture, x = _map(ax, 0.0, shape, "input", "Mixture")
    anchors, taps = {}, []
    for place, block in enumerate(encoder, start=1):
        x = _film(ax, x, block, taps, colour)
        anchors[block["name"]], x = _map(ax, x, block["output_shape"], "encoder", f"E{place}")
    level = top - 0.3 * sum(block["skip_from"] is not None for block in decoder)
    for place, block in enumerate(decoder, start=1):
        # A skip comes before FiLM.
        place_of_skip = (x + _GAP / 2 - (0.2 if block["film"] else 0), 0)
        x = _film(ax, x, block, taps, colour)
        if source := block["skip_from"]:
            _bracket(ax, anchors[source], place_of_skip, level, "#7D8894")
            level += 0.3
        last = place == len(decoder)
        kind, name = ("mask", f"D{place}: mask") if last else ("decoder", f"D{place}")
        _, x = _map(ax, x, block["output_shape"], kind, name)
    start, x = x, x + 0.55
    _arrow(ax, (start + 0.04, 0), (x - 0.18, 0))
    ax.add_patch(Circle((x, 0), 0.17, facecolor="white", edgecolor=_INK, zorder=6))
    ax.text(x, -0.02, "×", ha="center", va="center", fontsize=10, color=_INK, zorder=7)
    _bracket(ax, mixture, (x, 0.19), top, _INK)
    _arrow(ax, (x + 0.18, 0), (x + 0.57, 0))
    _, x = _map(ax, x + 0.6, shape, "input", "Estimate")
    return taps, x, top


def _film(ax: Axes, x: float, block: dict, taps: list[float], colour: str) -> float:
    """Arrow to a block's map, with FiLM on it where the block has it; returns its right end."""
    end = x + _GAP + (0.28 if block["film"] else 0)
    _arrow(ax, (x + 0.04, 0), (end - 0.03, 0))
    if block["film"]:
        taps.append((x + end) / 2 - 0.03)
        ax.add_patch(Circle((taps[-1], 0), 0.17, facecolor=colour, edgecolor="white", zorder=6))
    return end


def _height(shape: list[int]) -> float:
    return 0.38 * max(math.log2(shape[0]), 0.5)


def _map(
    ax: Axes, x: float, shape: list[int], kind: str, name: str
) -> tuple[tuple[float, float], float]:
    """Draw one box from ``x`` on; returns the middle of its top and its right end."""
    height, width = _height(shape), 0.12 * (math.log2(shape[2]) + 1.5)
    _box(ax, x, -height / 2, width, height, _FILLS[kind])
    middle = x + width / 2
    size = "{}×{}\n×{}".format(*shape)
    ax.text(middle, -height / 2 - 0.12, name, fontsize=7.5, fontweight="bold", **_TEXT)
    ax.text(middle, -height / 2 - 0.42, size, fontsize=6.6, linespacing=1.1, **_TEXT)
    return (middle, height / 2), x + width


def _box(ax: Axes, x: float, y: float, width: float, height: float, colour) -> None:
    look = {"facecolor": colour, "edgecolor": "#4A525B", "lw": 0.6, "zorder": 3}
    ax.add_patch(Rectangle((x, y), width, height, **look))


def _arrow(ax: Axes, start: tuple, end: tuple, colour: str = _INK) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, linewidth=0.9, color=colour, zorder=4, **look))


def _bracket(ax: Axes, start: tuple, end: tuple, level: float, colour: str) -> None:
    """Connection that goes up from one box, along a level and down."""
    ax.plot([start[0], start[0], end[0]], [start[1], level, level], color=colour, lw=0.9, zorder=4)
    _arrow(ax, (end[0], level), end, colour)


# ------------------------------------------------------------------------------ control


def _draw_control(
    ax: Axes, control: list[dict], blocks: list[dict], taps: list[float], colour: str
) -> float:
    """Draw the control network and its lines to the FiLM layers; returns its right end."""
    x, half = 0.6, _CELL * len(INSTRUMENTS) / 2
    for place, instrument in enumerate(INSTRUMENTS):
        y = _MIDDLE + half - _CELL * (place + 1)
        _box(ax, x, y, _CELL, _CELL, INSTRUMENT_COLOURS[instrument])
        ax.text(x - 0.1, y + _CELL / 2, instrument, ha="right", va="center", fontsize=7.5)
    _label(ax, x + 0.17, "z", str(len(INSTRUMENTS)))
    x += _CELL
    outputs = {"gammas": "γ", "betas": "β"}
    for block in control:
        start, x = x, x + (0.16 if block["name"] == "betas" else 0.62)
        if block["name"] != "betas":  # gammas and betas side by side, both from the last layer
            _arrow(ax, (start + 0.06, _MIDDLE), (x - 0.04, _MIDDLE))
        # Units upwards; or steps upwards and filters across.
        *steps, units = block["output_shape"]
        scale = math.log2(max(units, 2))
        width, height = (0.13 * scale, _CELL * steps[0]) if steps else (0.4, 0.25 * scale)
        strength = 1.0 if block["name"] in outputs else 0.55
        shade = tuple(1.0 - strength * (1.0 - part) for part in to_rgb(colour))
        _box(ax, x, _MIDDLE - height / 2, width, height, shade)
        size = "×".join(f"{each:,}" for each in block["output_shape"])
        _label(ax, x + width / 2, outputs.get(block["name"], block["type"]), size)
        x += width
    end = x + 0.35
    line = {"color": colour, "lw": 1.5, "solid_joinstyle": "round", "zorder": 2}
    ax.plot([x + 0.06, end, end], [_MIDDLE, _MIDDLE, _BUS], **line)
    ax.plot([min(end, taps[0]), max(end, taps[-1])], [_BUS, _BUS], **line)
    for tap in taps:
        _arrow(ax, (tap, _BUS), (tap, -0.18), colour)
    kinds = {block["film"] for block in blocks}
    per = "block" if "simple" in kinds else "feature map"
    words = f"FiLM: γ · x + β, one γ and one β per {per}"
    ax.text(end + 0.3, _MIDDLE, words, ha="left", va="center", fontsize=8.5, color=_INK)
    return end + 5.0


def _label(ax: Axes, x: float, name: str, size: str) -> None:
    ax.text(x, _MIDDLE - 1.5, name, fontsize=7.5, fontweight="bold", **_TEXT)
    ax.text(x, _MIDDLE - 1.82, size, fontsize=6.8, **_TEXT)
