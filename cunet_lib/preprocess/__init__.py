"""A corpus on disk becomes the store.

Enters: a folder in the layout of MUSDB18, MUSDB18-HQ or one's own. Leaves: the store, every stem
mono at the study rate, memory-mapped, with an index. May import: :mod:`cunet_lib.core`,
:mod:`cunet_lib.signal`; never TensorFlow.
"""
