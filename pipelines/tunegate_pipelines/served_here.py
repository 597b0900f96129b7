"""Where the model of a local run will be served: on this machine, unless the recipe says otherwise."""

from __future__ import annotations

import dataclasses

from tunegate.contracts.vllm import THIS_MACHINE
from tunegate.preflight.this_machine import this_machine
from tunegate_pipelines.recipe import Recipe

_STEP, _SETTING = "quantize", "serving_target"


def served_here(recipe: Recipe) -> tuple[Recipe, str]:
    """The recipe with this machine in the place of a serving target that it does not name.

    Args:
        recipe: what a local run is given.

    Returns:
        The recipe, and what is to be said of it; empty where the recipe names the target.
    """
    section = recipe.sections.get(_STEP, {})
    if section.get(_SETTING, THIS_MACHINE) != THIS_MACHINE:
        return recipe, ""
    machine = this_machine()
    if not machine.target:
        return recipe, f"{_SETTING}: not known ({machine.seen}); no scheme is held against it"
    sections = {**recipe.sections, _STEP: {**section, _SETTING: machine.target}}
    return dataclasses.replace(recipe, sections=sections), f"{_SETTING}: {machine.target} ({machine.seen})"
