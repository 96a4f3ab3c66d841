"""The Conditioned U-Net study: one thin library under numbered notebooks.

Each noun of the study has one module. A module may import those in rows above its own, and never
what its last column names; ``tests/test_imports.py`` reads this table and holds it.

| module | owns | never imports |
|---|---|---|
| `quiet` | TensorFlow's start-up noise, and what libraries load in passing, kept away | every other module, `tensorflow` |
| `config` | profiles: frozen, validated settings read from YAML; sizes; every path | every other module, `tensorflow` |
| `parameters` | parameters of notebooks: names, types and choices, checked | `tensorflow`, `papermill` |
| `files` | files written as a whole, locks, hashes of files and code | every other module, `tensorflow` |
| `progress` | progress of long loops: a bar on a terminal, lines elsewhere | every other module, `tensorflow` |
| `parallel` | processes for independent tracks, here or on a cluster's workers | `tensorflow`, `models` |
| `composer` | songs of the rendered corpus as plain data | `tensorflow`, `models` |
| `voice` | the singing voice | `tensorflow`, `models` |
| `synth` | drums, bass and other instruments as sound | `tensorflow`, `models` |
| `corpus` | the rendered corpus: stems and mixtures in MUSDB18-HQ layout | `tensorflow`, `models` |
| `stems` | tracks of a corpus as `musdb` reads them: splits, decoding, resampling | `tensorflow` |
| `layout` | whether a corpus is complete and sound, every problem by file; its download | `tensorflow`, `models` |
| `audio` | audio files of any kind, read and written in blocks | `tensorflow`, `models` |
| `spectral` | STFT and inverse STFT conventions, patch cut and join, magnitude scale | `musdb`, `librosa` |
| `display` | what notebooks show of audio: spectrograms and players | `tensorflow`, `musdb`, `librosa` |
| `store` | the prepared corpus on disk: audio at the study rate, index, scales, settings hash | `tensorflow` |
| `conditions` | instrument order, condition vectors, their names | all but `numpy`, `config` |
| `batches` | seeded `tf.data`: patches, conditions, augmentation | `musdb`, `models` |
| `film` | FiLM layers and the control networks | `corpus`, `stems`, `store`, `batches` |
| `devices` | one training on several devices of this machine | `corpus`, `stems`, `store`, `batches` |
| `winograd` | strided convolutions with fewer multiplications | `corpus`, `stems`, `store`, `batches` |
| `kernels` | Keras' layers by faster kernels, the same but for rounding | `corpus`, `stems`, `store`, `batches` |
| `archive` | what a `.keras` file holds, looked at before Keras builds it | every other module, `tensorflow` |
| `models` | U-Net and C-U-Net builders, the registry of variants | `corpus`, `stems`, `store`, `batches` |
| `cards` | the model card beside every trained model | `tensorflow`, `musdb` |
| `checkpoint` | the state of a training on disk until its notebook is done, whole or not at all | `tensorflow`, `musdb` |
| `training` | fit, callbacks, run record, going on after a stop | `museval`, `report` |
| `separation` | model, mixture and conditions to estimates; never sees a reference | `scoring` |
| `measures` | scores of one track by every protocol | `tensorflow`, `models` |
| `scoring` | every test track's scores in one long table; oracles and baselines | `tensorflow`, `models` |
| `ablation` | what the released code's evaluation does to scores | `tensorflow`, `models` |
| `control` | what conditions do in a trained model: levels, silence, pairs, embeddings | `museval`, `report` |
| `analysis` | paired statistics on score tables | `tensorflow`, `librosa` |
| `inference` | intervals, tests, equivalence and power of paired scores | `tensorflow`, `librosa` |
| `published` | published scores, and which of them may stand beside ours | `tensorflow`, `musdb` |
| `results` | reading runs and scores; the words and numbers of captions | `tensorflow`, `musdb` |
| `catalog` | trained models on disk: where they are, what they were trained on, their scores | `tensorflow`, `musdb` |
| `tables` | tables with captions, `save_table` | `tensorflow`, `musdb` |
| `protocols` | tables of the protocols beside BSS Eval v4: whole tracks, silence, ablation | `tensorflow`, `musdb` |
| `figures` | figures with captions, `save_figure` | `tensorflow`, `musdb` |
| `control_figures` | tables and figures of what conditions do | `tensorflow`, `musdb` |
| `explore` | the control panel: sliders for *z*, spectrograms, players, FiLM values | `museval`, `report` |
| `latency` | how long the control panel takes to answer | `museval`, `report` |
| `drawing` | drawings of the networks from their architecture records | `tensorflow`, `musdb` |
| `report` | the manifest, the comparison with committed results | `tensorflow`, `musdb` |
| `story` | what the report says: its answer, sentences and tables | `tensorflow`, `musdb` |
| `webpage` | the report as web pages that work offline | `tensorflow`, `musdb` |
| `runner` | one notebook run: parameters checked, lines streamed, failures told | `tensorflow`, `models` |
| `cluster` | whole runs on the workers of a Dask scheduler: checked, sent, followed | `tensorflow`, `papermill` |
| `sweep` | grids of training runs: names checked, resumed, gathered | `tensorflow`, `papermill` |
| `accelerator` | throughput of a training step on a device that JAX drives | `musdb`, `museval` |
| `planning` | hours, disk and memory of a run, estimated before it starts | `musdb`, `papermill` |
| `songs` | songs of any rate, channels and length, separated in a stream | `scoring`, `store` |
| `timing` | times of calls side by side, memory of a process | every other module, `tensorflow` |
| `workloads` | what the bench measures, each in a process of its own | `musdb`, `report` |
| `bench` | every figure of speed and memory beside its reference, and their table | `tensorflow`, `musdb` |
| `doctor` | whether this machine can do what the study needs, and remedies | `tensorflow`, `papermill` |
| `cli` | the `cunet` command, thin | `tensorflow`, `papermill` |

Importing the package loads nothing heavy. It only asks TensorFlow to start silently. The one
function here, :func:`separate`, loads what it needs when it is called.
"""  # noqa: E501

from cunet_lib.quiet import share_cores as _share_cores
from cunet_lib.quiet import silence as _silence

_silence()
_share_cores()


def separate(song, rate=None, **options):
    """Separate music with a trained model: an array into arrays, or a file into files.

    >>> stems = cunet_lib.separate(samples, 44100, instruments=["vocals", "drums+bass"])
    >>> files = cunet_lib.separate("song.mp3", instruments=["vocals"], out="stems")

    Parameters, what is returned, and errors are those of :func:`cunet_lib.songs.separate`.
    """
    from cunet_lib.songs import separate as run

    return run(song, rate, **options)
