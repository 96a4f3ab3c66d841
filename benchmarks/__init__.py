"""Speed and memory beside their references, and what kills and damages (docs/benchmarks.md)."""
