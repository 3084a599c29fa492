"""Makers whose images come from somebody else's service, over HTTPS: Google's Gemini API.

They keep the contract `Maker`, so jobs, keys, limits, deadlines and metadata know nothing of them.
"""
