"""`quest methods`: what there is to train with."""

from __future__ import annotations

from typing import Annotated

import typer

from questlm.cli.options import Plugins, load_plugins, print_table
from questlm.terminal import cell

__all__ = ["methods"]


def methods(
    name: Annotated[str | None, typer.Argument(help="Method to describe in full.")] = None,
    plugin: Plugins = None,
) -> None:
    """List the quantisation methods: bits of weights and activations, formats, what is learned, and source.

    Examples:

        quest methods

        quest methods lsq-row

        quest methods --plugin my_method.py
    """
    from questlm.quant.methods import METHODS, find_method

    load_plugins(plugin)
    if name is None:
        _list_all(list(METHODS))
        return
    method = find_method(name)
    rows = [
        ("what", method.summary),
        ("source", method.source),
        ("weight bits", _bits(method.weight.bits)),
        ("activation bits", _bits(method.act.bits)),
        ("formats", ", ".join(method.formats)),
        ("transform", "Hadamard" if method.rotates else "none"),
        ("learned for weights", method.weight.learned or "nothing"),
        ("learned for activations", method.act.learned or "nothing"),
        ("norm before each layer", "yes" if method.input_norm else "no"),
    ]
    print_table(name, rows)
    typer.echo(method.doc.strip())


def _list_all(names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from questlm.quant.methods import METHODS

    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name in names:
        method = METHODS[name]
        learned = "; ".join(dict.fromkeys(filter(None, (method.weight.learned, method.act.learned)))) or "nothing"
        bits = f"weights {_bits(method.weight.bits)}; activations {_bits(method.act.bits)}"
        source = f"{method.source}, {_plugin(name)}" if name in METHODS.plugins else method.source
        table.add_row(cell(name), cell(f"{method.summary}\n{bits}\nlearns: {learned}\n{source}"))
    for name, point in METHODS.offered().items():
        package = point.dist.name if point.dist is not None else point.module
        table.add_row(cell(name), f"of the installed package {cell(package)}, not loaded yet")
    Console().print(table)
    typer.echo("16 bits for either factor leaves it unquantised. More on one: quest methods NAME")


def _plugin(name: str) -> str:
    from questlm.quant.methods import METHODS

    plugin = METHODS.plugins[name]
    return f"{'package' if plugin.kind == 'package' else 'plugin'} {plugin.name}"


def _bits(bits: tuple[int | str, ...]) -> str:
    """Widths in order, runs of them as 1-8."""
    numbers = sorted(width for width in bits if isinstance(width, int))
    is_run = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    text = f"{numbers[0]}-{numbers[-1]}" if is_run else ", ".join(map(str, numbers))
    return ", ".join(filter(None, (text, "ternary" if "ternary" in bits else "")))
