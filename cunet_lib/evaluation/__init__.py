"""Scores of estimates against references, and what can be concluded from them.

Owns what a score is (:mod:`metrics`), the scoring of test tracks (:mod:`evaluate`), score tables
and paired differences (:mod:`scores`), tests and verdicts (:mod:`statistics`), what the released
code's evaluation does to scores (:mod:`ablation`), and published scores (:mod:`published`).
Enter: a store's test tracks, and a callable from a mixture to estimates. Leave: the long score
table, one row per system, seed, track, target and measure, and tables of statistics.
May import core, signal and preprocess; never models or separation.
"""
