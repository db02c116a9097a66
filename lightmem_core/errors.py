"""Every error a caller may want to catch, in one place.

LightMemError
├── ConfigError          the configuration is wrong; nothing has run yet
├── InputError           a source cannot be read at all, or too many of its rows are bad
├── ComponentError       a plugged-in model broke its contract (wrong count, wrong shape)
├── StoreError           the store on disk does not fit the configuration or the request
├── ReconcileError       a run's messages in and out do not add up
├── RequestError         a request is wrong by itself, and stays so however often it is made
│   └── ConflictError    as things stand, what is asked for cannot be done
├── NotFoundError        the user has no such memory
├── LLMUnavailableError  the language model cannot be reached; the run can be resumed
└── BudgetError          the run's tokens or money are spent; it can be resumed with more
"""


class LightMemError(Exception):
    """Base class of every error raised on purpose by this project."""


class ConfigError(LightMemError):
    pass


class InputError(LightMemError):
    pass


class ComponentError(LightMemError):
    pass


class StoreError(LightMemError):
    pass


class ReconcileError(LightMemError):
    pass


class RequestError(LightMemError, ValueError):
    pass


class ConflictError(RequestError):
    pass


class NotFoundError(LightMemError, KeyError):
    def __str__(self) -> str:
        return Exception.__str__(self)


class LLMUnavailableError(LightMemError):
    pass


class BudgetError(LightMemError):
    pass


# What ends a run early and is no fault of its rows. The configuration is at fault where a model
# takes no request at all.
STOPS = (LLMUnavailableError, BudgetError, ConfigError)
