"""Adds the folders with YAML files that are not clbench's own to Hydra's search path; see :func:`clbench.conf_files.config_file`.

Hydra finds plugins by importing every module of this package, also in other applications, whose search paths are left alone.
"""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class ClbenchSearchPath(SearchPathPlugin):
    """See the module docstring."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it looks for anything."""
        if "clbench.conf_files" not in sys.modules:
            return
        from clbench.conf_files import added_config_dirs, conf_dir

        if not any(element.path.endswith(str(conf_dir())) for element in search_path.get_path() if element.path):
            return
        for folder in added_config_dirs():
            search_path.append(provider="command line or plug-in", path=f"file://{folder.resolve()}")
