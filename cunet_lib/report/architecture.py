"""Drawings of the networks, made from the record of a built model (``architecture.json``).

Feature maps are boxes to logarithmic scale: height is frequency, depth is time, width is channels.
Skip connections run above, the control network and its FiLM values below.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, UNETS
from cunet_lib.report.figures import (
    INSTRUMENT_COLOURS,
    SYSTEM_COLOURS,
    Figure,
    drawn,
    subplots,
    system_of,
)
from cunet_lib.report.records import LABELS, data_note, listed, missing, read_json

_INK = "#2B2B2B"
_FILLS = {
    "input": "#ECECEC",
    "encoder": "#BCCBDA",
    "decoder": "#DCD3BF",
    "copy": "#FFFFFF",
    "mask": "#B9D8B0",
}
_ACTIVATIONS = {"leaky_relu": "Leaky ReLU", "relu": "ReLU", "sigmoid": "sigmoid"}
_INCHES = 0.56  # per unit of the drawing
_GAP = 0.62


@drawn
def architecture(settings: Profile, runs: pd.DataFrame, model: str) -> Figure:
    """Drawing of one trained model.

    Parameters
    ----------
    runs
        As ``results.load_runs`` gives them.
    model
        ``unet`` (any of the dedicated ones: they are alike) or a C-U-Net.

    Raises
    ------
    ConfigError
        If there is no run of the model, or its record lacks blocks.
    """
    chosen = runs[[system_of(name) == model for name in runs["model"]]]
    if chosen.empty:
        name = UNETS[0] if model == "unet" else model
        raise missing(settings, settings.paths.run(name, settings.seed) / "architecture.json")
    run = chosen.iloc[0]
    blocks = read_json(settings, Path(run["folder"]) / "architecture.json", list)
    parts = {
        part: [block for block in blocks if block["part"] == part]
        for part in ("control", "encoder", "decoder")
    }
    if not parts["encoder"] or len(parts["encoder"]) != len(parts["decoder"]):
        raise ConfigError(
            f"The architecture.json of {run['model']} must hold as many encoder as decoder blocks; "
            f"delete it and run `make reproduce PROFILE={settings.name}`."
        )
    colour = SYSTEM_COLOURS[model]
    fig, axes = subplots(1, 1, size=(1, 1))
    ax = axes[0, 0]
    taps, right = _draw_maps(ax, parts, colour)
    top = _top(parts)
    if parts["control"]:
        bottom, right = _draw_control(ax, parts, taps, colour, right)
    else:
        bottom = -4.35
        _draw_blocks(ax, parts, colour, left=0.3, right=right, y=-3.8, side_by_side=True)
    ax.set_xlim(-0.9, right + 0.5)
    ax.set_ylim(bottom, top + 0.75)
    ax.set_aspect("equal")
    ax.axis("off")
    fig.set_size_inches((right + 1.4) * _INCHES, (top + 0.75 - bottom) * _INCHES)
    title = "Dedicated U-Net" if model == "unet" else LABELS[model]
    values = _outputs(parts["control"])
    film = " and ".join(f"{block['output_shape'][-1]:,} {block['name']}" for block in values)
    film = f"; {film} for each condition" if film else ""
    ax.set_title(f"{title}: {int(run['parameters']):,} parameters{film}", fontsize=11.5)
    return Figure(f"architecture_{model}", fig, _caption(settings, parts, model))


def _caption(settings: Profile, parts: dict, model: str) -> str:
    first, last = parts["encoder"][0], parts["encoder"][-1]
    name = "dedicated U-Net (one per instrument)" if model == "unet" else LABELS[model]
    text = (
        f"Architecture of the {name}, drawn from the built model: boxes are feature maps to "
        "logarithmic scale (height: frequency, depth: time, width: channels; numbers: frequency x "
        f"time x channels), from {_shape(first['input_shape'])} at the input to "
        f"{_shape(last['output_shape'])} at the bottleneck. White boxes: encoder outputs that skip "
        "connections copy to the decoder. The last decoder block gives the mask, which multiplies "
        "the mixture."
    )
    films = {block["film"] for block in parts["encoder"]} - {None}
    if films:
        per = "block" if films == {"simple"} else "feature map"
        text += (
            " FiLM (circles) acts in every encoder block, after batch normalisation and before the "
            f"activation; {films.pop()} FiLM has one gamma and one beta per {per}, given by the "
            "control network from the condition vector z."
        )
    return f"{text} {data_note(settings)}"


def _shape(shape: list[int]) -> str:
    return " x ".join(str(size) for size in shape)


# ------------------------------------------------------------------------------ feature maps


def _size(shape: list[int]) -> tuple[float, float, float]:
    """Height, width and depth of a feature map ``(frequency, time, channels)`` in the drawing."""
    frequency, time, channels = shape
    return (
        0.38 * max(math.log2(frequency), 0.5),
        0.09 * (math.log2(channels) + 1.0),
        0.15 * (math.log2(time) + 0.5),
    )


def _oblique(depth: float) -> tuple[float, float]:
    return 0.55 * depth, 0.42 * depth


def _top(parts: dict) -> float:
    """Height of the highest connection."""
    height, _, depth = _size(parts["encoder"][0]["input_shape"])
    return height / 2 + _oblique(depth)[1] + 0.3 + 0.3 * len(parts["encoder"])


def _draw_maps(ax: Axes, parts: dict, colour: str) -> tuple[list[float], float]:
    """Draw input, encoder, decoder, mask and estimate; returns where FiLM acts, and the end."""
    encoder, decoder = parts["encoder"], parts["decoder"]
    top = _top(parts)
    x = 0.0
    anchors: dict[str, tuple[float, float]] = {}
    taps = []
    shape = encoder[0]["input_shape"]
    mixture, x = _map(ax, x, shape, "input", "Mixture")
    for number, block in enumerate(encoder, start=1):
        start, x = x, x + _GAP
        if block["film"]:
            x += 0.28
            _arrow(ax, (start + 0.04, 0), (x - 0.03, 0))
            centre = (start + x) / 2 - 0.03
            ax.add_patch(Circle((centre, 0), 0.17, facecolor=colour, edgecolor="white", zorder=6))
            taps.append(centre)
        else:
            _arrow(ax, (start + 0.04, 0), (x - 0.03, 0))
        anchors[block["name"]], x = _map(ax, x, block["output_shape"], "encoder", f"E{number}")
    level = top - 0.3
    copies = [block for block in decoder if block["skip_from"]]
    levels = {
        block["skip_from"]: level - 0.3 * place for place, block in enumerate(reversed(copies))
    }
    for number, block in enumerate(decoder, start=1):
        if block["skip_from"]:
            source = next((e for e in encoder if e["name"] == block["skip_from"]), None)
            if source is None:
                raise ConfigError(f"No encoder block {block['skip_from']!r} for {block['name']}.")
            anchor, x = _map(ax, x + 0.05, source["output_shape"], "copy", "")
            _bracket(ax, anchors[source["name"]], anchor, levels[source["name"]], "#7D8894")
        start, x = x, x + _GAP
        _arrow(ax, (start + 0.04, 0), (x - 0.03, 0))
        last = number == len(decoder)
        kind, name = ("mask", f"D{number}: mask") if last else ("decoder", f"D{number}")
        anchor, x = _map(ax, x, block["output_shape"], kind, name)
    start, x = x, x + 0.55
    _arrow(ax, (start + 0.04, 0), (x - 0.18, 0))
    ax.add_patch(Circle((x, 0), 0.17, facecolor="white", edgecolor=_INK, zorder=6))
    ax.text(x, -0.02, "×", ha="center", va="center", fontsize=10, color=_INK, zorder=7)
    _bracket(ax, mixture, (x, 0.19), top, _INK)
    ax.text(
        (mixture[0] + x) / 2,
        top + 0.07,
        "mixture magnitude",
        ha="center",
        va="bottom",
        fontsize=7.5,
    )
    start, x = x, x + 0.6
    _arrow(ax, (start + 0.18, 0), (x - 0.03, 0))
    _, x = _map(ax, x, shape, "input", "Estimate")
    return taps, x


def _map(
    ax: Axes, x: float, shape: list[int], kind: str, name: str
) -> tuple[tuple[float, float], float]:
    """Draw one box from ``x`` on; returns the middle of its top and its right end."""
    height, width, depth = _size(shape)
    dx, dy = _oblique(depth)
    low, high = -height / 2, height / 2
    # The front stands so that the whole box is centred on the axis of the flow.
    low, high = low - dy / 2, high - dy / 2
    faces = (
        ([(x, low), (x + width, low), (x + width, high), (x, high)], 1.0),
        ([(x, high), (x + width, high), (x + width + dx, high + dy), (x + dx, high + dy)], 1.12),
        (
            [
                (x + width, low),
                (x + width + dx, low + dy),
                (x + width + dx, high + dy),
                (x + width, high),
            ],
            0.84,
        ),
    )
    for points, light in faces:
        face = tuple(min(1.0, part * light) for part in to_rgb(_FILLS[kind]))
        ax.add_patch(
            Polygon(
                points,
                closed=True,
                facecolor=face,
                edgecolor="#8A929B" if kind == "copy" else "#4A525B",
                linewidth=0.6,
                joinstyle="round",
                zorder=3,
            )
        )
    if name:
        frequency, time, channels = shape
        ax.text(
            x + (width + dx) / 2,
            low - 0.12,
            name,
            ha="center",
            va="top",
            fontsize=7.5,
            fontweight="bold",
            color=_INK,
            zorder=8,
        )
        ax.text(
            x + (width + dx) / 2,
            low - 0.42,
            f"{frequency}×{time}\n×{channels}",
            ha="center",
            va="top",
            fontsize=6.6,
            linespacing=1.1,
            color=_INK,
            zorder=8,
        )
    return (x + (width + dx) / 2, high + dy / 2), x + width + dx


def _arrow(ax: Axes, start: tuple, end: tuple, colour: str = _INK, **options) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=7,
            shrinkA=0,
            shrinkB=0,
            linewidth=0.9,
            color=colour,
            **{"zorder": 5, **options},
        )
    )


def _bracket(ax: Axes, start: tuple, end: tuple, level: float, colour: str) -> None:
    """Connection that goes up from one box, along a level and down to another."""
    ax.plot(
        [start[0], start[0], end[0]],
        [start[1], level, level],
        color=colour,
        lw=0.9,
        zorder=4,
        solid_joinstyle="round",
    )
    _arrow(ax, (end[0], level), end, colour)


# ------------------------------------------------------------------------------ control


def _outputs(control: list[dict]) -> list[dict]:
    """The two linear layers that give gammas and betas."""
    return [block for block in control if block["name"] in ("gammas", "betas")]


def _draw_control(
    ax: Axes, parts: dict, taps: list[float], colour: str, right: float
) -> tuple[float, float]:
    """Draw the control network and its lines to the FiLM layers; returns lower and right end."""
    outputs = _outputs(parts["control"])
    hidden = [block for block in parts["control"] if block not in outputs]
    middle, bus = -5.05, -2.95
    x = 0.6
    cell = 0.34
    for place, instrument in enumerate(INSTRUMENTS):
        y = middle + cell * (len(INSTRUMENTS) / 2 - place - 1)
        _rectangle(ax, x, y, 0.34, cell, INSTRUMENT_COLOURS[instrument])
        ax.text(x - 0.1, y + cell / 2, instrument, ha="right", va="center", fontsize=7.5)
    _label(ax, x + 0.17, middle - 1.55, "z", f"{len(INSTRUMENTS)}")
    x += 0.34
    for block in hidden:
        start, x = x, x + 0.62
        _arrow(ax, (start + 0.06, middle), (x - 0.04, middle))
        x = _layer(ax, x, middle, block, cell, _tint(colour, 0.55))
    # Gammas and betas side by side, both fed by the last layer.
    start, x = x, x + 0.62
    _arrow(ax, (start + 0.06, middle), (x - 0.04, middle))
    for block, symbol, shade in zip(outputs, "γβ", (1.0, 0.75), strict=False):
        height, width = _bar(block["output_shape"][-1]), 0.42
        _rectangle(ax, x, middle - height / 2, width, height, _tint(colour, shade))
        _label(ax, x + width / 2, middle - 1.55, symbol, f"{block['output_shape'][-1]:,}")
        x += width + 0.16
    x += 0.02
    end = x + 0.35
    line = {"color": colour, "lw": 1.5, "solid_joinstyle": "round", "zorder": 2}
    ax.plot([x - 0.12, end, end], [middle, middle, bus], **line)
    ax.plot([taps[0], max(end, taps[-1])], [bus, bus], **line)
    for tap in taps:
        _arrow(ax, (tap, bus + 0.02), (tap, -0.18), colour, zorder=4)
    ax.text(
        taps[0] - 0.1,
        bus - 0.2,
        f"FiLM: γ · x + β, {_film_words(parts)}",
        ha="left",
        va="top",
        fontsize=7.5,
        color=_INK,
    )
    ax.text(0.6, middle - 2.62, _control_words(hidden), ha="left", va="center", fontsize=7.5)
    # Five boxes of text need this much room, which small networks leave not.
    right = max(right, x + 1.3 + 11.0)
    _draw_blocks(ax, parts, colour, left=x + 1.3, right=right, y=-4.1, side_by_side=False)
    return middle - 2.95, right


def _film_words(parts: dict) -> str:
    kind = parts["encoder"][0]["film"]
    return "one γ and one β per " + ("block" if kind == "simple" else "feature map")


def _control_words(hidden: list[dict]) -> str:
    kinds = {block["type"] for block in hidden}
    kernels = {block["kernel"][0] for block in hidden if block["kernel"]}
    kind = listed(sorted(kinds)) + (f", kernel {listed(sorted(kernels))}" if kernels else "")
    activation = listed(sorted({_ACTIVATIONS.get(b["activation"], "-") for b in hidden}))
    regular = [place for place, block in enumerate(hidden, start=1) if block["dropout"]]
    words = f"Control network: {kind}, {activation}"
    if regular:
        rate = listed(sorted({block["dropout"] for block in hidden if block["dropout"]}))
        words += f"; layers {listed(regular)} with dropout {rate} and batch normalisation"
    return f"{words}; γ and β by linear layers"


def _bar(units: int) -> float:
    return 0.25 * math.log2(max(units, 2))


def _layer(ax: Axes, x: float, middle: float, block: dict, cell: float, colour) -> float:
    """Draw one control layer from ``x`` on: units upwards, or steps upwards and filters across."""
    shape = block["output_shape"]
    if len(shape) == 1:
        height, width, size = _bar(shape[0]), 0.36, f"{shape[0]:,}"
        _rectangle(ax, x, middle - height / 2, width, height, colour)
    else:
        steps, filters = shape
        width, size = 0.13 * math.log2(max(filters, 2)), f"{steps}×{filters}"
        for step in range(steps):
            _rectangle(ax, x, middle + cell * (steps / 2 - step - 1), width, cell, colour)
    _label(ax, x + width / 2, middle - 1.55, block["type"], size)
    return x + width


def _label(ax: Axes, x: float, y: float, name: str, size: str) -> None:
    ax.text(x, y, name, ha="center", va="top", fontsize=7.5, fontweight="bold", color=_INK)
    ax.text(x, y - 0.32, size, ha="center", va="top", fontsize=6.8, color=_INK)


def _rectangle(ax: Axes, x: float, y: float, width: float, height: float, colour) -> None:
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    ax.add_patch(
        Polygon(corners, closed=True, facecolor=colour, edgecolor="#4A525B", lw=0.6, zorder=3)
    )


def _tint(colour: str, strength: float) -> tuple[float, float, float]:
    """The colour mixed with white."""
    return tuple(1.0 - strength * (1.0 - part) for part in to_rgb(colour))


# ------------------------------------------------------------------------------ inside a block


def _draw_blocks(
    ax: Axes, parts: dict, colour: str, *, left: float, right: float, y: float, side_by_side: bool
) -> None:
    """Draw the layers inside an encoder and a decoder block, as chains of boxes."""
    chains = (
        ("Encoder block", "encoder", _encoder_layers(parts["encoder"])),
        ("Decoder block", "decoder", _decoder_layers(parts["decoder"])),
    )
    if side_by_side:
        middle = left + (right - left) * len(chains[0][2]) / (len(chains[0][2]) + len(chains[1][2]))
        spans = ((left, middle - 0.25, y), (middle + 0.25, right, y))
    else:
        spans = ((left, right, y), (left, right, y - 1.75))
    for (heading, kind, layers), (start, stop, level) in zip(chains, spans, strict=True):
        ax.text(start, level + 0.52, heading, fontsize=8, fontweight="bold", color=_INK)
        gap = 0.24
        width = (stop - start - gap * (len(layers) - 1)) / len(layers)
        for place, text in enumerate(layers):
            x = start + place * (width + gap)
            film = text.startswith("FiLM")
            ax.add_patch(
                FancyBboxPatch(
                    (x, level - 0.36),
                    width,
                    0.72,
                    boxstyle="round,pad=0,rounding_size=0.1",
                    facecolor=_tint(colour, 0.45) if film else _FILLS[kind],
                    edgecolor="#4A525B",
                    lw=0.6,
                )
            )
            ax.text(
                x + width / 2, level, text, ha="center", va="center", fontsize=7, linespacing=1.15
            )
            if place:
                _arrow(ax, (x - gap + 0.02, level), (x - 0.02, level))


def _convolution(block: dict) -> str:
    kernel = "×".join(str(size) for size in block["kernel"])
    return f"{block['type']}\n{kernel}, stride {block['stride'][0]}"


def _encoder_layers(encoder: list[dict]) -> list[str]:
    block = encoder[0]
    layers = [_convolution(block)]
    if block["normalization"]:
        layers.append("Batch norm.")
    if block["film"]:
        layers.append("FiLM\nγ · x + β")
    return [*layers, _ACTIVATIONS.get(block["activation"], str(block["activation"]))]


def _decoder_layers(decoder: list[dict]) -> list[str]:
    layers = []
    joined = [place for place, block in enumerate(decoder, start=1) if block["skip_from"]]
    if joined:
        layers.append(f"Concatenate\nskip ({_span(joined)})")
    layers.append(_convolution(decoder[0]))
    if decoder[0]["normalization"]:
        layers.append("Batch norm.")
    dropped = [place for place, block in enumerate(decoder, start=1) if block["dropout"]]
    if dropped:
        rate = listed(sorted({block["dropout"] for block in decoder if block["dropout"]}))
        layers.append(f"Dropout {rate}\n({_span(dropped)})")
    first, last = (_ACTIVATIONS.get(decoder[place]["activation"], "-") for place in (0, -1))
    return [*layers, first if first == last else f"{first}\n(last: {last})"]


def _span(numbers: list[int]) -> str:
    """Such as ``"D2 to D4"``."""
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"D{numbers[0]} to D{numbers[-1]}"
    return ", ".join(f"D{number}" for number in numbers)
