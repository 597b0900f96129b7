"""Versions that never change, aliases that point at one of them, and the chain of records that is their history."""
