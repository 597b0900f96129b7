"""What can be known before anything is spent: lint rules over settings."""
