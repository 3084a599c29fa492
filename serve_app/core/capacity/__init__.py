"""Many replicas: predicted cost, backlog, which replica an image goes to, how many there are."""
