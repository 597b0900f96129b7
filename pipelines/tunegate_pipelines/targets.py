"""What a pipeline is compiled for, out of what a person gives: a target, a cluster file, a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import InputError
from tunegate_pipelines.cluster import Cluster, read_cluster
from tunegate_pipelines.form import FORM
from tunegate_pipelines.placement import VERTEX, Planned, platform
from tunegate_pipelines.plan import model_config
from tunegate_pipelines.platform_settings import Platform
from tunegate_pipelines.recipe import read_recipe, resolve
from tunegate_pipelines.submission import named_parts, planned, refuse_known_secrets

#: What steps run on where a document for Vertex names no accelerators: room for about 8 B parameters.
_VERTEX_GPU = "A100 80GB"


@dataclass(frozen=True)
class CompiledFor:
    """A platform, and how images are named there.

    Attributes:
        platform: None: any KFP.
        image_prefix: put before each image's name.
        image_digests: the file of their digests; None: tags.
        cluster: the cluster file, where one was given.
        sections: step → its settings, where a recipe was given.
    """

    platform: Platform | None
    image_prefix: str = ""
    image_digests: Path | None = None
    cluster: Cluster | None = None
    sections: Mapping[str, Mapping[str, Any]] | None = None

    def refuse_secrets(self, document: str) -> None:
        """Refuses a compiled document that holds the value of a secret which the cluster file or the recipe names.

        Raises:
            InputError: naming the variable.
        """
        if self.cluster is not None:
            refuse_known_secrets(named_parts(document), self.cluster, self.sections)


def platform_for(
    target: str, cluster: Path | None, recipe: Path | None, overrides: Sequence[str], model: str
) -> CompiledFor:
    """The platform to compile for.

    Args:
        target: ``kfp`` or ``vertex``.
        cluster: a cluster file.
        recipe: a recipe, whose memory plan places the steps.
        overrides: laid over it.
        model: a known model or ``config.json``, where the recipe's base model is not on this machine.

    Raises:
        InputError: for files that cannot be used, or a recipe that nothing is planned for.
    """
    if cluster is None and target != VERTEX:
        if recipe or overrides or model:
            raise InputError(
                "A recipe places steps on accelerators, and there are none to place them on.",
                seen="--recipe, --set or --model, and no --cluster",
                expected="a cluster file that says which accelerators there are",
                remedy="add --cluster FILE, or leave the others out: the document then fits any KFP",
            )
        return CompiledFor(None)
    there = read_cluster(cluster) if cluster else Cluster(accelerators=({"gpu": _VERTEX_GPU},))
    if recipe is None and overrides:
        raise InputError(
            "--set is laid over a recipe.",
            seen="no --recipe",
            expected="a recipe",
            remedy="add --recipe FILE",
        )
    if recipe is None:
        known = Planned(None, model_config(model) if model else None, "no recipe was given")
    else:
        read = read_recipe(recipe, overrides)
        sections = resolve({name: value for name, value in read.form.items() if name in FORM}, read.sections)
        known = planned(read, sections, model)
    digests = Path(there.image_digests) if there.image_digests else None
    made = platform(there, known, target=target)
    return CompiledFor(made, there.image_prefix, digests, there if cluster else None, known.sections)
