"""Room explore."""
