"""Profiles: every setting of the study, validated and frozen, and every path derived from them.

A profile is a YAML file in ``notebooks/profiles``. ``load_profile("demo")`` reads it, applies
overrides such as ``"train.learning_rate=3e-4 model.filters=16"``, checks each value, and returns a
frozen :class:`Profile`. Nothing is read at import and there is no global configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cunet_lib.core.systems import INSTRUMENTS, MODELS, ORACLES, TRAINED, UNETS, VARIANTS

ROOT = Path(__file__).resolve().parents[2]

CONDITION_KINDS = ("one_hot", "zero", "all", "pairs", "continuous")
"""What training may ask for (:mod:`cunet_lib.models.conditions`); the paper's: one_hot."""

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def printable(text: object) -> str:
    r"""Text for one line of a terminal: control characters and stray bytes are escaped.

    File names may hold line breaks and commands to the terminal; neither shall reach it.

    >>> printable("a\nb")
    'a\\nb'
    """
    return "".join(
        sign if sign.isprintable() or sign == "\N{ZERO WIDTH JOINER}" else ascii(sign)[1:-1]
        for sign in str(text)
    )


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple = 2, 4, 4
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def quoted(value: object) -> str:
    """A value as messages quote it: its beginning, if it is long or deeply nested."""
    return _SHORT.repr(value)


