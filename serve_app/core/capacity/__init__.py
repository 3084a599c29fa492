"""Many replicas: predicted cost, backlog, where an image goes, how many replicas there are."""
