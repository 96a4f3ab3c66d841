"""What the control panel shows: spectrograms, FiLM values, and the level against each z."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.explore.steering import Steered, Steering
from cunet_lib.models.conditions import label
from cunet_lib.report.figures import INSTRUMENT_COLOURS, INSTRUMENT_MARKERS, styled
from cunet_lib.signal.spectral import decibels, stft

LOWEST_DB = -80.0
"""Black in the spectrograms: dB below the mixture's loudest point."""


class Picture:
    """One figure, drawn as PNG; only what moves is drawn anew, text and axes stay as they are."""

    def __init__(self, steering: Steering):
        self.steering = steering
        with styled():
            self.canvas = Canvas(figsize=(11.0, 5.4), dpi=96)
            self._agg = FigureCanvasAgg(self.canvas)
            edges = {"left": 0.05, "right": 0.985}
            upper = self.canvas.add_gridspec(1, 4, **edges, bottom=0.57, top=0.94, wspace=0.07)
            lower = self.canvas.add_gridspec(1, 3, **edges, bottom=0.09, top=0.43, wspace=0.2)
            self._spectrograms(upper.subplots(sharex=True, sharey=True))
            *films, faders = lower.subplots()
            self._film(films)
            self._faders(faders)
        self._moving = [
            *(image for name, image in self.images.items() if name != "mixture"),
            self.title,
            self.nothing,
            *self.points.values(),
            *self.curves.values(),
            *self.markers.values(),
        ]
        for artist in self._moving:
            artist.set_animated(True)  # left out of the background
        self._background = None

    def _spectrograms(self, axes: np.ndarray) -> None:
        self.images = {}
        for ax, name in zip(axes, ("mixture", "mask", "estimate", "reference"), strict=True):
            low, high = (0, 1) if name == "mask" else (LOWEST_DB, 0)
            look = {"cmap": "viridis" if name == "mask" else "magma", "vmin": low, "vmax": high}
            empty = np.full((2, 2), low, np.float32)
            self.images[name] = ax.imshow(empty, origin="lower", aspect="auto", **look)
            ax.grid(visible=False)
            ax.set(title=name.capitalize(), xlabel="Time (s)")
        axes[0].set(title=f"Mixture (dB, to {LOWEST_DB:g})", ylabel="Frequency (kHz)")
        axes[1].set_title("Mask (dark 0, yellow 1)")
        axes[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        self.title = axes[2].set_title("Estimate")
        place = {"transform": axes[3].transAxes, "ha": "center", "color": "#666666"}
        self.nothing = axes[3].text(0.5, 0.5, "not known", **place)

    def _film(self, axes: list) -> None:
        films = self.steering.films
        places = np.concatenate(
            # Every block is one unit wide, however many values it has.
            [block + (np.arange(film.size) + 0.5) / film.size for block, film in enumerate(films)]
        )
        few = len(places) <= 20
        self.points = {}
        for ax, name, neutral, values in zip(
            axes, ("gammas", "betas"), (1, 0), self.steering.ranges(), strict=True
        ):
            low, high = values.min(axis=0), values.max(axis=0)
            ax.vlines(places, low, high, color="#D4D4D4", lw=5 if few else 1.2)
            look = {"color": "#0067A8", "ms": 9 if few else 3.5}
            (self.points[name],) = ax.plot(places, values[0], ".", **look)
            ax.axhline(neutral, color="#999999", lw=0.8, zorder=0)
            for edge in range(1, len(films)):
                ax.axvline(edge, color="#BBBBBB", lw=0.6)
            ax.set_xticks(np.arange(len(films)) + 0.5, range(1, len(films) + 1))
            ax.grid(visible=False, axis="x")
            ax.set_xlim(0, len(films))
            ax.margins(y=0.15)
            ax.set(xlabel="Block", title=f"FiLM {name} ({neutral}: no effect)")

    def _faders(self, ax) -> None:
        self.curves, self.markers = {}, {}
        for name in INSTRUMENTS:
            look = {"color": INSTRUMENT_COLOURS[name]}
            (self.curves[name],) = ax.plot([0, 1], [0, 0], **look, lw=1.6)
            look |= {"marker": INSTRUMENT_MARKERS[name], "mec": "white", "ls": "none", "ms": 7}
            (self.markers[name],) = ax.plot([0], [0], **look, label=name)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.05), title="Level of the estimate")
        ax.set(xlabel="z of one instrument, the others held", ylabel="Level re mixture")
        ax.legend(loc="upper left", frameon=False, ncols=2, columnspacing=0.8, handletextpad=0.2)

    def load(self) -> None:
        """Show another stretch of a song."""
        steering = self.steering
        seconds = len(steering.mixture) / steering.signal.sample_rate
        for image in self.images.values():
            image.set_extent((0, seconds, 0, steering.signal.sample_rate / 2000))
        self.images["mixture"].set_data(self._db(steering.magnitude))
        self._background = None

    def update(
        self,
        steered: Steered,
        reference: np.ndarray | None,
        curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> bytes:
        """Move every artist and draw: PNG. Instruments without a curve show none."""
        images, magnitude = self.images, self.steering.magnitude
        images["mask"].set_data(steered.mask)
        images["estimate"].set_data(self._db(steered.mask * magnitude))
        self.title.set_text(f"Estimate: {label(steered.z)}")
        known = reference is not None
        images["reference"].set_visible(known)
        self.nothing.set_visible(not known)
        if known:
            images["reference"].set_data(self._db(np.abs(stft(reference, self.steering.signal))))
        self.points["gammas"].set_ydata(steered.gammas)
        self.points["betas"].set_ydata(steered.betas)
        for place, name in enumerate(INSTRUMENTS):
            here = (steered.z[place], steered.level)
            points = (
                {**dict(np.transpose(curves[name])), here[0]: here[1]} if name in curves else {}
            )
            self.curves[name].set_data(sorted(points), [points[z] for z in sorted(points)])
            self.markers[name].set_data([here[0]], [here[1]])
        if self._background is None:
            self._agg.draw()
            self._background = self._agg.copy_from_bbox(self.canvas.bbox)
        self._agg.restore_region(self._background)
        for artist in self._moving:
            artist.axes.draw_artist(artist)
        buffer = io.BytesIO()
        # Speed before size: the picture travels no further than the browser beside it.
        options = {"compress_level": 1, "compress_type": zlib.Z_RLE}
        pixels = np.asarray(self._agg.buffer_rgba())[..., :3]
        imsave(buffer, pixels, format="png", metadata={"Software": None}, pil_kwargs=options)
        return buffer.getvalue()

    def _db(self, magnitude: np.ndarray) -> np.ndarray:
        peak = float(self.steering.magnitude.max(initial=0.0)) or 1.0
        return decibels(magnitude, peak)