class ConfigError(ValueError):
    """A setting, profile, parameter or file is wrong; the message names it and the remedy.

    Its first argument is a sentence, one line, whatever is in the names it quotes; others are the
    lines below it, where there is more than one thing to mend.
    """

    def __str__(self) -> str:
        return "\n  ".join(map(printable, self.args))

    def _render_traceback_(self) -> list[str]:
        """What notebooks show of it: the sentence without the calls that led there."""
        return [f"ConfigError: {self}"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(_Section):
    """Where the tracks come from."""

    source: Literal["rendered", "musdb18", "musdb7s", "folder"] = Field(
        description="where the tracks are from; folder: one's own, where MUSDB says"
    )
    seed: int = Field(0, ge=0)
    train_tracks: int = Field(48, ge=2, description="rendered songs in the train subset")
    test_tracks: int = Field(12, ge=1, description="rendered songs in the test subset")
    seconds: float = Field(30.0, ge=4.0, le=600.0, description="about this long, rendered songs")
    validation: int | tuple[str, ...] = Field(description="train tracks held out: number or names")
    test: tuple[str, ...] | None = Field(None, description="a folder's test tracks, by name")
    stems: dict[Literal[("mixture", *INSTRUMENTS)], tuple[str, ...]] | None = Field(
        None, description="of a folder: the files that a stem is the sum of, without suffix"
    )

    @model_validator(mode="after")
    def _held_out(self) -> Data:
        if isinstance(self.validation, int):
            if self.validation < 1:
                raise ValueError("validation must hold out at least 1 track")
            if self.source == "rendered" and self.validation >= self.train_tracks:
                raise ValueError(
                    f"validation = {self.validation} leaves no training track "
                    f"of train_tracks = {self.train_tracks}"
                )
        elif not self.validation:
            raise ValueError("validation must name at least 1 track")
        elif len(set(self.validation)) < len(self.validation):
            raise ValueError("validation names a track twice")
        if self.source != "folder" and (self.test or self.stems):
            raise ValueError("test and stems belong to source: folder")
        return self


class Signal(_Section):
    """Sample rate and short-time Fourier transform (paper: 8192 Hz, 1024, 256)."""

    sample_rate: int = Field(8192, ge=2000, le=192000, description="Hz, mono")
    n_fft: int = Field(1024, ge=64, le=16384, description="window and FFT length in samples")
    hop: int = Field(256, ge=1, description="samples between frames")

    @model_validator(mode="after")
    def _shapes(self) -> Signal:
        if self.n_fft & (self.n_fft - 1):
            raise ValueError(f"n_fft = {self.n_fft} must be a power of two")
        # Beyond three quarters (768 of 1024 in Jansson et al. 2017) the inverse STFT would divide
        # by window values near zero.
        if self.hop * 4 > self.n_fft * 3:
            raise ValueError(f"hop = {self.hop} must be at most 3/4 of n_fft = {self.n_fft}")
        return self

    @property
    def bins(self) -> int:
        """Frequency bins that the models see: the Nyquist bin is dropped."""
        return self.n_fft // 2


class Model(_Section):
    """Size of every network (paper: 16 filters, 6 blocks, 128 frames)."""

    filters: int = Field(16, ge=1, le=256, description="feature maps of the first encoder block")
    blocks: int = Field(6, ge=2, le=8)
    patch_frames: int = Field(128, ge=4)
    dropout: float = Field(0.5, ge=0, lt=1, description="in decoder blocks 2 to blocks - 2")
    control_dropout: float = Field(0.5, ge=0, lt=1, description="in the control network")
    start: Literal["paper", "he"] = Field(
        "paper", description="initial weights: normal with std 0.02 (paper), or He et al. 2015"
    )


class Train(_Section):
    """Optimisation, batches, conditions (paper: section 4 and the released code)."""

    batch_size: int = Field(64, ge=1)
    steps_per_epoch: int = Field(2048, ge=1)
    unet_epochs: int = Field(1000, ge=1, description="at most, for each dedicated U-Net")
    cunet_epochs: int = Field(1000, ge=1, description="at most, for each C-U-Net")
    learning_rate: float = Field(1e-3, gt=0, le=1)
    beta_1: float = Field(0.5, ge=0, lt=1)
    epsilon: float = Field(1e-7, gt=0, lt=1, description="Adam's; Keras' default, as in the paper")
    patience: int = Field(30, ge=1, description="epochs without improvement before stopping")
    schedule: Literal["plateau", "cosine"] = Field(
        "plateau", description="halve on a plateau (paper), or a cosine down to the minimum"
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the rate rises; cosine only")
    lr_patience: int = Field(15, ge=1, description="epochs without improvement before halving")
    lr_factor: float = Field(0.5, gt=0, lt=1)
    min_learning_rate: float = Field(1e-5, gt=0)
    min_delta: float = Field(1e-5, ge=0)
    conditions: tuple[Literal[CONDITION_KINDS], ...] = Field(
        ("one_hot",),
        min_length=1,
        description="kinds of condition a patch draws from, evenly; listed twice, twice as often",
    )
    conditions_per_mixture: int = Field(1, ge=1, description="in a C-U-Net's batch; paper: 1")
    progressive: Probability = Field(0.25, description="one_hot and its target scaled by U(0, 1)")
    remix: Probability = Field(0.25, description="other stems drawn from other tracks")
    speed: float | None = Field(None, gt=0, lt=0.5, description="a patch's: 1, plus or minus this")
    gain_db: float | None = Field(None, gt=0, le=20, description="a stem's: plus or minus this")
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    jit: Literal["auto", "on", "off"] = "auto"
    validation_patches: int = Field(256, ge=1, description="at most, per instrument")

    @model_validator(mode="after")
    def _groups(self) -> Train:
        if self.batch_size % self.conditions_per_mixture:
            raise ValueError(
                f"batch_size = {self.batch_size} must be a multiple of "
                f"conditions_per_mixture = {self.conditions_per_mixture}"
            )
        return self


class Separate(_Section):
    """How patches are joined to a song."""

    overlap: float = Field(0.5, ge=0.0, lt=1.0, description="share of a patch; 0 joins end to end")
    batch_size: int = Field(8, ge=1)
    pitches: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] | None = Field(
        None, description="masks are means of those at these pitches, too; 1 is the song's own"
    )

    @property
    def overlapping(self) -> float:
        """The overlap; the default, to compare with, where patches are joined end to end."""
        return self.overlap or type(self).model_fields["overlap"].default


class Evaluate(_Section):
    """BSS Eval v4 framing (museval's defaults: 1 s windows and hops)."""

    window_seconds: float = Field(1.0, ge=0.01)
    hop_seconds: float = Field(1.0, ge=0.01)


class Statistics(_Section):
    """Tests of the comparisons; stated before any score is known."""

    margin_db: float = Field(0.5, gt=0, description="mean differences below it are equivalent")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="level of the tests and intervals")
    power: float = Field(0.8, gt=0.5, lt=1, description="wanted of the test for equivalence")


