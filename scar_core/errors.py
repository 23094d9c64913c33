"""The tree of errors.

ScarError                 something an operator can fix
├── InputError            the input or the flags need fixing: exit code 2
│   ├── SchemaError       a table lacks a column or holds another type
│   └── RankerError       a ranker directory cannot be used
└── RunError              the run broke: exit code 1
    ├── PoolFileError     a file of the pool is not what it was when the run was planned
    ├── IncompleteError   rows or files are missing: counts do not close
    └── NonFiniteError    a loss or a gradient is not a number

Each takes one string, because errors travel between processes by pickle.
"""


class ScarError(Exception):
    """Something an operator can fix; the text says where, found, wanted and what next."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)


class InputError(ScarError):
    """The input or the flags need fixing before a run can start."""

    exit_code = 2


class SchemaError(InputError):
    """A table lacks a column, or a column holds a type that is not text."""


class RankerError(InputError):
    """A directory is not a ranker that this version can load."""


class RunError(ScarError):
    """The run started and broke."""


class PoolFileError(RunError):
    """A file of the pool is gone, changed, or cannot be read on."""


class IncompleteError(RunError):
    """Rows or files are missing: what went in is not what came out."""


class NonFiniteError(RunError):
    """A loss or a gradient stopped being a number."""
