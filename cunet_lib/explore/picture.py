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
from cunet_lib.explore.steering import Steered, Steering, Stopwatch
from cunet_lib.models.conditions import label
from cunet_lib.report.figures import INSTRUMENT_COLOURS, INSTRUMENT_MARKERS, styled
from cunet_lib.signal.spectral import stft

LOWEST_DB = -80.0
"""Black in the spectrograms: dB below the mixture's loudest point."""


class Picture:
    """One figure, drawn as PNG; only what moves is drawn anew, text and axes stay as they are."""

    def __init__(self, steering: Steering, *, dpi: int = 84):
        self.steering = steering
        self._peak = 1.0
        with styled():
            self.canvas = Canvas(figsize=(12.6, 6.0), dpi=dpi)
            FigureCanvasAgg(self.canvas)
            self._spectrograms()
            self._film()
            self._faders()
        self._moving = [
            *(image for name, image in self.images.items() if name != "mixture"),
            self.titles["estimate"],
            self.nothing,
            *self.points.values(),
            *self.curves.values(),
            *self.markers.values(),
        ]
        for artist in self._moving:
            artist.set_animated(True)  # left out of the background
        self._background = None

    def _spectrograms(self) -> None:
        grid = self.canvas.add_gridspec(
            1, 4, left=0.045, right=0.93, bottom=0.57, top=0.945, wspace=0.09
        )
        axes = grid.subplots(sharex=True, sharey=True)
        self.images, self.titles = {}, {}
        for ax, name in zip(axes, ("mixture", "mask", "estimate", "reference"), strict=True):
            low, high = (0, 1) if name == "mask" else (LOWEST_DB, 0)
            image = ax.imshow(
                np.full((2, 2), low, np.float32),
                origin="lower",
                aspect="auto",
                cmap="viridis" if name == "mask" else "magma",
                vmin=low,
                vmax=high,
            )
            ax.grid(visible=False)
            ax.set_xlabel("Time (s)")
            self.images[name] = image
            self.titles[name] = ax.set_title(name.capitalize())
        axes[0].set_ylabel("Frequency (kHz)")
        axes[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        self.nothing = axes[3].text(
            0.5, 0.5, "not known", transform=axes[3].transAxes, ha="center", color="#666666"
        )
        for source, bottom, text in (("mask", 0.57, "mask"), ("mixture", 0.775, "dB re peak")):
            place = self.canvas.add_axes((0.94, bottom, 0.009, 0.17))
            bar = self.canvas.colorbar(self.images[source], cax=place)
            bar.set_label(text)
            bar.outline.set_visible(False)
            bar.ax.yaxis.set_major_locator(MaxNLocator(4))

    def _film(self) -> None:
        films = self.steering.films
        places = np.concatenate(
            # Every block is one unit wide, however many values it has.
            [block + (np.arange(film.size) + 0.5) / film.size for block, film in enumerate(films)]
        )
        grid = self.canvas.add_gridspec(
            1, 3, left=0.045, right=0.985, bottom=0.085, top=0.43, wspace=0.21
        )
        self.points, self.film_axes = {}, {}
        for column, (name, means, values) in enumerate(
            zip(
                ("gammas", "betas"),
                ("scale: 1 leaves a map as it is", "shift: 0 leaves a map as it is"),
                self.steering.ranges(),
                strict=True,
            )
        ):
            ax = self.canvas.add_subplot(grid[column])
            low, high = values.min(axis=0), values.max(axis=0)
            ax.vlines(places, low, high, color="#D4D4D4", lw=1.2 if len(places) > 20 else 5)
            (self.points[name],) = ax.plot(
                places, values[0], ".", color="#0067A8", ms=3.5 if len(places) > 20 else 9
            )
            ax.axhline(1 if name == "gammas" else 0, color="#999999", lw=0.8, zorder=0)
            for edge in range(1, len(films)):
                ax.axvline(edge, color="#BBBBBB", lw=0.6)
            ax.set_xticks(np.arange(len(films)) + 0.5, range(1, len(films) + 1))
            ax.grid(visible=False, axis="x")
            ax.set_xlim(0, len(films))
            room = 0.08 * max(high.max() - low.min(), 0.1)
            ax.set_ylim(low.min() - room, high.max() + room)
            ax.set(xlabel="Encoder block", title=f"FiLM {name} ({means})")
            self.film_axes[name] = ax
        self._fader_axes = self.canvas.add_subplot(grid[2])

    def _faders(self) -> None:
        ax = self._fader_axes
        self.curves, self.markers = {}, {}
        for name in INSTRUMENTS:
            colour = INSTRUMENT_COLOURS[name]
            (self.curves[name],) = ax.plot([0, 1], [0, 0], color=colour, lw=1.6)
            (self.markers[name],) = ax.plot(
                [0],
                [0],
                marker=INSTRUMENT_MARKERS[name],
                color=colour,
                ms=7,
                mec="white",
                ls="none",
                label=name,
            )
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.05)
        ax.set(
            xlabel="z of one instrument, the others held",
            ylabel="Level re mixture",
            title="Each fader from where z is",
        )
        ax.legend(loc="upper left", frameon=False, ncols=2, columnspacing=0.8, handletextpad=0.2)

    def load(self) -> None:
        """Show another stretch of a song."""
        steering = self.steering
        self._peak = float(steering.magnitude.max(initial=0.0)) or 1.0
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
        watch: Stopwatch | None = None,
    ) -> bytes:
        """Move every artist and draw: PNG. Instruments without a curve show none."""
        watch = watch or Stopwatch()
        images, magnitude = self.images, self.steering.magnitude
        images["mask"].set_data(steered.mask)
        images["estimate"].set_data(self._db(steered.mask * magnitude))
        self.titles["estimate"].set_text(f"Estimate: {label(steered.z)}")
        known = reference is not None
        images["reference"].set_visible(known)
        self.nothing.set_visible(not known)
        if known:
            images["reference"].set_data(self._db(np.abs(stft(reference, self.steering.signal))))
        for name, values in (("gammas", steered.gammas), ("betas", steered.betas)):
            self.points[name].set_ydata(values)
            low, high = self.film_axes[name].get_ylim()
            if values.min() < low or values.max() > high:
                self.film_axes[name].set_ylim(min(low, values.min()), max(high, values.max()))
                self._background = None
        for place, name in enumerate(INSTRUMENTS):
            self.curves[name].set_data(*curves.get(name, ([], [])))
            self.markers[name].set_data([steered.z[place]], [steered.level])
        agg = self.canvas.canvas
        if self._background is None:
            agg.draw()
            self._background = agg.copy_from_bbox(self.canvas.bbox)
        agg.restore_region(self._background)
        for artist in self._moving:
            artist.axes.draw_artist(artist)
        watch.lap("drawing")
        buffer = io.BytesIO()
        # Speed before size: the picture travels no further than the browser beside it.
        imsave(
            buffer,
            np.asarray(agg.buffer_rgba())[..., :3],
            format="png",
            metadata={"Software": None},
            pil_kwargs={"compress_level": 1, "compress_type": zlib.Z_RLE},
        )
        watch.lap("PNG")
        return buffer.getvalue()

    def _db(self, magnitude: np.ndarray) -> np.ndarray:
        floor = 10 ** (LOWEST_DB / 20)
        return 20 * np.log10(np.maximum(magnitude / self._peak, floor))
