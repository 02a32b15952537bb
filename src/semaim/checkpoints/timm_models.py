"""Creation of timm models, optionally with weights from the hub; errors have one-line messages."""

from __future__ import annotations

import logging
from typing import Any

import timm

log = logging.getLogger(__name__)
MAX_REASON = 250  # characters of a reason given by timm or the hub
LOCAL = "local-dir:"  # prefix of a folder in the format of the hub


class ModelUnavailable(Exception):
    """The model does not exist or its weights cannot be fetched; the message is that of timm or the hub's library."""


def create(name: str, pretrained: bool, **settings: Any) -> Any:
    """Call `timm.create_model`.

    Args:
        name: timm's model name, or `hf-hub:<repository>` or `local-dir:<folder>`.
        pretrained: load its weights, from the hub or its local cache; else random weights.
        settings: timm's arguments.

    Raises:
        ModelUnavailable: if timm cannot create the model.
    """
    if pretrained and not name.startswith(LOCAL):
        log.info("%s: fetching its weights from the hub; without a network this fails after about a minute", name)
    library = logging.getLogger("huggingface_hub")  # it logs every retry
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:  # timm raises various exceptions for a missing name, network or file
        raise ModelUnavailable((str(error) or type(error).__name__).splitlines()[0][:MAX_REASON]) from error
    finally:
        library.setLevel(level)
