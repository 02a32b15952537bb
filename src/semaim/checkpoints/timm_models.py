"""Creation of timm models, optionally with weights from the hub; errors have one-line messages."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants

from semaim.core.locks import one_at_a_time
from semaim.errors import CannotWrite

log = logging.getLogger(__name__)
MAX_REASON = 250  # characters of a reason given by timm or the hub
LOCAL = "local-dir:"  # prefix of a folder in the format of the hub


class ModelUnavailable(Exception):
    """The model does not exist or its weights cannot be fetched; the message is that of timm or the hub's library."""


def create(name: str, pretrained: bool, **settings: Any) -> Any:
    """Call `timm.create_model`. Of the processes that need the same weights from the hub, one fetches them.

    Args:
        name: timm's model name, or `hf-hub:<repository>` or `local-dir:<folder>`.
        pretrained: load its weights, from the hub or its local cache; else random weights.
        settings: timm's arguments.

    Raises:
        ModelUnavailable: if timm cannot create the model.
    """
    library = logging.getLogger("huggingface_hub")  # it logs every retry
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with ExitStack() as stack:
            if pretrained and not name.startswith(LOCAL):
                log.info(
                    "%s: fetching its weights from the hub; without a network this fails after about a minute", name
                )
                with suppress(OSError, CannotWrite):  # a cache that cannot be written needs no lock
                    stack.enter_context(one_at_a_time(_lock_file(name), f"fetching of {name}", then_together=True))
            return timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:  # timm raises various exceptions for a missing name, network or file
        raise ModelUnavailable((str(error) or type(error).__name__).splitlines()[0][:MAX_REASON]) from error
    finally:
        library.setLevel(level)


def _lock_file(name: str) -> Path:
    """The lock file of a model, in the hub's cache."""
    folder = Path(constants.HF_HUB_CACHE, ".locks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"semaim-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.lock"
