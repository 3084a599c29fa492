"""The decisions: what an image is, what steps next, what a step computes.

Pure Python without torch, Ray, HTTP, asyncio, clock or random: times and ids are arguments.
"""
