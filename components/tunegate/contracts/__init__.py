"""What every step agrees on: manifests, digests, verdicts, settings and errors. Standard library only."""
