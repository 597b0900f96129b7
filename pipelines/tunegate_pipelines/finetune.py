"""The pipeline ``finetune``: from prepare to evaluate, serve_check and the gate; on PASS approve and promote."""

from collections.abc import Mapping

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
from tunegate_pipelines.form import default
from tunegate_pipelines.quantizers import in_image, quantizers
from tunegate_pipelines.resources import request
from tunegate_pipelines.tasks import check, refused, summarize

#: The models that are evaluated after training, in the order in which their tasks are declared.
TUNED = ("merged", "quantized")

#: Task of the compiled pipeline → what a person calls it; kfp numbers the second use of a component.
LABELS: Mapping[str, str] = {
    "evaluate-base": "evaluate base",
    "evaluate-champion": "evaluate champion",
    **{f"evaluate-model{'' if n == 1 else f'-{n}'}": f"evaluate {role}" for n, role in enumerate(TUNED, 1)},
}


@dsl.pipeline(name="finetune", display_name="tunegate finetune")  # type: ignore[untyped-decorator,unused-ignore]
def finetune(
    base_model: str,
    dataset: str,
    registry: str,
    alias: str = default("alias"),
    method: str = default("method"),
    r: int = default("r"),
    lora_alpha: int = default("lora_alpha"),
    learning_rate: float = default("learning_rate"),
    num_train_epochs: float = default("num_train_epochs"),
    max_length: int = default("max_length"),
    merge_base: str = default("merge_base"),
    scheme: str = default("scheme"),
    evaluation_rows: int = default("evaluation_rows"),
    seed: int = default("seed"),
    reuse_evaluations: str = "",
    checkpoint_uri: str = "",
    recipe: dict = {},  # type: ignore[type-arg]  # noqa: B006 - KFP wants the default as a value
) -> None:
    """Fine-tunes a model, merges, quantizes and evaluates it, and promotes it only when the gate says PASS.

    A verdict of FAIL or INCONCLUSIVE ends the run as failed, with the reasons in the task 'refused'; an approval that
    was denied or expired ends it in the task 'not-approved'.

    Args:
        base_model: A model folder, or 'org/name@commit' of a hub.
        dataset: A .jsonl or .parquet file, a folder of them, or 'org/name@commit' of a hub.
        registry: Where versions and aliases lie: a folder or URI.
        alias: The name that is moved to the promoted version.
        method: How to train: 'lora', 'qlora', 'adalora' or 'full'.
        r: Rank of the adapter; with adalora the average rank that is left.
        lora_alpha: Scale of the adapter; its change is multiplied by lora_alpha / r.
        learning_rate: Peak learning rate; 1e-4 to 2e-4 is usual for adapters, 1e-5 to 2e-5 for full.
        num_train_epochs: Passes over the train rows.
        max_length: Longest row, in tokens.
        merge_base: Which 16-bit base the adapter is added to: 'original', 'dequantized', or the better one: 'measure'.
        scheme: How to quantize: 'W4A16', 'W4A16_ASYM', 'W8A8', 'FP8_DYNAMIC', 'FP8', or 'auto': the best that the
            serving target has, which the recipe names (quantize.serving_target).
        evaluation_rows: How many evaluation rows to judge on; 0 for all.
        seed: Seed of training.
        reuse_evaluations: A folder that keeps evaluated tasks by digest, each made once; empty for none.
        checkpoint_uri: A folder or gs:// address where an interrupted training is continued from; empty for none.
        recipe: Settings of the steps beyond this form, and the gate's policy, by section: prepare, train, merge,
            quantize, parity, evaluate, serve_check, gate, approve, promote, signing, serving.
    """
    ending = summarize(base_model=base_model, dataset=dataset, registry=registry, alias=alias)
    request(ending, "summarize")
    with dsl.ExitHandler(ending, name="tune and judge"):
        settings = check(
            base_model=base_model,
            dataset=dataset,
            registry=registry,
            checkpoint_uri=checkpoint_uri,
            alias=alias,
            method=method,
            r=r,
            lora_alpha=lora_alpha,
            learning_rate=learning_rate,
            num_train_epochs=num_train_epochs,
            max_length=max_length,
            merge_base=merge_base,
            scheme=scheme,
            evaluation_rows=evaluation_rows,
            seed=seed,
            recipe=recipe,
            quantizers=quantizers(),
        )
        request(settings, "check")
        of = settings.outputs

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
                    settings=of["approve"], signing=of["signing"], alias=alias, registry=registry, **judged_all
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
                promoting = promote(settings=of["promote"], signing=of["signing"], registry=registry, **judged_all)
                request(promoting, "promote")
        with dsl.Else(name="not passed"):
            refusing = refused(settings=of["approve"], alias=alias, registry=registry, verdict=verdict)
            request(refusing, "refused")
