"""The control panel: four sliders for z, and what the network does with it, to see and to hear.

:class:`Steering` prepares a stretch of a song once (spectrogram and patches), so that a new z costs
one call of the network on one batch. :class:`Explorer` puts sliders, pictures and players around
it. A moved slider is answered with picture and sound first; the curves of level against z, which
cost many calls of the network, follow in the kernel's idle time and give way to the next move.
Nothing needs a browser: in a notebook that papermill runs, :meth:`Explorer.set` moves the sliders.

``python -m benchmarks.latency`` says how long an answer takes, by part.
"""

from __future__ import annotations

import asyncio
import functools
import html
import io
import itertools
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as widgets
import keras
import numpy as np
import soundfile
import soxr
from IPython.display import Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from cunet_lib.core.settings import ROOT, ConfigError, Profile, Separate, Signal
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.evaluate import real_excerpt
from cunet_lib.explore.conditioning import FLOOR_DB, level_db, load_run
from cunet_lib.models.conditions import label, vector
from cunet_lib.models.unet import is_conditioned, load
from cunet_lib.preprocess.store import open_store
from cunet_lib.preprocess.tracks import LOUDEST, STEMS
from cunet_lib.report.figures import INSTRUMENT_COLOURS, INSTRUMENT_MARKERS, styled
from cunet_lib.signal.audio import open_audio
from cunet_lib.signal.spectral import cut_patches, istft, join_patches, stft

EXCERPT = "a real excerpt (6 s of a MUSDB18 test track)"
"""The song that is there without any data."""

CURVE = (0.0, 0.5, 1.0)
"""Where the faders' curves are computed; the present z is one more point."""

FINE = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The same for the slider that is being moved, whose curve stays meanwhile."""

PAUSE = 0.02
"""Seconds that the idle time's work leaves to messages between two calls of the network."""

LOWEST_DB = -80.0
"""Black in the spectrograms: dB below the mixture's loudest point."""


# ------------------------------------------------------------------------------ model and songs


def load_network(settings: Profile, model: str = "", *, seed: int = 0) -> keras.Model:
    """The C-U-Net that ships with a profile, or that of a training run.

    Parameters
    ----------
    model
        A C-U-Net variant whose training run is taken; the shipped model if empty.
    seed
        Of the training run.

    Raises
    ------
    ConfigError
        If there is no such model, or it was trained with other signal settings.
    """
    if model:
        return load_run(settings, model, seed=seed).network
    name = f"{settings.shipped}.keras"
    # The committed one lies with the project, wherever new results go.
    places = (settings.paths.models, ROOT / "results" / settings.name / "models")
    found = next((folder / name for folder in places if (folder / name).is_file()), None)
    if found is None:
        raise ConfigError(
            f"No model ships with profile {settings.name}; "
            f"`make reproduce PROFILE={settings.name}` trains one."
        )
    # Half precision saves space on disk, and is slow to compute with.
    network = load(found, precision="float32")
    if network.inputs[0].shape[1] != settings.signal.bins:
        raise ConfigError(
            f"{name} was trained on {network.inputs[0].shape[1]} frequency bins, "
            f"signal.n_fft = {settings.signal.n_fft} gives {settings.signal.bins}."
        )
    return network


def songs(settings: Profile) -> dict[str, Callable[[], np.ndarray]]:
    """What can be listened to: the store's test songs, if there is a store, and a real excerpt.

    Returns
    -------
    dict
        Name to a function that gives ``(5, samples)`` at the study rate, mixture first.
    """
    found = {}
    try:
        store = open_store(settings)
    except ConfigError:  # a fresh clone has none
        pass
    else:
        for entry in store.split("test"):
            found[entry.name] = functools.partial(store.audio, entry)
    return {**found, EXCERPT: functools.partial(real_excerpt, settings.signal.sample_rate)}


