"""The service's own values: jobs, rate limits, moderation, metrics, events, public information."""
