"""Training: batches, the run of one model, and what survives a kill; the small network for highs.

Enter: a profile and a prepared store. Leaves: a run folder with the model, its history and its
record. Imports core, signal, preprocess and models.
"""
