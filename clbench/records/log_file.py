"""``clbench.log`` in a run folder: what the run says on the way, at level INFO, with warnings of everything that it uses."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NAME = "clbench.log"

FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"


@contextmanager
def log_files(folders: list[Path]) -> Iterator[None]:
    """Within this context, log records go to the log files of these run folders as well; of several runs that train together each
    has all."""
    root, own = logging.getLogger(), logging.getLogger("clbench")
    level = own.level
    with ExitStack() as stack:
        if not root.handlers:  # nobody has set up logging: warnings go on to stderr, as without our handlers
            stack.enter_context(_added(root, logging.lastResort or logging.StreamHandler()))
        for folder in folders:
            handler = logging.FileHandler(folder / NAME, delay=True, encoding="utf-8")
            handler.setFormatter(logging.Formatter(FORMAT))
            handler.setLevel(logging.INFO)
            stack.callback(handler.close)
            stack.enter_context(_added(root, handler))
        own.setLevel(min(own.getEffectiveLevel(), logging.INFO))
        stack.callback(own.setLevel, level)
        yield


@contextmanager
def _added(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
