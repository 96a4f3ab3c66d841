"""Room separation."""
