"""Read what checkpoints and extension files hold, without torch and without loading them."""
