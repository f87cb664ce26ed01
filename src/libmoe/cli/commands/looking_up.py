"""Commands that say what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from libmoe.cli.commands.options import ANY_MODEL, Json, Plugin, load_plugins

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
def audit(
    target: Annotated[str, typer.Argument(help=f"A method (a tiny model of it is built), or: {ANY_MODEL}")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the method. Repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Text of the requests [default: the run's, or the embedded one].")
    ] = None,
    victims: Annotated[int, typer.Option("--victims", help="Requests that are attacked in turn.")] = 8,
    rows: Annotated[int, typer.Option("--rows", help="Requests in a batch; all but one are the attacker's.")] = 8,
    queries: Annotated[int, typer.Option("--queries", help="Batches an attacker may try on a victim.")] = 24,
    length: Annotated[int, typer.Option("--length", help="Tokens of a request.")] = 24,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Compute in this; float64 tells rounding from dependence.")
    ] = "float64",
    attack: Annotated[
        bool, typer.Option("--attack/--no-attack", help="Also attack it, with and without each defence.")
    ] = True,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Audit what answers depend on: other requests of the batch, later tokens, padding; then overflow its buffers.

    Where an expert has a limited number of places for a batch, a request can take those that another needs. The audit
    looks whether that is so as the model is served, crafts such batches, and measures what each defence is worth:
    random order, drawn experts, more places, places per request. A model without a limit is attacked as if it had one.

    The exit code is 1 when an answer depends on what it must not, as the model is served.

    Example: `libmoe audit runs/tiny`, or `libmoe audit switch --set eval_capacity_factor=1.0 --json`
    """
    from libmoe.cli.audit import Request, run

    load_plugins(plugin)
    request = Request(victims, rows, queries, length)
    run(target, sets or [], request, data=data, dtype=dtype, attack=attack, as_json=as_json)


@app.command()
def theory(
    name: Annotated[str | None, typer.Argument(help="Which [default: list them].")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Repetitions, from seed 0; intervals are over them.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples and steps: a look.")] = False,
    extension: Annotated[
        str | None, typer.Option("--extension", help="A further experiment on its data, in its place.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a paper's theory as an experiment: its data, its training, and its claims with what was measured.

    Each claim has the direction that the paper gives it, a mean with a 95 % interval over seeds, and a verdict: holds,
    fails, or open where the interval does not decide.

    Example: `libmoe theory mixture-of-clusters --seeds 3 --quick`
    """
    from libmoe.cli.theory import run

    run(name, seeds, quick, as_json, extension)


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
