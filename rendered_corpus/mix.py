"""Production: a song's layers are played and mixed into its four stems, always alike.

Each layer gets its own equaliser, drive, compression and place; each stem a room. Linear production
(equaliser, panning, room, echoes) is applied in one long spectrum per layer and one inverse
transform per stem and channel, which is what keeps a song near two seconds of work.
"""

from __future__ import annotations

import numpy as np
import scipy.fft

from rendered_corpus.effects import distort, equaliser, follow, late_gain, loudness, room, squeeze
from rendered_corpus.font import play_font, play_kit
from rendered_corpus.machines import play_machine
from rendered_corpus.patches import play_patch
from rendered_corpus.signals import RATE, upsample
from rendered_corpus.song import STEMS, Layer, Song, stream
from rendered_corpus.tables import MACHINES, PATCHES, STYLES, VOICES
from rendered_corpus.voice import sing


def render(song: Song) -> dict[str, np.ndarray]:
    """Play and mix a song.

    Returns
    -------
    dict
        Stem (``drums``, ``bass``, ``other``, ``vocals``) to ``(samples, 2)`` float array; their sum
        is the mixture, whose peak lies between -6 and -0.5 dBFS, or lower where stems cancel.
    """
    samples = int(song.seconds * RATE)
    rng = stream(song.seed, song.subset, song.index, "sound")
    length = scipy.fft.next_fast_len(samples + RATE, real=True)
    coarse = np.linspace(0, RATE / 2, 4097)
    fine = np.linspace(0, RATE / 2, length // 2 + 1)
    hall = room(rng, tail=float(rng.choice([0.3, 0.7, 1.2, 1.8, 2.6])))
    beat = 60 / song.tempo
    stems = {}
    for stem in STEMS:
        layers = [layer for layer in song.layers if layer.stem == stem]
        if not layers:
            stems[stem] = np.zeros((2, samples))
            continue
        own = room(rng, tail=float(rng.uniform(0.15, 0.7)))
        n = max(hall.shape[1], 2 * RATE)
        response = np.zeros((2, n))
        amount = {"drums": 0.28, "bass": 0.08, "other": 0.35, "vocals": 0.35}[stem]
        amount *= float(np.exp(rng.normal(0.0, 0.7)))
        share = float(rng.random())
        response[:, : hall.shape[1]] += amount * share * hall
        response[:, : own.shape[1]] += amount * (1 - share) * own
        if stem in ("other", "vocals") and rng.random() < 0.4:
            delay = beat * float(rng.choice([0.25, 0.5, 0.75, 1.0]))
            if rng.random() < 0.35:
                delay = float(rng.uniform(0.07, 0.14))  # slap
            gain = float(rng.uniform(0.12, 0.35))
            for k in range(1, 5):
                at = int(k * delay * RATE)
                if at < n:
                    response[k % 2, at] += 1.2 * gain**k
                    response[1 - k % 2, at] += 0.6 * gain**k
        wet = [scipy.fft.rfft(r.astype(np.float32), length) for r in response]
        total = np.zeros((2, length // 2 + 1), np.complex64)
        for layer in layers:
            audio = _layer(song, layer, samples, rng)
            level = loudness(audio)
            if level <= 0:
                continue
            gain = 10 ** (layer.level / 20)
            if stem != "drums":
                gain *= 0.1 / level
            spectrum = scipy.fft.rfft((gain * audio).astype(np.float32), length)
            curve = equaliser(_bands(layer, rng), coarse)
            spectrum *= np.interp(fine, coarse, curve).astype(np.complex64)
            send = float(np.exp(rng.normal(0, 0.4)))
            if layer.role == "kick":
                send *= 0.3
            angle = np.pi / 4 * (1 + np.clip(layer.pan, -1, 1))
            for channel, weight in enumerate((np.cos(angle), np.sin(angle))):
                total[channel] += spectrum * (
                    np.float32(weight) + np.float32(0.7 * send) * wet[channel]
                )
        stems[stem] = np.array([scipy.fft.irfft(x, length)[:samples] for x in total], float)
        if rng.random() < 0.5:  # the stem's bus: it also brings up the room
            middle = stems[stem][0] + stems[stem][1]
            threshold, ratio = float(rng.uniform(4, 20)), float(rng.uniform(1.5, 5))
            release = float(rng.uniform(0.06, 0.3))
            stems[stem] *= squeeze(middle, threshold=threshold, ratio=ratio, release=release)
    return {stem: audio.T for stem, audio in _balance(song, stems, rng).items()}


def _play(song: Song, layer: Layer, samples: int, rng: np.random.Generator) -> np.ndarray:
    sound = layer.sound
    if sound.kind == "font":
        tuning = float(np.random.default_rng([song.seed, song.index, 440]).normal(0, 8))
        return play_font(layer.notes, sound.program, samples=samples, cents=tuning)
    if sound.kind == "kit":
        cents = float(rng.normal(0, 150))
        return play_kit(layer.notes, sound.program, samples=samples, cents=cents, rng=rng)
    if sound.kind == "machine":
        machine = MACHINES[song.subset][sound.name]
        return play_machine(layer.notes, machine, samples=samples, rng=rng)
    if sound.kind == "patch":
        families = PATCHES[song.subset].values()
        patch = next(family[sound.name] for family in families if sound.name in family)
        return play_patch(layer.notes, patch, samples=samples, rng=rng)
    return sing(VOICES[song.subset][sound.name], layer.notes, samples=samples, rng=rng)


def _bands(layer: Layer, rng: np.random.Generator) -> list[tuple[str, float, float, float]]:
    """A mixing engineer's moves for one layer."""
    tilt = float(rng.normal(0, 2.5))
    bands = [("low", float(rng.uniform(120, 300)), -tilt, 0.6),
             ("high", float(rng.uniform(2500, 7000)), tilt, 0.6)]  # fmt: skip
    for _ in range(int(rng.integers(1, 4))):
        place = float(np.exp(rng.uniform(np.log(150), np.log(6000))))
        bands.append(("peak", place, float(rng.normal(0, 3.5)), float(rng.uniform(0.7, 2.5))))
    if layer.stem == "vocals":
        bands.append(("highpass", float(rng.uniform(80, 150)), 0.0, 0.7))
        bands.append(("high", float(rng.uniform(1000, 3300)), float(rng.uniform(3, 13)), 0.6))
        bands.append(("peak", 7000.0, float(rng.uniform(-5, 0)), 1.5))  # de-esser
        if rng.random() < 0.06:  # telephone
            bands += [("highpass", 450.0, 0.0, 0.8), ("lowpass", 3200.0, 0.0, 0.8)]
    elif layer.stem == "other":
        bands.append(("highpass", float(rng.uniform(50, 220)), 0.0, 0.7))
        if layer.drive > 0.4:  # a guitar cabinet
            bands += [("lowpass", float(rng.uniform(3500, 5500)), 0.0, 0.9),
                      ("highpass", 85.0, 0.0, 0.7), ("peak", 2600.0, 4.0, 1.2)]  # fmt: skip
        if rng.random() < 0.15:
            bands.append(("lowpass", float(rng.uniform(900, 3500)), 0.0, 0.7))
    elif layer.stem == "bass":
        if rng.random() < 0.6:
            place = float(np.exp(rng.uniform(np.log(500), np.log(6000))))
            bands.append(("lowpass", place, 0.0, 0.7))
        bands.append(("peak", float(rng.uniform(700, 2500)), float(rng.uniform(-2, 8)), 0.8))
        bands.append(("low", 90.0, float(rng.uniform(-2, 5)), 0.7))
    elif layer.role == "kick":
        bands.append(("low", 80.0, float(rng.uniform(-1, 6)), 0.7))
    elif layer.role in ("metal", "hand"):
        bands.append(("highpass", float(rng.uniform(150, 500)), 0.0, 0.7))
    return bands


def _layer(song: Song, layer: Layer, samples: int, rng: np.random.Generator) -> np.ndarray:
    audio = _play(song, layer, samples, rng)
    if layer.drive:
        audio = distort(audio, layer.drive if layer.stem == "other" else 0.6 * layer.drive)
    if layer.stem == "vocals":
        drive = VOICES[song.subset][layer.sound.name].drive if layer.sound.kind == "voice" else 0
        if drive and rng.random() < 0.7:
            audio = distort(audio, 0.5 * drive)
        threshold, ratio = float(rng.uniform(10, 24)), float(rng.uniform(2, 6))
        audio *= squeeze(audio, threshold=threshold, ratio=ratio)
    elif rng.random() < 0.45:
        release = float(rng.uniform(0.05, 0.25))
        threshold, ratio = float(rng.uniform(6, 20)), float(rng.uniform(1.5, 5))
        audio *= squeeze(audio, threshold=threshold, ratio=ratio, release=release)
    if layer.stem == "other" and rng.random() < 0.12:
        t = np.arange(samples) / RATE
        speed = song.tempo / 60 * float(rng.choice([1, 2, 4])) if rng.random() < 0.5 else 5.5
        depth = float(rng.uniform(0.2, 0.6))
        audio *= 1 - depth * (0.5 + 0.5 * np.sin(2 * np.pi * speed * t))
    return audio


def _pump(song: Song, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Gain that ducks under every kick and swells back, as in dance music."""
    depth, back = float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.1, 0.35))
    hop = 64
    gain = np.ones(samples // hop + 2)
    dip = 1 - depth * np.exp(-np.arange(int(3 * back * RATE / hop)) * hop / (back * RATE))
    for layer in song.layers:
        if layer.stem == "drums" and layer.role == "kick":
            for note in layer.notes:
                first = int(note.start * RATE / hop)
                part = gain[first : first + len(dip)]
                np.minimum(part, dip[: len(part)], out=part)
    return upsample(gain, hop, samples)


def _balance(song: Song, stems: dict[str, np.ndarray], rng) -> dict[str, np.ndarray]:
    """Set the levels of stems ``(2, samples)``, limit their sum and scale it to its peak."""
    for stem in ("drums", "bass", "other"):
        level = loudness(stems[stem][0] + stems[stem][1])
        if level > 0:
            stems[stem] *= 10 ** (song.levels[stem] / 20) / level
    if rng.random() < STYLES[song.style].duck:
        dip = _pump(song, stems["drums"].shape[1], rng)
        stems["bass"] *= dip
        stems["other"] *= dip
    rest = stems["drums"] + stems["bass"] + stems["other"]
    level = loudness(stems["vocals"][0] + stems["vocals"][1])
    if level > 0:
        target = loudness(rest[0] + rest[1]) or 1.0
        stems["vocals"] *= 10 ** (song.levels["vocals"] / 20) * target / level
    samples = rest.shape[1]
    rest += stems["vocals"]
    np.abs(rest, out=rest)
    mixture = np.maximum(rest[0], rest[1])
    # A bus limiter: one gain for all stems, so that they still add up to the mixture.
    hop = 64
    depth = float(rng.uniform(0, 9))
    envelope = follow(mixture, hop, 0.001, float(rng.uniform(0.05, 0.2)))
    ceiling = (mixture.max() or 1.0) * 10 ** (-depth / 20)
    gain = np.minimum(1.0, ceiling / np.maximum(envelope, 1e-9))
    gain = np.minimum(gain, np.concatenate([gain[1:], gain[-1:]]))
    curve = late_gain(gain, hop, samples)
    fade = min(int(0.02 * RATE), samples)
    if rng.random() < 0.3:
        fade = min(int(float(rng.uniform(1, 3)) * RATE), samples // 3)
    curve[-fade:] *= np.linspace(1, 0, fade)
    curve[:220] *= np.linspace(0, 1, 220)
    peak = (mixture * curve).max() or 1.0
    scale = 10 ** (-float(rng.uniform(0.6, 5.9)) / 20) / peak
    # Where stems cancel in the sum, one of them may be the louder; it must not clip either.
    loudest = max(float(np.abs(x * curve).max()) for y in stems.values() for x in y)
    curve *= min(scale, 0.97 / max(loudest, 1e-9))
    for audio in stems.values():
        audio *= curve  # in place: fresh memory costs more than the product
    return stems
