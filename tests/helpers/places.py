"""Places in a JSON value, and copies with something else in one of them."""

from __future__ import annotations

import copy


def places(value, path=()):
    """Every place in a JSON value; of a long list the first three entries stand for all."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, entry in inside:
        yield from places(entry, (*path, key))


def put(value, path, entry, how):
    """A copy in which one place holds something else, is missing, or has a key that nobody knows beside it."""
    value = copy.deepcopy(value)
    if not path:
        return entry
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if how == "delete":
        del parent[path[-1]]
    elif how == "add" and isinstance(parent, dict):
        parent["colour"] = entry
    else:
        parent[path[-1]] = entry
    return value
