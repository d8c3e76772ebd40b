"""Docstrings in the style of transformers, rewritten to what griffe reads as Google's style."""

import re

import griffe


LINK = re.compile(r"\[`(~?)([\w.]+)`\](?![(\[])")
"""A name in brackets, as transformers writes it."""


class TransformersDocstrings(griffe.Extension):
    """Links names, and keeps the groups of arguments and arguments that share a description."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: object) -> None:
        paths = {}
        for room in list_rooms(pkg):
            paths |= {str(name): f"{room.path}.{name}" for name in room.exports or ()}
            room.docstring = None  # the page of a room introduces it
        for docstring in list_docstrings(pkg):
            text = re.sub(r"^(?:Parameters:\n)?    > (Parameters .*)\n\n", r"Args: \1\n", docstring.value, flags=re.M)
            text = re.sub(r" \\\n +", " ", text)
            docstring.value = re.sub(LINK, lambda match: link(*match.groups(), paths=paths), text)


def link(tilde: str, name: str, paths: dict[str, str]) -> str:
    """Returns a link to a public name, or from a method to its class. A tilde shows the last part of a name only."""
    public = name.split(".")[0]
    shown = name.rpartition(".")[2] if tilde else name
    return f"[`{shown}`][{paths[public]}]" if public in paths else f"`{shown}`"


def list_rooms(module: griffe.Module) -> list[griffe.Module]:
    """Returns a package and the packages in it. The outer ones come first, so that a room's path replaces theirs."""
    rooms = [module]
    for member in module.members.values():
        if not member.is_alias and member.is_module and member.is_init_module:
            rooms += list_rooms(member)
    return rooms


def list_docstrings(item: griffe.Object) -> list[griffe.Docstring]:
    """Returns the docstrings of an object and of everything in it."""
    docstrings = [item.docstring] if item.docstring else []
    for member in item.members.values():
        if not member.is_alias:
            docstrings += list_docstrings(member)
    return docstrings
