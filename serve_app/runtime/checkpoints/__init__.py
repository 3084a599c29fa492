"""Read what checkpoints and LoRA files hold, without torch and without loading them."""
