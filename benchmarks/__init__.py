"""Room benchmarks."""
