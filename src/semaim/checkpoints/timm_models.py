"""Models of timm's, with their weights from the hub where that is asked for; what went wrong is told on one line."""

from __future__ import annotations

import logging
from typing import Any

import timm

log = logging.getLogger(__name__)
LONGEST = 250  # characters of what others say
LOCAL = "local-dir:"  # before a folder that timm reads as it reads the hub


class Absent(Exception):
    """There is no such model, or its weights cannot be had; the message is what timm or the hub's library said."""


def create(name: str, pretrained: bool, **settings: Any) -> Any:
    """What `timm.create_model` makes.

    Args:
        name: timm's name of the model, or `hf-hub:<repository>` or `local-dir:<folder>`.
        pretrained: with its weights, fetched unless they were before; else with random ones.
        settings: timm's arguments.

    Raises:
        Absent: if it does not make it.
    """
    if pretrained and not name.startswith(LOCAL):
        log.info("%s: asking the hub for its weights; without a network that is given up after about a minute", name)
    library = logging.getLogger("huggingface_hub")  # it tells of every try, which says no more than the last one
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:  # what an absent name, network or file raises differs
        raise Absent((str(error) or type(error).__name__).splitlines()[0][:LONGEST]) from error
    finally:
        library.setLevel(level)
