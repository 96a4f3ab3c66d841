"""Music for the study where MUSDB18 is not at hand: songs composed, played and sung from a seed.

:func:`render_corpus` writes a folder in MUSDB18-HQ layout. That folder is all that the study and
this package share: neither imports the other. Inside, ``composer`` writes songs as plain data
(``form``, ``drums``, ``bass``, ``other``, ``vocals``), ``mix`` turns them into stems (``font``,
``machines``, ``patches``, ``voice``); the tables of both are the YAML files beside them.
Random draws follow the seed in a fixed order: another order makes other songs.
"""

from rendered_corpus.render import CorpusError, render_corpus

__all__ = ["CorpusError", "render_corpus"]
