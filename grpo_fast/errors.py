"""What a user can do wrong, by name. A message says what is wrong, where, and what to do."""

from __future__ import annotations


class GRPOFastError(ValueError):
    """The base of all of them."""


class BadCheckpoint(GRPOFastError):
    """A model folder or hub name that lacks a file, or whose files contradict each other."""


class MissingChatTemplate(BadCheckpoint):
    """No chat template to render messages with."""


class BadImage(GRPOFastError):
    """An image or video that cannot be read or shown to the model."""


class PromptMismatch(GRPOFastError):
    """The placeholders of a prompt and the images or videos of its sample disagree."""


class PromptTooLong(GRPOFastError):
    """A prompt over the limit: it is refused whole, since cutting it could cut through an image."""

    def __init__(self, message: str, tokens: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens


class BadGroup(GRPOFastError):
    """A group whose parts contradict each other: an empty completion, log-probs of another length, …."""


class BadSampling(GRPOFastError):
    """A sampling setting that says nothing, or contradicts the model or the other settings."""


class Diverged(GRPOFastError):
    """Logits that are not finite: no token can be drawn from them."""


class BadData(GRPOFastError):
    """A record of a data file that cannot be used: the message names file, line and reason."""


class BadReward(GRPOFastError):
    """A reward function that cannot be loaded, raises, or returns what is no reward."""


class BadSettings(GRPOFastError):
    """A setting that is unknown, or contradicts another."""


class RunFailed(GRPOFastError):
    """A run that had begun and cannot go on: what it had written is kept. Exit code 1."""
