"""The OpenAI Images API: its routes and its wire schema."""
