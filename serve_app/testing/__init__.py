"""Fakes that keep the service's contracts, shared by tests and benchmarks."""
