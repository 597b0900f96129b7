"""fleet: many adapters on one base, each asked by its alias and served under the digest of its bytes."""
