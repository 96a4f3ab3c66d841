"""Training: batches, the run of one model, and what survives a kill.

Enter: a profile and a prepared store. Leaves: a run folder with the model, its history and its
record. ``highs`` makes the weights of the highs' network from full-rate songs. Imports core,
signal, preprocess and models.
"""
