"""Measurements that anybody can repeat: ratios of medians in one run, with their spread.

Knows no Ray: what is measured here is the runtime.
"""
