"""A supervised vLLM process and its client: started, ready, asked, stopped."""
