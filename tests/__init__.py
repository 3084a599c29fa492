"""Tests mirror the rooms of `serve_app`. Doubles are real implementations of a contract."""
