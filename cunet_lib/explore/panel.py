"""The control panel: four sliders for z, and what the network does with it, to see and to hear.

A moved slider is answered with picture and sound first; the curves of level against z, which cost
many calls of the network, follow in the kernel's idle time and give way to the next move. Nothing
needs a browser: in a notebook that papermill runs, :meth:`Explorer.set` moves the sliders.

``make bench BENCH_ARGS="--only panel"`` says how long an answer takes.
"""

from __future__ import annotations

import asyncio
import html
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ipywidgets as widgets
import keras
import numpy as np
from IPython.display import Image

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.explore.conditioning import FLOOR_DB, level_db
from cunet_lib.explore.picture import Picture
from cunet_lib.explore.steering import Steered, Steering, Stopwatch, decode_upload, wav
from cunet_lib.models.conditions import label, vector
from cunet_lib.preprocess.tracks import STEMS
from cunet_lib.report.figures import INSTRUMENT_COLOURS
from cunet_lib.signal.spectral import loudest

CURVE = (0.0, 0.5, 1.0)
"""Where the faders' curves are computed; the present z is one more point."""

FINE = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The same for the slider that is being moved, whose curve stays meanwhile."""

PAUSE = 0.02
"""Seconds that the idle time's work leaves to messages between two calls of the network."""


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


class Curves:
    """Level of the estimate while one instrument's z moves and the others are held.

    Parameters
    ----------
    steering
        Measures levels; its stretch stays the same.
    """

    def __init__(self, steering: Steering):
        self._steering = steering
        # By instrument: the other sliders' z, and levels by its own.
        self._known: dict[str, tuple[bytes, dict[float, float]]] = {}

    def measured(self, z: np.ndarray, first: str = "") -> Iterator[None]:
        """Complete every curve around a z, one call of the network at each step.

        ``first`` is the instrument whose slider is moved: its curve comes first, and finer.
        """
        for name in sorted(INSTRUMENTS, key=lambda name: name != first):
            place = INSTRUMENTS.index(name)
            others = np.delete(z, place).tobytes()
            if name not in self._known or self._known[name][0] != others:
                self._known[name] = (others, {})
            _, levels = self._known[name]
            for point in FINE if name == first else CURVE:
                if point not in levels:
                    condition = z.copy()
                    condition[place] = point
                    (levels[point],) = self._steering.levels(condition[None])
                    yield

    def around(self, steered: Steered) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Positions and levels by instrument, the present point among them.

        Curves that have not been measured for the present z of the others are left out. Moving
        one slider leaves its own curve as it is.
        """
        found = {}
        for place, name in enumerate(INSTRUMENTS):
            others, levels = self._known.get(name, (b"", {}))
            if others != np.delete(steered.z, place).tobytes() or not levels.keys() >= set(CURVE):
                continue
            present = float(steered.z[place])
            apart = {point: level for point, level in levels.items() if abs(point - present) > 1e-6}
            points = sorted({**apart, present: steered.level}.items())
            found[name] = tuple(np.array(points).T)
        return found


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
    sliders, song, start, upload, audio, picture, status, panel
        Widgets: levels by instrument, which song and from which second, a file of one's own,
        players by name (all with the mixture's level), PNG, a sentence, all of them.
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
        self._picture = Picture(self.steering)
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

    def _build(self) -> None:
        self.sliders = {}
        for name in INSTRUMENTS:
            style = {"handle_color": INSTRUMENT_COLOURS[name], "description_width": "55px"}
            slider = widgets.FloatSlider(
                value=float(name == "vocals"),
                max=1.0,
                step=0.01,
                description=name,
                style=style,
                layout={"width": "360px"},
            )
            slider.observe(self._changed, names="value")
            self.sliders[name] = slider
        buttons = []
        for title in (*INSTRUMENTS, "all", "none"):
            chosen = INSTRUMENTS if title == "all" else {title} & set(INSTRUMENTS)
            button = widgets.Button(description=title, layout={"width": "62px"})
            button.on_click(lambda _, chosen=chosen: self.set(**dict.fromkeys(chosen, 1.0)))
            buttons.append(button)
        self.song = widgets.Dropdown(
            options=list(self._songs), description="song", layout={"width": "420px"}
        )
        self.song.observe(self._changed, names="value")
        self.start = widgets.FloatSlider(
            max=1.0,
            step=0.5,
            description="from (s)",
            readout_format=".1f",
            continuous_update=False,
            layout={"width": "320px"},
        )
        self.start.observe(self._changed, names="value")
        self.upload = widgets.FileUpload(
            accept="audio/*,.flac,.m4a,.opus",
            description="a song of yours",
            layout={"width": "180px"},
        )
        self.upload.observe(self._uploaded, names="value")
        self.audio, self._players = {}, {}
        for name in ("mixture", "estimate", "reference", "rest"):
            player = widgets.Audio(value=b"", format="wav", autoplay=False, loop=False)
            player.layout.width = "300px"
            title = widgets.Label(name, layout={"width": "75px"})
            self.audio[name] = player
            self._players[name] = widgets.HBox([title, player], layout={"align_items": "center"})
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.status = widgets.HTML()
        wrap = {"flex_flow": "row wrap", "grid_gap": "8px 40px"}
        left = widgets.VBox([*self.sliders.values(), widgets.HBox(buttons), self.status])
        right = widgets.VBox(list(self._players.values()))
        top = widgets.HBox([self.song, self.start, self.upload], layout={"flex_flow": "row wrap"})
        self.panel = widgets.VBox([top, widgets.HBox([left, right], layout=wrap), self.picture])

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
            if change["owner"] is self.song:
                self._take_song()
            elif change["owner"] is self.start:
                self._take_stretch()
            else:
                self._touched = change["owner"].description
                self._refresh()

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
        self.curves = Curves(self.steering)
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
                deque(self.curves.measured(self.steered.z, self._touched), maxlen=0)
                watch.lap("curves")
            self._draw(watch)
            self.watch = watch
            if not at_once:
                self._idle.give(self._followed(self.steered))

    def _draw(self, watch: Stopwatch | None = None) -> None:
        curves = self.curves.around(self.steered)
        self.picture.value = self._picture.update(self.steered, self._reference(), curves, watch)

    def _followed(self, steered: Steered) -> Iterator[None]:
        """Measure the curves that are missing, step by step, and draw them in the last step."""
        steps = self.curves.measured(steered.z, self._touched)
        while True:
            with self._lock:
                if self.steered is not steered:  # another thread has answered a newer z
                    return
                if next(steps, self) is self:  # itself: the end
                    self._draw()
                    return
            yield

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
