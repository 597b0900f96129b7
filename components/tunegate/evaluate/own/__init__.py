"""Tasks that a user declares in a few lines of YAML over rows of their own."""
