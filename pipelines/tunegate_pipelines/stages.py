"""The steps from prepare to promote: what every pipeline that makes a version has in common."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from tunegate.approve.component import await_approval, not_approved, request_approval
from tunegate.evaluate.component import evaluate_base, evaluate_champion, evaluate_model
from tunegate.gate.component import gate
from tunegate.merge.component import merge
from tunegate.parity.component import parity
from tunegate.prepare.component import prepare
from tunegate.promote.component import promote, promote_approved
from tunegate.quantize.component import quantize
from tunegate.serve_check.component import serve_check
from tunegate.train.component import train
from tunegate_pipelines.quantizers import in_image
from tunegate_pipelines.resources import request
from tunegate_pipelines.tasks import refused

#: The models that are evaluated after training, in the order in which their tasks are declared.
TUNED = ("merged", "quantized")

#: Task of the compiled pipeline → what a person calls it; kfp numbers the second use of a component.
LABELS: Mapping[str, str] = {
    "evaluate-base": "evaluate base",
    "evaluate-champion": "evaluate champion",
    **{f"evaluate-model{'' if n == 1 else f'-{n}'}": f"evaluate {role}" for n, role in enumerate(TUNED, 1)},
}


def tune_and_judge(
    of: Mapping[str, Any],
    *,
    base_model: Any,
    dataset: Any,
    registry: Any,
    alias: Any,
    reuse_evaluations: Any,
    checkpoint_uri: Any,
    claim: Any,
) -> None:
    """Declares the tasks, inside a pipeline's function.

    Args:
        of: step → its settings, an output of the task that checked them.
        base_model, dataset, registry, alias, reuse_evaluations, checkpoint_uri: as in the run form.
        claim: that of a retraining; an empty one for any other run.
    """
    data = prepare(settings=of["prepare"], dataset=dataset, base_model=base_model)
    request(data, "prepare")
    rows = data.outputs["prepared"]

    base = evaluate_base(settings=of["evaluate"], base_model=base_model, reuse=reuse_evaluations, dataset=rows)
    request(base, "evaluate")
    trained = train(settings=of["train"], base_model=base_model, checkpoint_uri=checkpoint_uri, dataset=rows)
    request(trained, "train")
    adapter = trained.outputs["adapter"]
    merging = merge(settings=of["merge"], base_model=base_model, adapter=adapter, dataset=rows)
    request(merging, "merge")
    quantizing = quantize(settings=of["quantize"], model=merging.outputs["merged"], dataset=rows)
    request(in_image(quantizing, of["quantizer"]), "quantize")
    models = {
        "adapter": adapter,
        "merged": merging.outputs["merged"],
        "quantized": quantizing.outputs["quantized"],
    }
    compared = parity(settings=of["parity"], base_model=base_model, dataset=rows, **models)
    request(compared, "parity")
    evidence = {"parity": compared.outputs["report"], "base_evaluation": base.outputs["evaluation"]}
    for role in TUNED:
        tuned = evaluate_model(settings=of["evaluate"], reuse=reuse_evaluations, model=models[role], dataset=rows)
        request(tuned.set_display_name(f"evaluate {role}"), "evaluate")
        evidence[f"{role}_evaluation"] = tuned.outputs["evaluation"]
    found = evaluate_champion(
        settings=of["evaluate"],
        gate=of["gate"],
        registry=registry,
        alias=alias,
        reuse=reuse_evaluations,
        dataset=rows,
        like=base.outputs["evaluation"],
    )
    request(found, "evaluate")
    evidence["champion"] = found.outputs["champion"]
    served = serve_check(
        settings=of["serve_check"],
        serving=of["serving"],
        model=models["quantized"],
        dataset=rows,
        evaluation=evidence["quantized_evaluation"],
    )
    request(served, "serve_check")
    evidence["serving"] = served.outputs["report"]

    judged = gate(settings=of["gate"], registry=registry, dataset=rows, **models, **evidence)
    request(judged, "gate")
    verdict = judged.outputs["verdict"]
    with dsl.If(judged.outputs["decision"] == "PASS", name="passed"):
        judged_all = {"verdict": verdict, **models, **evidence}
        with dsl.If(of["approval"] == "required", name="approval required"):
            asking = request_approval(
                settings=of["approve"], signing=of["signing"], alias=alias, registry=registry, claim=claim, **judged_all
            )
            request(asking, "request_approval")
            asked = asking.outputs["request"]
            waiting = await_approval(settings=of["approve"], registry=registry, request=asked)
            request(waiting, "await_approval")
            with dsl.If(waiting.outputs["decision"] == "approve", name="approved"):
                moving = promote_approved(signing=of["signing"], registry=registry, request=asked)
                request(moving, "promote")
            with dsl.Else(name="denied"):
                request(not_approved(answer=waiting.outputs["answer"]), "not_approved")
        with dsl.If(of["approval"] == "waived", name="approval waived"):  # any other word promotes nothing
            promoting = promote(
                settings=of["promote"], signing=of["signing"], registry=registry, claim=claim, **judged_all
            )
            request(promoting, "promote")
    with dsl.Else(name="not passed"):
        refusing = refused(settings=of["approve"], alias=alias, registry=registry, claim=claim, verdict=verdict)
        request(refusing, "refused")