class Profile(_Section):
    """All settings of one run of the study. Build it with :func:`load_profile`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")
    title: str = Field(min_length=1, description="how captions name the data")
    like: str | None = Field(None, description="another profile, whose data and settings it takes")
    data: Data
    signal: Signal = Signal()
    model: Model = Model()
    train: Train = Train()
    separate: Separate = Separate()
    evaluate: Evaluate = Evaluate()
    statistics: Statistics = Statistics()
    shipped: Literal[tuple(VARIANTS)] = Field(
        "cnn_complex", description="the C-U-Net exported in half precision"
    )
    seeds: dict[Literal[TRAINED], Annotated[int, Field(ge=1)]] = Field(
        1,
        validate_default=True,
        description="the systems that are trained, and with how many seeds (0, 1, ...) each; a "
        "number: as many for the dedicated U-Nets, every progressive C-U-Net and the shipped one",
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _every_system(cls, given: Any, info) -> Any:
        usual = {"unet", info.data.get("shipped")}
        usual |= {name for name, variant in VARIANTS.items() if variant.progressive}
        chosen = [name for name in TRAINED if name in usual]
        return dict.fromkeys(chosen, given) if isinstance(given, int) else given

    @model_validator(mode="after")
    def _compared(self) -> Profile:
        for needed in (self.shipped, *(() if self.like else ("unet",))):
            if needed not in self.seeds:
                raise ValueError(f"seeds must have {needed}: the reference, and what is shipped")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Profile:
        step = 2**self.model.blocks
        for label, size in (
            ("signal.n_fft / 2", self.signal.bins),
            ("model.patch_frames", self.model.patch_frames),
        ):
            if size % step:
                raise ValueError(
                    f"{label} = {size} must be a multiple of 2^model.blocks = {step}; "
                    "change it or model.blocks"
                )
        if self.train.min_learning_rate > self.train.learning_rate:
            raise ValueError("train.min_learning_rate must not exceed train.learning_rate")
        train = self.train
        steps = min(train.unet_epochs, train.cunet_epochs) * train.steps_per_epoch
        if train.warmup_steps and (train.schedule != "cosine" or train.warmup_steps >= steps):
            raise ValueError(
                f"train.warmup_steps = {train.warmup_steps} needs train.schedule = cosine and "
                f"fewer steps than a training has ({steps})"
            )
        return self

    @property
    def trained(self) -> list[tuple[str, int]]:
        """Each system that is trained and scored with each of its seeds, in the study's order."""
        return [(name, seed) for name in TRAINED for seed in range(self.seeds.get(name, 0))]

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Each training of the study: model and seed. The system ``"unet"`` is four models."""
        seeds = {model: self.seeds.get("unet" if model in UNETS else model, 0) for model in MODELS}
        return [(model, seed) for model in MODELS for seed in range(seeds[model])]

    @property
    def scored(self) -> list[tuple[str, int]]:
        """Each system that is scored with its seed: the trained ones, and the oracles once."""
        return [*self.trained, *((name, 0) for name in ORACLES)]

    @property
    def lender(self) -> Profile | None:
        """The profile that this one is like, if it compares with that one's dedicated U-Nets."""
        return load_profile(self.like) if self.like and "unet" not in self.seeds else None

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """Model input ``(bins, frames, 1)``."""
        return (self.signal.bins, self.model.patch_frames, 1)

    @property
    def patch_samples(self) -> int:
        """Samples that the frames of one patch cover: ``(frames - 1) * hop + n_fft``."""
        return (self.model.patch_frames - 1) * self.signal.hop + self.signal.n_fft

    def section_hash(self, *sections: str) -> str:
        """First 16 hex digits of the SHA-256 of the named sections."""
        # Settings that were not given do not count: new ones leave the hashes of old runs alone.
        dump = self.model_dump(mode="json", exclude_none=True)
        chosen = {key: dump[key] for key in sections}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def paths(self) -> Paths:
        """Folders of this profile."""
        return Paths(self)


class Paths:
    """Every folder of a profile, below the project's ``data`` and ``results``.

    The environment variables ``CUNET_DATA`` and ``CUNET_RESULTS`` move these roots.
    """

    def __init__(self, profile: Profile):
        data, results = (
            folder(os.environ.get(f"CUNET_{name.upper()}") or str(ROOT / name))
            for name in ("data", "results")
        )
        self.data = data / (profile.like or profile.name)
        self.results = results / profile.name
        self.corpus = self.data / "corpus"
        self.store = self.data / "store"
        self.runs = self.results / "runs"
        self.scores = self.results / "scores"
        self.tracks = self.scores / "tracks"
        self.tables = self.results / "tables"
        self.figures = self.results / "figures"
        self.notebooks = self.results / "notebooks"
        self.models = self.results / "models"
        self.examples = self.results / "examples"
        self.logs = self.results / "logs"
        self.manifest = self.results / "manifest.json"

    def run(self, model: str, seed: int) -> Path:
        """Folder of one training run, such as ``runs/dense_simple-seed0``."""
        return self.runs / f"{model}-seed{seed}"


