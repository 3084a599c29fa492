"""The service's own HTTP routes and their wire schema."""