def decode_upload(name: str, content: bytes, sample_rate: int) -> np.ndarray:
    """Mono audio of an uploaded file, ``(1, samples)`` float32 at ``sample_rate``.

    Raises
    ------
    ConfigError
        If it is no audio, or holds none.
    """
    # A file, since some formats have their index at the end. Its name has nothing of the upload's.
    with tempfile.TemporaryDirectory(prefix="cunet-") as folder:
        source = Path(folder) / "upload"
        source.write_bytes(content)
        try:
            song = open_audio(source)
            blocks = [block.mean(axis=1) for block in song.blocks()]
        except ConfigError as error:
            raise ConfigError(
                f"{name} cannot be read as audio; convert it to WAV or FLAC."
            ) from error
    audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(audio) or not np.isfinite(audio).all() or np.abs(audio).max() > LOUDEST:
        raise ConfigError(f"{name} holds no audio; export it again.")
    return soxr.resample(audio, song.rate, sample_rate, quality="HQ")[None]


def loudest(audio: np.ndarray, length: int) -> int:
    """First sample of the stretch of ``length`` samples in which ``(samples,)`` is loudest."""
    energy = np.cumsum(np.concatenate([[0.0], audio.astype(float) ** 2]))
    length = min(length, len(audio))
    return int(np.argmax(energy[length:] - energy[: len(energy) - length]))


def wav(audio: np.ndarray, rate: int) -> bytes:
    """Mono audio as a WAV file of 16 bits; what exceeds 1 is clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1, 1), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


# ------------------------------------------------------------------------------ computing


class Stopwatch:
    """Seconds by part of the work, in order.

    Attributes
    ----------
    parts : dict
        Name of a part to its seconds.
    """

    def __init__(self):
        self.parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap, or since the start, as this part's."""
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now


class _IdleTime:
    """Does one work at a time, step by step, whenever the event loop has nothing else to do.

    A kernel answers messages between the steps. Where no loop runs, as in a plain program, all
    steps are done at once.
    """

    def __init__(self):
        self._next: asyncio.Handle | None = None

    def give(self, steps: Iterator[None]) -> None:
        """Do these steps from now on, and nothing of an earlier work any more."""
        self.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            deque(steps, maxlen=0)
            return

        def step() -> None:
            if next(steps, self) is not self:  # itself: the end
                self._next = loop.call_later(PAUSE, step)

        self._next = loop.call_later(PAUSE, step)

    def cancel(self) -> None:
        """Leave the rest undone."""
        if self._next is not None:
            self._next.cancel()
            self._next = None


@dataclass(frozen=True)
class Steered:
    """What one z gives; levels are root mean squares of spectrograms.

    Attributes
    ----------
    z
        ``(instruments,)``.
    mask
        ``(n_fft // 2 + 1, frames)`` in [0, 1].
    estimate
        ``(samples,)``.
    gammas, betas
        ``(values,)`` of all blocks.
    level
        Of the masked mixture over that of the mixture; 0 for silence.
    """

    z: np.ndarray
    mask: np.ndarray
    estimate: np.ndarray
    gammas: np.ndarray
    betas: np.ndarray
    level: float


