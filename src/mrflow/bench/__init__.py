"""Measuring: fair timing, `mrflow bench`, random full-size models, and pictures laid out for other benchmarks."""
