"""The command line: `llm-assets models | info | plan | doctor`.

Each command prints and changes nothing. What changes something is a notebook's call, `make`, or the Dagster UI.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from llm_assets.core import LLMAssetsError
from llm_assets.interface.display import Page, Panel
from llm_assets.training.catalog import base_models

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did what was asked, 1 when something is missing, 2 for wrong arguments."""
    parsed = _parser().parse_args(arguments)
    run: Command = parsed.run
    try:
        return run(parsed)
    except LLMAssetsError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def models(arguments: argparse.Namespace) -> int:
    """Print the base model catalog."""
    entries = [entry for entry in base_models().values() if _letters(arguments.like or "") in _letters(entry.name)]
    rows = [
        (
            entry.name,
            f"{entry.parameters / 1e9:.2f}B",
            f"{entry.context_tokens:,}",
            entry.license + (" (gated)" if entry.gated else ""),
            f"{entry.hub}@{(entry.revision or 'give a revision')[:12]}",
        )
        for entry in entries
    ]
    if not rows:
        sys.stderr.write(f"No base model has {arguments.like!r} in its name. `llm-assets models` lists all.\n")
        return 1
    header = ("name", "parameters", "context", "licence", "hub repository and commit")
    _print(Page("Base models", (Panel(f"{len(rows)} entries", rows, header),)))
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Print what is registered under a name."""
    from llm_assets.interface.model_info import get_model_info

    name, _, alias = arguments.model.partition("@")
    _print(get_model_info(name, arguments.version or alias or None).page())
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """Print the memory plan of a lineage."""
    from llm_assets.interface.plan import plan as plan_lineage
    from llm_assets.interface.plan import read_lineage
    from llm_assets.quantization.hardware import UnknownHardware, detect_hardware, find_gpu

    config = read_lineage(arguments.lineage)
    named = arguments.gpu or config.hardware.target
    try:
        gpu = find_gpu(named) if named else detect_hardware()
    except UnknownHardware as error:
        known, _, _ = str(error).replace("hardware.target", "--gpu").partition(" Leave ")
        raise UnknownHardware(f"{known} Leave --gpu out to plan for the lineage's target, or this machine.") from None
    _print(plan_lineage(config, gpu))
    return 0


def doctor(_: argparse.Namespace) -> int:
    """Print what this machine and configuration can run."""
    from llm_assets.interface.doctor import examine

    missing = 0
    for finding in examine():
        sys.stdout.write(f"{finding.line()}\n")
        missing += finding.state == "missing"
    sys.stdout.write(f"\n{f'{missing} missing' if missing else 'Nothing is missing.'}\n")
    return 1 if missing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llm-assets", description="Fine-tune, register and run your own LLM.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listed = _command(commands, "models", models, "list the base models that have a short name")
    listed.add_argument("like", nargs="?", help="part of the name, such as qwen3")
    told = _command(commands, "info", info, "show what is registered under a name")
    told.add_argument("model", help="registered name, or name@alias")
    told.add_argument("--version", help="number or alias; the champion when left out")
    planned = _command(commands, "plan", plan, "show how much memory a lineage takes on a GPU")
    planned.add_argument("lineage", help="path of a defs.yaml, or the name of a shipped lineage")
    planned.add_argument("--gpu", help="known GPU, such as a100_80gb or H200; the lineage's target, or this machine")
    _command(commands, "doctor", doctor, "say what this machine and configuration can run")
    return parser


def _letters(name: str) -> str:
    """A name without what people write differently: `Qwen2.5-3B` finds `qwen2_5_3b`."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _command(commands: "argparse._SubParsersAction", name: str, run: Command, about: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(run=run)
    return parser


def _print(page: Page) -> None:
    sys.stdout.write(f"{page.text()}\n")


if __name__ == "__main__":
    sys.exit(main())
