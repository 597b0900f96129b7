"""Merges an adapter into a 16-bit base, streamed and accumulated in float32."""
