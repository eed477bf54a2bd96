"""Settings from one TOML file, every value also from the environment; an unknown key is an error.

`[broker] user = "bank-a"` is the same as FEDQUEUE_BROKER__USER=bank-a, which wins. Keys that end in `_file` or `_folder`
are paths relative to the settings file.
"""

import tomllib
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from shared.errors import SettingsError
from shared.wrong_keys import unknown_key

PREFIX = "FEDQUEUE_"


class WorkerSettings(BaseSettings):
    """What every program of fedqueue reads its settings into."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment before the file, and nothing else."""
        return env_settings, init_settings


Settings = TypeVar("Settings", bound=WorkerSettings)


def load(settings_type: type[Settings], text: str, *, path: PurePath) -> Settings:
    """Settings from the text of the TOML file `path`, which may be empty.

    Raises SettingsError with one line per wrong key, naming the key and what is expected, never a secret's value.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from error
    try:
        return settings_type(**_resolve(values, path.parent))
    except UnreadableVariable as error:
        raise SettingsError(f"the environment, {PREFIX}...: {error}; a variable for a whole table must be JSON") from None
    except ValidationError as error:
        raise SettingsError("\n".join(f"{path}: {line}" for line in explain(error, settings_type))) from None


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """One sentence for each wrong key. With the model to be read, an unknown key is told with the one nearest to it."""
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "the file"
        match item["type"]:
            case "extra_forbidden":
                lines.append(unknown_key(key, item["loc"], model))
            case "missing":
                lines.append(f"the key {key!r} is missing; add it, or set {PREFIX}{key.upper().replace('.', '__')}")
            case _ if not item["loc"]:
                lines.append(item["msg"].removeprefix("Value error, "))
            case _:
                lines.append(f"key {key!r}: {item['msg']}")
    return lines


def _resolve(values: dict[str, Any], folder: PurePath) -> dict[str, Any]:
    resolved: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            resolved[key] = _resolve(value, folder)
        elif key.endswith(("_file", "_folder")) and isinstance(value, str) and value:
            resolved[key] = str(folder / value)
        else:
            resolved[key] = value
    return resolved