def folder(name: str) -> Path:
    """A folder that the user named, ``~`` for the home folder, as an absolute path."""
    return Path(os.path.expanduser(name)).resolve()  # noqa: PTH111 - an unknown ~user stays as it is


def profile_names() -> list[str]:
    """Names of the profiles in ``notebooks/profiles``."""
    return sorted(path.stem for path in (ROOT / "notebooks" / "profiles").glob("*.yaml"))


def load_profile(name: str, overrides: str | Sequence[str] = "") -> Profile:
    """Read, override and validate a profile.

    Parameters
    ----------
    name
        A profile of ``notebooks/profiles`` (``"demo"``) or a path to a YAML file.
    overrides
        Assignments ``section.key=value`` in YAML, a sequence or one string with spaces between.

    Raises
    ------
    ConfigError
        If the profile does not exist or any key or value is invalid; one sentence names it.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        if name not in profile_names():
            raise ConfigError(f"No profile {name!r}; there are: {', '.join(profile_names())}.")
        path = ROOT / "notebooks" / "profiles" / f"{name}.yaml"
    settings = _read_profile(path)
    settings.setdefault("name", path.stem)
    replacing = {"seeds"} & set(settings)  # a list of systems, not settings one by one
    for assignment in overrides.split() if isinstance(overrides, str) else overrides:
        _assign(settings, assignment)
    if (like := settings.get("like")) in profile_names():
        if changed := {"data", "signal"} & set(settings):
            raise ConfigError(
                f"Profile {path.name} shares the data of {like}: it cannot have {min(changed)}."
            )
        other = _read_profile(ROOT / "notebooks" / "profiles" / f"{like}.yaml")
        for key, own in settings.items():
            both = isinstance(own, dict) and isinstance(other.get(key), dict)
            other[key] = other[key] | own if both and key not in replacing else own
        settings = other
    elif like is not None:
        raise ConfigError(
            f"Profile {path.name}: like: {quoted(like)} is no profile; there are: "
            f"{', '.join(profile_names())}."
        )
    try:
        return Profile.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_sentence(path.name, error)) from error


class _Loader(yaml.SafeLoader):
    """Plain YAML in which every key stands once: the last of two would win in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1 and key != "<<"]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Content of YAML text, plain values only.

    Raises
    ------
    yaml.YAMLError
        Whatever is wrong with it, which PyYAML itself tells in many ways.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # Such as the date 2020-13-45, `!!bool x`, or a thousand brackets.
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
    finally:
        loader.dispose()


def _read_profile(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # a pipe would wait for ever
            reason = "cannot be read: it is no file; check its name."
        elif path.stat().st_size > 1 << 20:  # a profile is a page of settings
            reason = "is too large to be a profile; name a YAML file."
        elif isinstance(settings := parse_yaml(path.read_text(encoding="utf-8")), dict):
            return settings
        else:
            reason = "must be a mapping of settings."
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; mend that or name another."
    except yaml.YAMLError as error:
        reason = f"is not valid YAML: {' '.join(str(error).split())[:300]}."
    except ValueError:  # other bytes than UTF-8, or a null byte in the path
        reason = "is no text in UTF-8; name a YAML file."
    raise ConfigError(f"Profile {path} {reason}")


def _assign(settings: dict[str, Any], assignment: str) -> None:
    key, separator, value = assignment.partition("=")
    if not separator or not key:
        raise ConfigError(f"Override {assignment!r} must look like section.key=value.")
    *sections, last = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"Override {assignment!r}: {section!r} is not a section.")
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"Override {assignment!r} has a value that is not YAML.") from error
    # YAML 1.1 reads 1e-3 as a string; people write it that way.
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    settings[last] = parsed


def _sentence(source: str, error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "settings"
    if first["type"] == "extra_forbidden":
        section = Profile
        for part in first["loc"][:-1]:
            section = section.model_fields[str(part)].annotation
        valid = ", ".join(section.model_fields)
        return f"Profile {source}: unknown setting {place!r}; valid here: {valid}."
    return f"Profile {source}: {place[:100]}: {problem(error)}."


def problem(error: ValidationError) -> str:
    """What pydantic says first, and the value it says it of, without a full stop."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    given = first.get("input")
    return message if isinstance(given, dict | BaseModel) else f"{message} (given: {quoted(given)})"
