"""What is wrong with the keys of a TOML file, for the person who wrote it."""

from collections.abc import Collection, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from shared.did_you_mean import nearest


def explain(error: ValidationError, model: type[BaseModel], *, whole: str, skip: Collection[str] = ()) -> list[str]:
    """One sentence for each wrong key of what was to be a `model`.

    `whole` stands for a place without a key, and parts of a place in `skip` are no keys.
    """
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"] if part not in skip) or whole
        match item["type"]:
            case "extra_forbidden":
                lines.append(unknown_key(key, item["loc"], model))
            case "missing":
                lines.append(f"the key {key!r} is missing; add it")
            case "value_error":
                lines.append(f"{key}: {item['ctx']['error']}")
            case _:
                lines.append(f"key {key!r}: {item['msg']}")
    return list(dict.fromkeys(lines))


def unknown_key(key: str, place: Sequence[int | str], model: type[BaseModel] | None) -> str:
    """The sentence for a key that a model does not have at a place, with the one that was meant where one is near."""
    near = nearest(str(place[-1]), _keys(model, place[:-1]))
    return f"unknown key {key!r}; " + (f"did you mean {near}?" if near else "remove it or correct its spelling")


def _keys(annotation: Any, place: Sequence[int | str]) -> list[str]:
    """The keys of a table within a model. A place has a part for each list's index, and may have one for the kind of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not place:
            return list(annotation.model_fields)
        field = annotation.model_fields.get(str(place[0]))
        return [] if field is None else _keys(field.annotation, place[1:])
    inner = [each for each in get_args(annotation) if each is not annotation]
    found = [key for each in inner for key in _keys(each, place)]
    return found or ([key for each in inner for key in _keys(each, place[1:])] if place else [])
