"""YAML from strangers: numbers, texts, lists and mappings, as many as are written."""

from typing import Any

import yaml

MAX_TEXT = 16 << 20  # characters
MAX_DEPTH = 50


def plain_yaml(text: str) -> Any:
    """The value. ValueError for a tag that would make an object, an alias (a few stand for gigabytes), deep nesting, or what is no YAML."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text):,} characters; legal: up to {MAX_TEXT:,}")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise ValueError(f"{'an alias' if depth <= MAX_DEPTH else 'deep nesting'} in line {event.start_mark.line + 1}")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error
