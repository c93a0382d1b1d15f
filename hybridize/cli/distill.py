"""`hybridize distill`."""

from pathlib import Path

import click

from hybridize.cli.options import (
    common_options,
    count_option,
    device_option,
    dry_run_option,
    force_option,
    output_option,
    seed_option,
)
from hybridize.console import console


@click.command(short_help="Teach a converted checkpoint what its original does.")
@click.argument("student")
@output_option("Where to write the distilled checkpoint, in the student's format.")
@click.option("--teacher", required=True, metavar="MODEL", help="What STUDENT was converted from.")
@click.option(
    "--data",
    multiple=True,
    metavar="FILE|DATASET|teacher",
    help="Text, JSON lines or Parquet, a dataset of the hub (NAME, NAME:SPLIT or "
    "NAME:CONFIGURATION:SPLIT), or teacher, which writes the text itself; may be repeated.  "
    "[default: teacher]",
)
@count_option("--data-tokens", "How much text to use.  [default: what the longest stage needs]")
@click.option(
    "--stages",
    default="align,kl",
    show_default=True,
    metavar="NAME,…",
    help="align: each block by itself; hidden: the residual stream; kl: the predictions.",
)
@count_option("--tokens", "Training tokens of the last stage; the others keep their proportion.")
@count_option("--align-tokens", "Training tokens of the align stage.  [default: 2M]")
@count_option("--hidden-tokens", "Training tokens of the hidden stage.  [default: 2M]")
@count_option("--kl-tokens", "Training tokens of the kl stage.  [default: 8M]")
@click.option("--align-lr", type=float, help="Peak learning rate of align.  [default: 0.001]")
@click.option(
    "--hidden-lr",
    type=float,
    help="Peak learning rate of hidden.  [default: 0.001; 0.0003 with --train all]",
)
@click.option(
    "--kl-lr",
    type=float,
    help="Peak learning rate of kl.  [default: 0.001; 0.0003 with --train all]",
)
@click.option("--seq-len", type=click.IntRange(min=2), default=512, show_default=True,
              help="Tokens per row.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True,
              help="Rows per step.")  # fmt: skip
@click.option(
    "--train",
    type=click.Choice(["mixers", "all"]),
    default="mixers",
    show_default=True,
    help="What hidden and kl train: the new blocks' mixers, or everything.",
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the kl stage.")
@click.option("--label-weight", type=float, default=0.0, show_default=True,
              help="Share of the cross-entropy to the text in the kl stage.")  # fmt: skip
@click.option("--warmup", type=float, default=0.1, show_default=True,
              help="Share of the steps in which the learning rate rises.")  # fmt: skip
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Of matrices.")
@click.option("--clip", type=float, default=1.0, show_default=True,
              help="Largest norm of a step's gradient.")  # fmt: skip
@click.option("--validation", type=click.IntRange(min=1), default=16, show_default=True,
              help="Rows held out.")  # fmt: skip
@click.option("--validate-every", type=click.IntRange(min=1), default=50, show_default=True,
              help="Steps between validations.")  # fmt: skip
@click.option("--patience", type=click.IntRange(min=0), default=0, show_default=True,
              help="Validations without improvement that end a stage; 0 for never.")  # fmt: skip
@click.option(
    "--segment",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Tokens at a time in long rows: state goes on, gradients do not; 0 for whole rows.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory for more time.")
@click.option(
    "--cache-teacher",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="K",
    help="Write the teacher's K likeliest next tokens down once; kl then runs without it.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="What is computed in; what trains stays float32. auto is bfloat16 on CUDA.",
)
@click.option(
    "--fp8",
    is_flag=False,
    flag_value="fp8",
    metavar="[SCHEME]",
    help="Train for FP8: fp8 (if no name is given), fp8-tensor or fp8-block, see quantize --help.",
)
@click.option(
    "--keep-bf16",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --fp8: blocks at either end that are not rounded.  [default: as quantize's]",
)
@click.option("--save-every", type=click.IntRange(min=1), default=200, show_default=True,
              help="Steps between saves.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@seed_option
@device_option
@force_option
@dry_run_option
@common_options
def distill(
    student: str,
    output: Path,
    teacher: str,
    data: tuple[str, ...],
    data_tokens: int | None,
    stages: str,
    tokens: int | None,
    align_tokens: int | None,
    hidden_tokens: int | None,
    kl_tokens: int | None,
    align_lr: float | None,
    hidden_lr: float | None,
    kl_lr: float | None,
    device: str,
    dtype: str,
    save_every: int,
    resume: bool,
    force: bool,
    dry_run: bool,
    **settings: object,
) -> None:
    """Train the blocks of STUDENT that replaced attention to do what the teacher does.

    Without data, the teacher writes the text itself. A run that was killed goes on with --resume,
    to the same result.
    """
    from hybridize.compress.distill.distill import distill as distill_checkpoint

    by_stage = {"align": align_tokens, "hidden": hidden_tokens, "kl": kl_tokens}
    rates = {"align": align_lr, "hidden": hidden_lr, "kl": kl_lr}
    result = distill_checkpoint(
        student,
        output,
        teacher=teacher,
        data=data or ("teacher",),
        data_tokens=data_tokens,
        stages=tuple(name.strip() for name in stages.split(",") if name.strip()),
        tokens=tokens,
        stage_tokens={name: count for name, count in by_stage.items() if count is not None},
        learning_rates={name: rate for name, rate in rates.items() if rate is not None},
        device=device,
        dtype=dtype,
        save_every=save_every,
        resume=resume,
        force=force,
        dry_run=dry_run,
        **settings,
    )
    if console.json_mode:
        console.json(result.to_dict())
        return
    if result.dry_run:
        console.table(
            ["stage", "steps"],
            list(result.steps.items()),
            caption=f"{result.trained:,} parameters would train, in {len(result.swapped)} new "
            "blocks and, with --train all, in the rest.",
        )
        console.message(f"dry run: {result.output} was not written")
        return
    console.table(
        ["stage", "tokens", "loss", "", "validation", "", "skipped", "seconds", "tokens/s"],
        [
            (
                stage.stage,
                f"{stage.tokens:,}",
                "-" if stage.loss_first is None else f"{stage.loss_first:.4f}",
                "-" if stage.loss_last is None else f"{stage.loss_last:.4f}",
                f"{stage.validation_before:.4f}",
                f"{stage.validation_after:.4f}",
                stage.skipped,
                f"{stage.seconds:.0f}",
                f"{stage.tokens_per_second:,.0f}",
            )
            for stage in result.stages
        ],
        caption="Losses at a stage's beginning and end: align and hidden as a share of the power, "
        "kl in nats per token.",
    )
    counts = [f"{result.trained:,} parameters", f"{result.shared:,} shared with the teacher"]
    counts += [f"{result.fp8_layers} linear layers in FP8"] if result.fp8_layers else []
    console.message(f"trained: {'; '.join(counts)}")
    console.message(f"written: {result.output} (with distill.jsonl and distill.png)")
