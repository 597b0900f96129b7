"""Where versions and pointers live: one interface over a local folder and, later, gs://, with compare-and-swap."""
