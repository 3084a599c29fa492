"""The decisions: what an image is, what steps next and computes what, where it runs, and for whom.

Pure Python without torch, Ray, HTTP, asyncio, clock or random: times and ids are arguments.
"""
