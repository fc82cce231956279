"""Arguments of sub-commands that have options of their own."""

import argparse
from typing import NoReturn

from clbench.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse, with errors in the project's way."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message} (see --help)")
