"""Which numbers the settings of a method may be; no method by itself. Each raises UsageError with the setting, what came and what is legal."""

from dataclasses import fields

from dsengine.errors import UsageError

TEMPERATURES = 1e-4, 1e4  # a similarity over it is still a number of fp32


def above_zero(config: object, *names: str) -> None:
    """Those settings are above 0 and finite."""
    for name in names:
        if not 0 < (value := getattr(config, name)) < float("inf"):
            raise UsageError(f"{name}={value}: must be above 0 and finite")


def at_least_one(config: object, *names: str) -> None:
    """Those settings, widths of layers, are 1 or more; one that is None is not set."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < 1:
            raise UsageError(f"{name}={value}: must be 1 or more")


def within(config: object, name: str, least: float, most: float) -> None:
    """The setting is in [least, most]."""
    if not least <= (value := getattr(config, name)) <= most:
        raise UsageError(f"{name}={value}: must be in [{least:g}, {most:g}]")


def untouched(config: object, *names: str, where: str) -> None:
    """Those settings are as they are by default, for they do nothing where the setting `where` is as it is."""
    for field in fields(config):
        if field.name in names and (value := getattr(config, field.name)) != field.default:
            raise UsageError(f"{field.name}={value}: does nothing with {where}; legal there: {field.default}, its default")
