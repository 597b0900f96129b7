"""Loading a model, rendering its chat: what several steps share, and never two ways."""
