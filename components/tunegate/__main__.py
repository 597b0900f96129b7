"""``python -m tunegate``."""

from tunegate.cli import app

app(prog_name="tunegate")
