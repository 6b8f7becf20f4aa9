"""The `agevlm` command: parse, call, print. No logic lives here, and nothing imports it.

Every verb is a function of one of the modules beside this one; each imports the room that it calls when it is called,
so that `agevlm --help` answers at once. Exceptions become one line on standard error, here and nowhere else.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from agevlm.cli import backbones, comparison, data, measure, planning, scenes, serving, teachers, training
from agevlm.cli.errors import explain

_ENDED_S = 5.0  # within which a launch ends the other processes, when one has failed
_SECRET = re.compile(r"--(.+-)?(key|token|password|secret)")  # an option whose value is for nobody's eyes

app = typer.Typer(
    name="agevlm",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
compare_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Compare ways to train, over seeds.")
recipe_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at recipes.")
scenes_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Draw and export the embedded world.")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Convert and inspect datasets.")

app.command("train", epilog="Example: agevlm train quickstart --out runs/first --set stages.2.learning_rate=1e-4")(
    training.train
)
app.command("plan", epilog="Example: agevlm plan age_vlm_1b --gpu h100 --num-gpus 8 --json plan.json")(planning.plan)
app.command("evaluate", epilog="Example: agevlm evaluate tiny --benchmark scenes --out runs/tiny --seed 7")(
    measure.evaluate
)
app.command("diagnose", epilog="Example: agevlm diagnose tiny --data scenes --out diagnosis")(measure.diagnose)
app.command("similarity", epilog="Example: agevlm similarity tiny --out similarity.json --figure similarity.png")(
    measure.similarity
)
app.command("look", epilog='Example: agevlm look tiny picture.png "is there a fish?" --out look.png')(measure.look)
app.command("serve", epilog="Example: agevlm serve tiny --port 8000")(serving.serve)
app.command("chat", epilog="Example: agevlm chat tiny picture.png")(serving.chat)
app.command("report", epilog="Example: agevlm report runs/first")(training.report)
app.command("ground", epilog="Example: agevlm ground data/llava --teacher grounded-sam --out data/grounded")(
    teachers.ground
)
app.command(
    "import-backbone",
    epilog="Example: agevlm import-backbone efficientnet-lite0-57934424.pth --out efficientnet-lite0",
)(backbones.import_backbone)
app.command("probe", epilog="Example: agevlm probe data/coco --test data/coco-val --vision-model efficientnet-lite0")(
    backbones.probe
)
app.add_typer(compare_app, name="compare")
app.add_typer(recipe_app, name="recipe")
app.add_typer(scenes_app, name="scenes")
app.add_typer(data_app, name="data")
compare_app.command("run", epilog="Example: agevlm compare run comparison --out runs/comparison --jobs 2")(
    comparison.run
)
compare_app.command(
    "costs", epilog="Example: agevlm compare costs comparison --out costs.json --tokens 144 --tokens 576"
)(comparison.costs)
compare_app.command(
    "page",
    epilog="Example: agevlm compare page results/comparison.json results/sweeps.json --out docs/results/comparison.md",
)(comparison.page)
compare_app.command("trajectory", epilog="Example: agevlm compare trajectory runs/comparison/age/0")(
    comparison.trajectory
)
recipe_app.command("show", epilog="Example: agevlm recipe show quickstart --set seed=3")(training.show_recipe)
recipe_app.command("list", epilog="Example: agevlm recipe list")(training.list_recipes)
scenes_app.command("draw", epilog="Example: agevlm scenes draw --num 9 --out pictures")(scenes.draw)
scenes_app.command("export", epilog="Example: agevlm scenes export --num 1000 --out world --format coco")(scenes.export)
scenes_app.command("foundation", epilog="Example: agevlm scenes foundation --out foundation")(scenes.foundation)
scenes_app.command("teachers", epilog="Example: agevlm scenes teachers --out teachers")(scenes.teachers)
data_app.command(
    "coco", epilog="Example: agevlm data coco --instances instances_train2017.json --images train2017 --out data/coco"
)(data.coco)
data_app.command(
    "convert", epilog="Example: agevlm data convert llava.json --from llava --images coco/train2017 --out data/llava"
)(data.convert)
data_app.command(
    "refer",
    epilog="Example: agevlm data refer 'refs(unc).p' --instances instances.json --images train2014 --out data/refcoco",
)(data.refer)
data_app.command("export", epilog="Example: agevlm data export data/grounded --out data/grounded-coco")(data.export)
data_app.command("agree", epilog="Example: agevlm data agree data/grounded data/truth --out agreement.json")(data.agree)
data_app.command("inspect", epilog="Example: agevlm data inspect data/coco")(data.inspect)


def _print_version(asked: bool) -> None:
    if asked:
        from agevlm import __version__

        typer.echo(f"agevlm {__version__}")
        raise typer.Exit


@app.callback(epilog='Example: agevlm look tiny picture.png "is there a fish?" --out look.png')
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; stands anywhere.")] = False,
) -> None:
    """Train an attention-guided vision-language model, measure whether it hallucinates, see where it looks."""


def main() -> None:
    """Run the command line of this process, and exit.

    0 done, 1 an error, 2 wrong usage, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    from agevlm.signals import end_with_starter

    end_with_starter()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt  # so that what is half-written is cleared away

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_text(arguments)
        app(args=arguments, prog_name="agevlm")
    except (SystemExit, KeyboardInterrupt):
        if not stopped:
            raise
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        if not stopped:
            _tell(error)
            sys.exit(1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        if not _launched()[0]:
            print(f"stopped by {signal.Signals(stopped[0]).name}{_how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(128 + stopped[0])


def _launched() -> tuple[int, int]:
    """The number of this process in a launch by torchrun or accelerate, from 0, and how many there are; else (0, 1)."""
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    several = "LOCAL_RANK" in os.environ and rank.isdecimal() and size.isdecimal()
    return (int(rank), int(size)) if several else (0, 1)


def _tell(error: Exception) -> None:
    """Print the lines of an error. In a launch process 0 does, and each other one whose error is not that of 0 too.

    Where process 0 has failed, the launch ends the others while they wait, and they have told nothing.
    """
    rank, _ = _launched()
    if rank:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(_ENDED_S)
    for line in explain(error):
        print(f"{f'process {rank}: ' if rank else ''}error: {line}", file=sys.stderr)


def _check_text(arguments: Sequence[str]) -> None:
    """ValueError for an argument that is no UTF-8: no question, and no name that a dataset or a page could hold."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            fault = f"the argument {os.fsencode(argument)!r} is not UTF-8: type it again, or rename the file"
            raise ValueError(fault) from error


def _how_to_go_on(arguments: Sequence[str]) -> str:
    """What a command that was stopped has kept, and the command that goes on with it. Nothing of a conversation."""
    if arguments[:1] in (["serve"], ["chat"]):
        return ""
    command = shlex.join(["agevlm", *_without_secrets(arguments)])
    launch = f" the same launch of {number} processes" if (number := _launched()[1]) > 1 else ""
    if arguments[:1] == ["train"]:
        command += "" if "--resume" in arguments else " --resume"
        return f": what was trained is kept; go on with{launch}: {command}"
    if arguments[:1] == ["ground"] or arguments[:2] == ["compare", "run"]:
        return f": what was done is kept; go on with{launch}: {command}"
    return f": nothing half-written was left; begin again with{launch}: {command}"


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """The arguments with *** for the values of options that are secret."""
    shown: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, is_joined, _ = argument.partition("=")
        if _SECRET.fullmatch(before):
            shown.append("***")
        elif is_joined and _SECRET.fullmatch(option):
            shown.append(f"{option}=***")
        else:
            shown.append(argument)
    return shown
