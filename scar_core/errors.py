"""The tree of errors.

ScarError                 something an operator can fix
├── InputError            the input or the flags need fixing: exit code 2
│   ├── SchemaError       a table lacks a column or holds another type
│   └── RankerError       a ranker directory cannot be used
├── AccessError           a store refuses, lacks the bucket, or cannot be reached: exit code 2
├── RunError              the run broke: exit code 1
│   ├── PoolFileError     a file of the pool is not what it was when the run was planned
│   ├── IncompleteError   rows or files are missing: counts do not close
│   ├── StoreError        a store stopped answering
│   ├── NonFiniteError    a loss or a gradient is not a number
│   └── LeaseLostError    another run has, or may have, taken the curation over
└── LeaseError            another run holds the curation: exit code 3

Each takes one string, because errors travel between processes by pickle.
"""


class ScarError(Exception):
    """Something an operator can fix; the text says where, found, wanted and what next."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """The text as it was given: Ray Data adds advice on its own flags to `args`."""
        return self.message


class InputError(ScarError):
    """The input or the flags need fixing before a run can start."""

    exit_code = 2


class SchemaError(InputError):
    """A table lacks a column, or a column holds a type that is not text."""


class RankerError(InputError):
    """A directory is not a ranker that this version can load."""


class AccessError(ScarError, OSError):
    """A store refuses, lacks the bucket, or cannot be reached at the start.

    No InputError: whoever takes one for a fault of what was to be read would blame the wrong thing.
    """

    exit_code = 2


class RunError(ScarError):
    """The run started and broke."""


class PoolFileError(RunError):
    """A file of the pool is gone, changed, or cannot be read on."""


class IncompleteError(RunError):
    """Rows or files are missing: what went in is not what came out."""


class StoreError(RunError, OSError):
    """A store stopped answering, however often it was asked."""


class NonFiniteError(RunError):
    """A loss or a gradient stopped being a number."""


class LeaseLostError(RunError):
    """A run that held a curation cannot know any more that no other run does."""


class LeaseError(ScarError):
    """Another run holds the curation and is alive."""

    exit_code = 3
