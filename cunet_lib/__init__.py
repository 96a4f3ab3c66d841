"""The Conditioned U-Net study: one thin library under numbered notebooks.

Importing the package loads nothing heavy. It only asks TensorFlow to start silently. The one
function here, :func:`separate`, loads what it needs when it is called.
"""

from cunet_lib.core.startup import silence as _silence

_silence()


def separate(song, rate=None, **options):
    """Separate music with a trained model: an array into arrays, or a file into files.

    >>> stems = cunet_lib.separate(samples, 44100, instruments=["vocals", "drums+bass"])
    >>> files = cunet_lib.separate("song.mp3", instruments=["vocals"], out="stems")

    Parameters, results and errors are those of :func:`cunet_lib.separation.songs.separate`.
    """
    from cunet_lib.core.startup import plain_keras
    from cunet_lib.separation.songs import separate as run

    with plain_keras():
        return run(song, rate, **options)
