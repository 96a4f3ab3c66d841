"""Networks: condition vectors, FiLM and control networks, U-Nets, fast layers, weights on disk.

Enter: sizes of a profile, magnitude patches and condition vectors. Leave: Keras models and
``.keras`` files. Imports core alone, never preprocess: models know no data. A variant is one of
``core.systems.VARIANTS``, built from what :mod:`film` has under its names.
"""
