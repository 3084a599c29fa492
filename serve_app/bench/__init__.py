"""Benchmarks that anybody can repeat: each compares in one run, and prints the spread."""
