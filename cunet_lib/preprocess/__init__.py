"""Room preprocess."""
