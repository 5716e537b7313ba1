"""Names and aliases that every MLflow registry takes, refused before anything is made."""

import re


def check_name(name: str, field: str = "registry.name") -> str:
    """A flat name or `catalog.schema.model`.

    Raises:
        ValueError: shows both forms.
    """
    if not re.fullmatch(r"[\w-]+(\.[\w-]+\.[\w-]+)?", name):
        raise ValueError(
            f"{field} {name!r} is neither flat (text2sql) nor catalog.schema.model (prod.sql.text2sql). "
            "Use letters, digits, - and _ in each part."
        )
    return name


def check_alias(alias: str) -> str:
    """An alias that is not a word for a version.

    Raises:
        ValueError: it is reserved or no name.
    """
    reserved = alias.lower() == "latest" or re.fullmatch(r"v\d+", alias.lower())
    if reserved or not re.fullmatch(r"[\w-]+", alias):
        raise ValueError(
            f"alias {alias!r} is reserved or not a name: `latest`, `v1` and the like mean versions. Use champion."
        )
    return alias
