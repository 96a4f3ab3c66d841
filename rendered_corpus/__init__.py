"""Room rendered_corpus."""
