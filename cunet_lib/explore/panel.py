"""The control panel: four sliders for z, and what the network does with it, to see and to hear.

A moved slider is answered with picture and sound first; the curves of level against z follow while
the kernel has nothing else to do. Nothing needs a browser: in a notebook that papermill runs,
:meth:`Explorer.set` moves the sliders.

``make bench BENCH_ARGS="--only panel"`` says how long an answer takes.
"""

from __future__ import annotations

import asyncio
import base64
import html
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ipywidgets as widgets
import keras
import numpy as np
from IPython.display import Audio

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.explore.conditioning import FLOOR_DB, level_db
from cunet_lib.explore.picture import Picture
from cunet_lib.explore.steering import Steered, Steering, decode_upload
from cunet_lib.models.conditions import label, vector
from cunet_lib.preprocess.tracks import STEMS
from cunet_lib.report.figures import INSTRUMENT_COLOURS
from cunet_lib.signal.spectral import loudest

PAUSE = 0.2
"""Seconds without a move before a curve is computed, which takes about as long as an answer."""


class _Widgets:
    """The panel's widgets, which do nothing yet."""

    def __init__(self, songs: list[str]):
        self.sliders = {
            name: widgets.FloatSlider(
                value=float(name == "vocals"),
                max=1.0,
                step=0.01,
                description=name,
                style={"handle_color": INSTRUMENT_COLOURS[name], "description_width": "55px"},
                layout={"width": "350px"},
            )
            for name in INSTRUMENTS
        }
        self.buttons = {
            title: widgets.Button(description=title, layout={"width": "auto"})
            for title in (*INSTRUMENTS, "all", "none")
        }
        self.song = widgets.Dropdown(options=songs, layout={"width": "300px"})
        self.start = widgets.FloatSlider(
            max=1.0,
            step=0.5,
            description="from (s)",
            readout_format=".1f",
            continuous_update=False,
            layout={"width": "280px"},
        )
        self.upload = widgets.FileUpload(
            accept="audio/*,.flac,.m4a,.opus",
            description="a song of yours",
            layout={"width": "300px"},
        )
        self.audio, self._players = {}, {}
        for name in ("mixture", "estimate", "reference", "rest"):
            player = widgets.Audio(format="wav", autoplay=False, loop=False)
            player.layout.width = "300px"
            self.audio[name] = player
            self._players[name] = _row(widgets.Label(name, layout={"width": "65px"}), player)
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.status = widgets.HTML(layout={"width": "380px"})
        left = widgets.VBox([*self.sliders.values(), _row(*self.buttons.values())])
        right = widgets.VBox([self.song, self.start, self.upload, self.status])
        # The picture next to the sliders: together they fit into a small window.
        self.panel = widgets.VBox([_row(left, right), self.picture, _row(*self._players.values())])


def _row(*children: widgets.Widget) -> widgets.HBox:
    """Widgets side by side, or below each other where there is no room."""
    return widgets.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center"})


