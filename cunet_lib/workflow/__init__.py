"""Running the study: one notebook, one stage, a sweep, a plan of hours, a cluster.

Enters: a notebook's name and parameters, a profile.
Leaves: executed notebooks with a fingerprint of what they were made from, logs, exit statuses.
May import: every room; no room imports it. Notebooks call ``parameters.check_injected``.
"""
