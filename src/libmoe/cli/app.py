"""The `libmoe` command."""

from __future__ import annotations

from typing import Annotated

import typer

from libmoe.cli.commands import comparing, evaluating, looking_up, machine, modelling, operating

app = typer.Typer(
    name="libmoe",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
Train, evaluate and compare Mixture-of-Experts methods on equal terms.

Start here:

- `libmoe quickstart` compares seven methods on real text in a few minutes and writes a report with pictures
- `libmoe methods` lists what can be compared; `libmoe methods smoe` explains one method and its options
- `libmoe train tiny --set method.name=remoe` trains one model
- `libmoe bench quickstart --plugin my_router.py --add my-router` compares your own router

`libmoe COMMAND --help` has an example for each command.
""",
)
for _theme in (comparing, modelling, evaluating, operating, looking_up, machine):
    app.add_typer(_theme.app)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from libmoe import __version__

        typer.echo(__version__)
        raise typer.Exit
