"""parity: how far merging and quantizing moved the model from the adapter that was trained, token by token."""
