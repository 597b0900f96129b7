"""Texts with ``{{column}}`` in them, filled from a row. Jinja in a sandbox: a task file runs no code."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def template_problem(text: str) -> str:
    """Why a text is no template; empty when it is one."""
    try:
        _ENVIRONMENT.parse(text)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    return ""


def filled(text: str, row: Mapping[str, Any]) -> str:
    """The text with a row's values in it.

    Raises:
        ValueError: for a column that the row lacks, or an expression that fails or is not allowed.
    """
    try:
        return _compiled(text).render(row)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"{text!r}: {error}") from error


@functools.cache
def _compiled(text: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(text)