class Steering:
    """A C-U-Net and one stretch of a song; each z is one call of the network.

    Parameters
    ----------
    network
        A C-U-Net.
    signal, separate
        As for :class:`cunet_lib.separation.separator.Separator`, whose estimates these are.

    Raises
    ------
    ConfigError
        If the network takes no condition.
    """

    def __init__(self, network: keras.Model, signal: Signal, separate: Separate | None = None):
        if not is_conditioned(network):
            raise ConfigError(f"{network.name} takes no condition; explore a C-U-Net.")
        self.signal = signal
        self.separate = separate or Separate()
        self.films = [layer for layer in network.layers if layer.name.endswith("_film")]
        self._control = network.get_layer("control")
        _, gammas, betas = self.films[0].input
        mask = network.get_layer("mask").output
        self._network = keras.Model(network.inputs, [mask, gammas, betas])
        # Keras would compile with XLA, which on CPUs is slower, and slow to start.
        self._network.jit_compile = False
        self._frames = network.inputs[0].shape[2]

    def load(self, mixture: np.ndarray) -> None:
        """Take another stretch, ``(samples,)`` mono at the study rate."""
        self.mixture = np.asarray(mixture, np.float32)
        self.spectrogram = stft(self.mixture, self.signal)
        self.magnitude = np.abs(self.spectrogram)
        peak = float(self.magnitude.max(initial=0.0)) or 1.0
        self._patches, self._starts = cut_patches(
            self.magnitude[: self.signal.bins] / peak, self._frames, self.separate.overlap
        )
        self._energy = float(np.sum(self.magnitude**2))
        # For the level alone no patch need overlap another.
        step = self._starts[1] if len(self._starts) > 1 else self._frames
        few = list(range(0, len(self._starts), max(1, self._frames // step)))
        if self._starts[few[-1]] + self._frames < self.magnitude.shape[1]:
            few.append(len(self._starts) - 1)
        self._few = few

    def __call__(self, z: np.ndarray, watch: Stopwatch | None = None) -> Steered:
        """Mask, estimate and FiLM values of a condition ``(instruments,)``."""
        watch = watch or Stopwatch()
        z = np.asarray(z, np.float32)
        masks, gammas, betas = self._call(self._patches, z[None])
        watch.lap("network")
        mask = self._joined(masks[0], self._starts)
        estimate = istft(mask * self.spectrogram, self.signal, len(self.mixture))
        watch.lap("inverse STFT")
        return Steered(z, mask, estimate, gammas[0], betas[0], self._level(mask))

    def levels(self, conditions: np.ndarray) -> np.ndarray:
        """:attr:`Steered.level` of each condition ``(conditions, instruments)``, in one call.

        From patches that hardly overlap, so within about a hundredth of the exact level.
        """
        masks, _, _ = self._call(self._patches[self._few], np.asarray(conditions, np.float32))
        starts = [self._starts[place] for place in self._few]
        return np.array([self._level(self._joined(mask, starts)) for mask in masks])

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Gammas and betas ``(conditions, values)`` with every instrument on or off."""
        corners = np.array(list(itertools.product((0, 1), repeat=len(INSTRUMENTS))), np.float32)
        gammas, betas = self._control(corners, training=False)
        return tuple(keras.ops.convert_to_numpy(values) for values in (gammas, betas))

    def _call(self, patches: np.ndarray, conditions: np.ndarray):
        """Masks ``(conditions, patches, bins, frames)``, gammas and betas of each condition."""
        count = len(patches)
        inputs = [
            np.tile(patches[..., None], (len(conditions), 1, 1, 1)),
            np.repeat(conditions, count, axis=0),
        ]
        masks, gammas, betas = self._network.predict_on_batch(inputs)
        masks = masks[..., 0].reshape(len(conditions), *patches.shape)
        return masks, gammas[::count], betas[::count]

    def _joined(self, patches: np.ndarray, starts: list[int]) -> np.ndarray:
        mask = join_patches(patches, starts, self.magnitude.shape[1])
        # The Nyquist bin, which the network does not see, takes the mask of its neighbour.
        return np.concatenate([mask, mask[-1:]])

    def _level(self, mask: np.ndarray) -> float:
        if not self._energy:
            return 0.0
        return float(np.sqrt(np.sum((mask * self.magnitude) ** 2) / self._energy))


# ------------------------------------------------------------------------------ drawing


class _Picture:
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
        self._draw()
        watch.lap("drawing")
        content = self._encoded()
        watch.lap("PNG")
        return content

    def _draw(self) -> None:
        agg = self.canvas.canvas
        if self._background is None:
            agg.draw()
            self._background = agg.copy_from_bbox(self.canvas.bbox)
        agg.restore_region(self._background)
        for artist in self._moving:
            artist.axes.draw_artist(artist)

    def _encoded(self) -> bytes:
        agg, buffer = self.canvas.canvas, io.BytesIO()
        # Speed before size: the picture travels no further than the browser beside it.
        imsave(
            buffer,
            np.asarray(agg.buffer_rgba())[..., :3],
            format="png",
            metadata={"Software": None},
            pil_kwargs={"compress_level": 1, "compress_type": zlib.Z_RLE},
        )
        return buffer.getvalue()

    def _db(self, magnitude: np.ndarray) -> np.ndarray:
        floor = 10 ** (LOWEST_DB / 20)
        return 20 * np.log10(np.maximum(magnitude / self._peak, floor))


# ------------------------------------------------------------------------------ the panel


def _others(z: np.ndarray, place: int) -> tuple[float, ...]:
    return tuple(np.delete(z, place).tolist())


class Explorer:
    """Sliders, pictures and players of one C-U-Net; show :attr:`panel` in a notebook.

    Parameters
    ----------
    network
        A C-U-Net.
    settings
        Profile that it was trained with.
    songs
        Name to a function that gives ``(5, samples)``, mixture first, or ``(1, samples)`` where no
        stem is known.
    seconds
        Length of the stretch that is shown; songs that are shorter are shown whole.

    Attributes
    ----------
    sliders : dict
        By instrument, 0 to 1.
    song, start, upload : ipywidgets.Widget
        Which song; from which second; a file of one's own.
    audio : dict
        Players by name: mixture, estimate, reference, rest. All have the mixture's level.
    picture : ipywidgets.Image
        PNG.
    panel : ipywidgets.Widget
        All of them.
    steered : Steered
        What is shown.
    watch : Stopwatch
        Seconds of the last answer, from a change of z to the new picture and sound, by part.

    Raises
    ------
    ConfigError
        If the network takes no condition.
    """

    def __init__(
        self,
        network: keras.Model,
        settings: Profile,
        songs: Mapping[str, Callable[[], np.ndarray]],
        *,
        seconds: float = 10.0,
    ):
        self.rate = settings.signal.sample_rate
        self.seconds = seconds
        self.steering = Steering(network, settings.signal, settings.separate)
        self._picture = _Picture(self.steering)
        self._songs = dict(songs)
        self._held = False
        self._touched = ""
        # Kernels may handle widgets in another thread than cells.
        self._lock = threading.RLock()
        self._idle = _IdleTime()
        self._build()
        self._take_song()

    def set(self, **levels: float) -> Explorer:
        """Move sliders, by instrument; the others go to 0. Returns itself, the curves complete.

        Raises
        ------
        ConfigError
            If an instrument is unknown or a level is not within 0 and 1.
        """
        z = vector(levels)
        with self._lock:
            with self._hold():
                for name, level in zip(INSTRUMENTS, z, strict=True):
                    self.sliders[name].value = float(level)
            self._refresh(at_once=True)
        return self

    @property
    def z(self) -> np.ndarray:
        """The condition that the sliders stand for, ``(instruments,)`` float32."""
        return vector({name: slider.value for name, slider in self.sliders.items()})

    def heard(self) -> dict[str, np.ndarray]:
        """What the players hold: title to audio ``(samples,)``."""
        mixture, estimate = self.steering.mixture, self.steered.estimate
        found = {"mixture": mixture, f"estimate: {label(self.steered.z)}": estimate}
        if (reference := self._reference()) is not None:
            found["reference"] = reference
        return {**found, "rest: mixture minus estimate": mixture - estimate}

    def snapshot(self) -> Image:
        """The present picture, to keep in an executed notebook."""
        return Image(data=bytes(self.picture.value), format="png")

    # ---------------------------------------------------------------- building

    def _build(self) -> None:
        self.sliders = {
            name: widgets.FloatSlider(
                value=float(name == "vocals"),
                min=0.0,
                max=1.0,
                step=0.01,
                description=name,
                readout_format=".2f",
                style={"handle_color": INSTRUMENT_COLOURS[name], "description_width": "55px"},
                layout={"width": "360px"},
            )
            for name in INSTRUMENTS
        }
        for slider in self.sliders.values():
            slider.observe(self._moved, names="value")
        self.song = widgets.Dropdown(
            options=list(self._songs), description="song", layout={"width": "420px"}
        )
        self.song.observe(self._song_chosen, names="value")
        self.start = widgets.FloatSlider(
            min=0.0,
            max=1.0,
            step=0.5,
            description="from (s)",
            readout_format=".1f",
            continuous_update=False,
            layout={"width": "320px"},
        )
        self.start.observe(self._start_moved, names="value")
        self.upload = widgets.FileUpload(
            accept="audio/*,.flac,.m4a,.opus",
            description="a song of yours",
            layout={"width": "180px"},
        )
        self.upload.observe(self._uploaded, names="value")
        self.audio = {
            name: widgets.Audio(
                value=b"", format="wav", autoplay=False, loop=False, layout={"width": "300px"}
            )
            for name in ("mixture", "estimate", "reference", "rest")
        }
        self._players = {
            name: widgets.HBox(
                [widgets.Label(name, layout={"width": "75px"}), player],
                layout={"align_items": "center"},
            )
            for name, player in self.audio.items()
        }
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.status = widgets.HTML()
        presets = [*({name: 1.0} for name in INSTRUMENTS), dict.fromkeys(INSTRUMENTS, 1.0), {}]
        buttons = []
        for title, levels in zip((*INSTRUMENTS, "all", "none"), presets, strict=True):
            button = widgets.Button(description=title, layout={"width": "62px"})
            button.on_click(functools.partial(self._preset, levels))
            buttons.append(button)
        left = widgets.VBox([*self.sliders.values(), widgets.HBox(buttons), self.status])
        right = widgets.VBox(list(self._players.values()))
        top = widgets.HBox([self.song, self.start, self.upload], layout={"flex_flow": "row wrap"})
        middle = widgets.HBox(
            [left, right], layout={"flex_flow": "row wrap", "grid_gap": "8px 40px"}
        )
        self.panel = widgets.VBox([top, middle, self.picture])

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Move widgets without an answer to each."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    # ---------------------------------------------------------------- answering

    def _moved(self, change) -> None:
        with self._lock:
            if not self._held:
                self._touched = change["owner"].description
                self._refresh()

    def _preset(self, levels: Mapping[str, float], button) -> None:
        self.set(**levels)

    def _song_chosen(self, change) -> None:
        with self._lock:
            if not self._held:
                self._take_song()

    def _start_moved(self, change) -> None:
        with self._lock:
            if not self._held:
                self._take_stretch()

    def _uploaded(self, change) -> None:
        if not change["new"]:
            return
        (file, *_) = change["new"]
        try:
            audio = decode_upload(file["name"], bytes(file["content"]), self.rate)
        except ConfigError as error:
            self._say(str(error))
            return
        finally:
            # The widget would keep the file's bytes, here and in saved notebooks.
            self.upload.value = ()
        self._songs[file["name"]] = lambda: audio
        with self._lock:
            with self._hold():
                self.song.options = list(self._songs)
                self.song.value = file["name"]
            self._take_song()

    def _take_song(self) -> None:
        try:
            self._audio = self._songs[self.song.value]()
        except ConfigError as error:  # such as a store that was deleted meanwhile
            if not hasattr(self, "steered"):
                raise
            self._say(str(error))
            return
        samples = self._audio.shape[1]
        length = min(round(self.seconds * self.rate), samples)
        loud = self._audio[STEMS.index("vocals")] if len(self._audio) > 1 else self._audio[0]
        with self._hold():
            self.start.value = 0.0
            self.start.max = max((samples - length) / self.rate, self.start.step)
            self.start.value = loudest(loud, length) / self.rate
            self.start.disabled = length == samples
        self._take_stretch()

    def _take_stretch(self) -> None:
        first = round(self.start.value * self.rate)
        length = round(self.seconds * self.rate)
        first = max(0, min(first, self._audio.shape[1] - length))
        self._stretch = np.array(self._audio[:, first : first + length], np.float32)
        self.steering.load(self._stretch[0])
        self._picture.load()
        # By instrument: the other sliders' z, and levels by its own.
        self._curves: dict[str, tuple[tuple[float, ...], dict[float, float]]] = {}
        self._gain = 1.0 / (float(np.abs(self._stretch[0]).max(initial=0.0)) or 1.0)
        self.audio["mixture"].value = self._played(self._stretch[0])
        self._players["reference"].layout.display = "none" if len(self._stretch) == 1 else None
        self._refresh()

    def _refresh(self, *, at_once: bool = False) -> None:
        """Answer a new z; the curves follow in idle time, or at once."""
        with self._lock:
            self._idle.cancel()
            watch = Stopwatch()
            self.steered = self.steering(self.z, watch)
            reference = self._reference()
            self.audio["estimate"].value = self._played(self.steered.estimate)
            self.audio["rest"].value = self._played(self.steering.mixture - self.steered.estimate)
            if reference is not None:
                self.audio["reference"].value = self._played(reference)
            self._describe(reference)
            watch.lap("sound")
            if at_once:
                deque(self._measured(), maxlen=0)
                watch.lap("curves")
            self._draw(watch)
            self.watch = watch
            if not at_once:
                self._idle.give(self._followed(self.steered))

    def _draw(self, watch: Stopwatch | None = None) -> None:
        curves = {name: self._curve(name) for name in INSTRUMENTS}
        known = {name: curve for name, curve in curves.items() if curve is not None}
        self.picture.value = self._picture.update(self.steered, self._reference(), known, watch)

    def _followed(self, steered: Steered) -> Iterator[None]:
        """Measure the curves that are missing, step by step, and draw them in the last step."""
        steps = self._measured()
        while True:
            with self._lock:
                if self.steered is not steered:  # another thread has answered a newer z
                    return
                if next(steps, self) is self:  # itself: the end
                    self._draw()
                    return
            yield

    def _measured(self) -> Iterator[None]:
        """Complete every curve for the present z, one call of the network at each step."""
        z = self.steered.z
        # The slider under the cursor comes first.
        for name in sorted(INSTRUMENTS, key=lambda name: name != self._touched):
            place = INSTRUMENTS.index(name)
            others = _others(z, place)
            if name not in self._curves or self._curves[name][0] != others:
                self._curves[name] = (others, {})
            _, levels = self._curves[name]
            for point in FINE if name == self._touched else CURVE:
                if point not in levels:
                    condition = z.copy()
                    condition[place] = point
                    (levels[point],) = self.steering.levels(condition[None])
                    yield

    def _curve(self, instrument: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Levels while one instrument's z goes from 0 to 1, the present point among them.

        None if they have not been measured for the present z of the others.
        """
        place = INSTRUMENTS.index(instrument)
        present = float(self.steered.z[place])
        # Moving one slider leaves its own curve as it is.
        others, levels = self._curves.get(instrument, (None, {}))
        if others != _others(self.steered.z, place) or not levels.keys() >= set(CURVE):
            return None
        apart = {point: level for point, level in levels.items() if abs(point - present) > 1e-6}
        x, y = zip(*sorted({**apart, present: self.steered.level}.items()), strict=True)
        return np.array(x), np.array(y)

    def _reference(self) -> np.ndarray | None:
        """The stems in the proportions of z, ``(samples,)``; None where they are not known."""
        return self.steered.z @ self._stretch[1:] if len(self._stretch) > 1 else None

    def _played(self, audio: np.ndarray) -> bytes:
        return wav(audio * self._gain, self.rate)

    def _describe(self, reference: np.ndarray | None) -> None:
        estimate, mixture = self.steered.estimate, self.steering.mixture
        level = level_db(estimate, mixture)
        words = "silent" if not level > FLOOR_DB else f"{level:+.1f} dB re mixture"
        text = f"asked for <b>{html.escape(label(self.steered.z))}</b>; the estimate: {words}"
        if reference is not None and np.any(reference):
            error = level_db(reference - estimate, reference)
            text += f"; SDR {-error:.1f} dB (plain ratio)"
        self.status.value = text

    def _say(self, message: str) -> None:
        self.status.value = f"<b>{html.escape(message)}</b>"