class Explorer(_Widgets):
    """Sliders, pictures and players of one C-U-Net; the last value of a notebook's cell.

    Parameters
    ----------
    network
        A C-U-Net.
    settings
        Profile whose signal settings it was trained with; its ``separate`` says how patches are
        joined.
    songs
        Name to a function that gives ``(5, samples)``, mixture first, or ``(1, samples)`` where no
        stem is known.
    seconds
        Length of the stretch that is shown; songs that are shorter are shown whole.

    Attributes
    ----------
    sliders, buttons, song, start, upload, audio, picture, status, panel
        Widgets: levels by instrument, usual choices, which song and from which second, a file of
        one's own, players by name (all with the mixture's level), PNG, a sentence, all of them.
    steered : Steered
        What is shown.
    curves : dict
        By instrument, points of its z and the estimate's level there, as far as computed.
    """

    def __init__(
        self,
        network: keras.Model,
        settings: Profile,
        songs: Mapping[str, Callable[[], np.ndarray]],
        *,
        seconds: float = 10.0,
    ):
        super().__init__(list(songs))
        self.rate = settings.signal.sample_rate
        self.seconds = seconds
        self.steering = Steering(network, settings.signal, settings.separate)
        self._picture = Picture(self.steering)
        self._songs = dict(songs)
        self._held = False
        self._z = vector({})
        # Kernels may handle widgets in another thread than cells.
        self._lock = threading.RLock()
        for widget in (*self.sliders.values(), self.song, self.start):
            widget.observe(self._changed, names="value")
        self.upload.observe(self._uploaded, names="value")
        for title, button in self.buttons.items():
            chosen = INSTRUMENTS if title == "all" else {title} & set(INSTRUMENTS)
            button.on_click(lambda _, chosen=chosen: self._move(dict.fromkeys(chosen, 1.0)))
        self._take_song()

    def set(self, **levels: float) -> Explorer:
        """Move sliders, by instrument; the others go to 0. Returns itself, the curves complete.

        Raises
        ------
        ConfigError
            If an instrument is unknown or a level is not within 0 and 1.
        """
        self._move(levels, at_once=True)
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

    def _repr_mimebundle_(self, **options: object) -> dict:
        """The panel, and the present picture for where no widgets can be shown."""
        picture = base64.b64encode(self.picture.value).decode()
        return {**self.panel._repr_mimebundle_(**options), "image/png": picture}

    def _move(self, levels: Mapping[str, float], *, at_once: bool = False) -> None:
        z = vector(levels)
        with self._lock:
            with self._hold():
                for name, level in zip(INSTRUMENTS, z, strict=True):
                    self.sliders[name].value = float(level)
            self._refresh(at_once=at_once)

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Move widgets without an answer to each."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _changed(self, change) -> None:
        """Answer a widget that was moved by hand."""
        with self._lock:
            if self._held:
                return
            try:
                if change["owner"] is self.song:
                    self._take_song()
                elif change["owner"] is self.start:
                    self._take_stretch()
                else:
                    self._refresh()
            except ConfigError as error:  # such as a store that was deleted meanwhile
                self._say(str(error))

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
        self._audio = self._songs[self.song.value]()
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
        self.curves = {}
        self._players["reference"].layout.display = "none" if len(self._stretch) == 1 else None
        self._refresh()

    def _refresh(self, *, at_once: bool = False) -> None:
        """Answer a new z; the curves follow later, or at once where no event loop runs."""
        with self._lock:
            # Moving one slider leaves its own curve as it is.
            same = self.z == self._z
            self.curves = {
                name: self.curves[name]
                for place, name in enumerate(INSTRUMENTS)
                if name in self.curves and np.delete(same, place).all()
            }
            self._z = self.z
            self.steered = self.steering(self._z)
            gain = 1.0 / (float(np.abs(self._stretch[0]).max(initial=0.0)) or 1.0)
            for title, audio in self.heard().items():
                player = self.audio[title.split(":")[0]]
                audio = np.clip(audio * gain, -1, 1)
                player.value = Audio(audio, rate=self.rate, normalize=False).data
            self._describe()
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                at_once = True
            if at_once:
                while self._measure_curve():
                    pass
            self._draw()
            if not at_once:
                loop.call_later(PAUSE, self._follow, loop, self.steered)

    def _measure_curve(self) -> bool:
        """Measure one of the curves that are missing; whether there was one."""
        missing = [name for name in INSTRUMENTS if name not in self.curves]
        for name in missing[:1]:
            self.curves[name] = self.steering.curve(self._z, name)
        return bool(missing)

    def _follow(self, loop: asyncio.AbstractEventLoop, steered: Steered) -> None:
        """Measure one curve, later the next, and draw when there is none left."""
        with self._lock:
            if self.steered is not steered:  # a newer z has been answered
                return
            if self._measure_curve():
                loop.call_later(PAUSE, self._follow, loop, steered)
            else:
                self._draw()

    def _draw(self) -> None:
        self.picture.value = self._picture.update(self.steered, self._reference(), self.curves)

    def _reference(self) -> np.ndarray | None:
        """The stems in the proportions of z, ``(samples,)``; None where they are not known."""
        return self.steered.z @ self._stretch[1:] if len(self._stretch) > 1 else None

    def _describe(self) -> None:
        estimate, reference = self.steered.estimate, self._reference()
        level = level_db(estimate, self.steering.mixture)
        words = "silent" if not level > FLOOR_DB else f"{level:+.1f} dB re mixture"
        text = f"asked for <b>{html.escape(label(self.steered.z))}</b>; estimate: {words}"
        if reference is not None and np.any(reference):
            error = level_db(reference - estimate, reference)
            text += f"; plain SDR {-error:.1f} dB"
        self.status.value = text

    def _say(self, message: str) -> None:
        self.status.value = f"<b>{html.escape(message)}</b>"
