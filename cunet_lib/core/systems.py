"""What the study compares: instruments, networks, and the systems that are scored.

A C-U-Net variant is one entry of :data:`VARIANTS`. Names, labels and orders everywhere else, in
notebooks, tables, figures and the control panel, follow from it. Which of them a study trains, and
with how many seeds, its profile says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle

INSTRUMENTS = ("bass", "drums", "other", "vocals")
"""Order of the condition vector; the paper's ``rest`` is MUSDB18's ``other``."""

UNETS = tuple(f"unet_{instrument}" for instrument in INSTRUMENTS)
"""The four dedicated U-Nets."""


@dataclass(frozen=True)
class Variant:
    """One Conditioned U-Net of the study.

    Attributes
    ----------
    control
        Control network, a key of ``cunet_lib.models.film.CONTROLS``.
    film
        ``"simple"``: one gamma and beta per block; ``"complex"``: one per feature map.
    label
        How tables and figures name it.
    placement
        Where FiLM acts, a key of ``cunet_lib.models.film.PLACEMENTS``.
    progressive
        Whether training scales some conditions and targets (``train.progressive``). Without it
        ("np") every condition asks for whole instruments, and a profile trains the variant only if
        it lists it.
    beyond
        Steps from the paper's network to a better one: the first of :data:`STEPS`, or all.
    paper
        The paper's name for it, if it is one of the paper's.
    colour, marker
        How figures draw it; by its place among the variants if not given.
    """

    control: str
    film: str
    label: str
    placement: str = "encoder"
    progressive: bool = True
    beyond: tuple[str, ...] = ()
    paper: str = ""
    colour: str = ""
    marker: str = ""

    @property
    def shares(self) -> bool:
        """Whether the masks of all instruments add up to one, and *z* weights them."""
        return bool(self.beyond)


STEPS = {
    "shares": "Shares alone",
    "compressed": "Shares, compressed input",
    "frequencies": "Shares, layers over frequency",
    "wide": "C-U-Net shares",
}
"""Steps from the paper's network to a better one, in their order, and how tables name a network
that has taken them up to here.

* ``shares``: a softmax over instruments, whose masks add up to one everywhere; *z* weights them.
  One encoder pass serves all instruments, so FiLM acts in the decoder, by a small control network.
  Training compares complex spectra.
* ``compressed``: the encoder reads magnitudes to the power of 0.3.
* ``frequencies``: dense layers over frequency in every block but the decoder's last.
* ``wide``: an encoder of twice the width, with residual convolutions.
"""

# Told apart by colour-blind people too, as tests/test_report.py measures.
_COLOURS = ("#56B4E9", "#0067A8", "#F0A830", "#B8400E", "#AA55FF", "#6600DD", "#AAEE88", "#771166")

VARIANTS = {
    "dense_simple": Variant("dense", "simple", "C-U-Net dense, simple", paper="C-U-Net-SiF"),
    "dense_complex": Variant("dense", "complex", "C-U-Net dense, complex", paper="C-U-Net-CoF"),
    "cnn_simple": Variant("cnn", "simple", "C-U-Net CNN, simple", paper="C-U-Net-SiC"),
    "cnn_complex": Variant("cnn", "complex", "C-U-Net CNN, complex", paper="C-U-Net-CoC"),
}
VARIANTS |= {
    f"{name}_np": replace(each, label=f"{each.label}, np", progressive=False, paper="")
    for name, each in VARIANTS.items()
}
# The steps take colours of variants that no profile has beside them.
_STEP_LOOKS = zip((*_COLOURS[2:4], _COLOURS[6], "#770000"), "o^v*", strict=True)
for _count, (_label, _look) in enumerate(zip(STEPS.values(), _STEP_LOOKS, strict=True), start=1):
    _taken, _kind = (*STEPS,)[:_count], {"placement": "decoder", "progressive": False}
    _variant = Variant("small", "complex", _label, **_kind, beyond=_taken)
    _name = f"shares_{_count}" if _count < len(STEPS) else "shares"
    VARIANTS[_name] = replace(_variant, colour=_look[0], marker=_look[1])

_LOOKS = cycle(zip(_COLOURS, "oD^vPX<>", strict=True))
VARIANTS = {
    name: replace(variant, colour=variant.colour or colour, marker=variant.marker or marker)
    for (name, variant), (colour, marker) in zip(VARIANTS.items(), _LOOKS, strict=False)
}
"""The C-U-Nets by name, in the order of tables and figures."""

MODELS = (*UNETS, *VARIANTS)
"""Every network that is trained."""

ORACLES = ("mixture", "ideal_ratio_mask")
"""Systems that bound the others: the mixture from below, the ideal mask from above."""

TRAINED = ("unet", *VARIANTS)
"""Scored systems that were trained; ``unet`` is the four dedicated U-Nets together."""

SYSTEMS = ("mixture", *TRAINED, "ideal_ratio_mask")
"""Every scored system, from the lower to the upper bound."""

LABELS = {
    "mixture": "Mixture",
    "unet": "Dedicated U-Nets",
    **{name: variant.label for name, variant in VARIANTS.items()},
    "ideal_ratio_mask": "Ideal ratio mask",
    **{f"unet_{instrument}": f"U-Net {instrument}" for instrument in INSTRUMENTS},
}
"""How tables and figures name each system and model."""

PAPER_NAMES = {"unet": "Fix-U-Net (x4)"} | {name: each.paper for name, each in VARIANTS.items()}
"""The paper's name of each; empty where it has none."""
