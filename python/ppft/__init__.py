"""pp under the name of its younger branch: `import ppft as pp`. See pp."""

from pp import (
    DestroyedServerError,
    Server,
    Statistics,
    Task,
    Template,
    __version__,
    default_port,
    pp,
    version,
)

__all__ = [
    "DestroyedServerError",
    "Server",
    "Statistics",
    "Task",
    "Template",
    "__version__",
    "default_port",
    "pp",
    "version",
]
