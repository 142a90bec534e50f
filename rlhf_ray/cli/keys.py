"""`rlhf-ray keys`: who may use a service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_ray.serving.place import DEFAULT_STORE, store_url

if TYPE_CHECKING:  # loads SQLAlchemy, which `--help` does not need
    from rlhf_ray.serving.state import ServiceState

keys_app = typer.Typer(no_args_is_help=True, help="API keys of a service: add, list, revoke.")
Store = Annotated[str, typer.Option(help="The service's store: a file or a database URL.")]


@keys_app.command(epilog="Example: rlhf-ray keys add --scopes chat,feedback --name alice")
def add(
    scopes: Annotated[str, typer.Option(help="Some of chat, feedback, admin.")] = "chat,feedback",
    name: Annotated[str, typer.Option(help="Whose it is.")] = "",
    store: Store = DEFAULT_STORE,
) -> None:
    """Make a key and print it; it cannot be had again. A running service knows it within seconds."""
    typer.echo(_state(store).add_key({scope.strip() for scope in scopes.split(",")}, name))


@keys_app.command("list", epilog="Example: rlhf-ray keys list")
def list_(
    store: Store = DEFAULT_STORE,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines instead of text.")] = False,
) -> None:
    """The keys by id, with their scopes and names."""
    keys = _state(store).keys()
    if json_:
        typer.echo(json.dumps([{"id": key.id, "scopes": sorted(key.scopes), "name": key.name} for key in keys]))
        return
    for key in keys:
        typer.echo(f"{key.id}  {','.join(sorted(key.scopes)):<22}  {key.name}")


@keys_app.command(epilog="Example: rlhf-ray keys revoke 3f2a9c0b1d4e")
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    store: Store = DEFAULT_STORE,
) -> None:
    """Delete a key; a running service refuses it within seconds."""
    _state(store).revoke(key_id)


def _state(store: str) -> ServiceState:
    from rlhf_ray.serving.state import ServiceState

    return ServiceState(store_url(store))
