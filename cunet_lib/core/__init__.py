"""What a study stands on: settings, files, processes, hardware, and the names of what is compared.

Enters: a profile (``notebooks/profiles/*.yaml``), environment variables, files of the study.
Leaves: :class:`~cunet_lib.core.settings.Profile` with every path; whole files or none; locks; calls
side by side; errors of one sentence (``ConfigError``).
May import: no other room.
"""
