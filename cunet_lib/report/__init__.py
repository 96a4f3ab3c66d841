"""What is shown of the study: tables, figures, the page, model cards, and the comparison.

Owns the looks of systems and instruments in tables and figures, captions, the manifest, and the
report's page. In come run records, score tables and kept audio; out go CSV, Markdown,
LaTeX, PNG and SVG files, ``manifest.json``, ``model_card.md`` and ``report/index.html``. What
scores and tests are stands in ``docs/methods.md``. May import core, signal, models (for
parameters), separation (for model cards) and evaluation.
"""
