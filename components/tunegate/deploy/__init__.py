"""deploy: what an alias points at answers at one stable address."""
