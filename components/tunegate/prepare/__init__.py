"""Prepare: rows as people have them become rows as the later steps need them, or an error that says why not."""
