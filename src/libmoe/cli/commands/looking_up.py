"""Commands that say what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from libmoe.cli.commands.options import Json, Plugin, load_plugins

app = typer.Typer()


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method and its options.")] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """List the methods that can be trained and compared, or explain one.

    Example: `libmoe methods switch`
    """
    from libmoe.cli.methods import run

    load_plugins(plugin)
    run(name, as_json)


@app.command()
def check(
    method: Annotated[
        str, typer.Argument(help="A method of the package or of a plugin, or a backend such as `cpu_fused`.")
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="An option of the method, e.g. `top_k=1`. Repeatable."
        ),
    ] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Check that a method keeps the contract: gradients, padding, recomputation, saving, causality, and more.

    The causality audit changes later tokens and looks whether earlier decisions move. The exit code is 1 when a
    promise is broken.  A backend is held against the reference: outputs, gradients and what it declares.

    Example: `libmoe check my-router --plugin my_router.py`
    """
    from libmoe.cli.check import run

    load_plugins(plugin)
    run(method, sets or [], as_json)


@app.command()
def papers(
    which: Annotated[str | None, typer.Argument(help="Number or key of a paper: show its entry.")] = None,
    search: Annotated[str | None, typer.Option("--search", help="Words in title, summary or parts.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only papers of this kind, e.g. router.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="built, partial or planned.")] = None,
    as_json: Json = False,
) -> None:
    """Show the catalogue of 146 papers: what each is, which methods realise it, what is built.

    Example: `libmoe papers --kind router --status built`, then `libmoe papers 42`
    """
    from libmoe.cli.papers import run

    run(which, search, kind, status, as_json)
