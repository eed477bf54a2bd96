"""What is wrong with the keys of a TOML file, for the person who wrote it."""

from collections.abc import Collection

from pydantic import ValidationError


def explain(error: ValidationError, *, whole: str, skip: Collection[str] = ()) -> list[str]:
    """One sentence for each wrong key; `whole` stands for a place without one, and parts of a place in `skip` are no keys."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"] if part not in skip) or whole
        match item["type"]:
            case "extra_forbidden":
                lines.append(f"unknown key {key!r}; remove it or correct its spelling")
            case "missing":
                lines.append(f"the key {key!r} is missing; add it")
            case "value_error":
                lines.append(f"{key}: {item['ctx']['error']}")
            case _:
                lines.append(f"key {key!r}: {item['msg']}")
    return list(dict.fromkeys(lines))
