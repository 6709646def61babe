"""Verdicts from numbers and clocks: no HTTP, no telemetry, no I/O."""
