"""Processes that begin with everything imported: of a run that is started anew, importing takes most of the time."""

import multiprocessing
import pkgutil

import clbench

REGISTERED = ("strategies", "models", "data", "scenarios")
"""Folders whose modules a run imports to find what is registered in them."""

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "clbench.run",
        *(
            f"clbench.{folder}.{module.name}"
            for folder in REGISTERED
            for module in pkgutil.iter_modules([f"{clbench.__path__[0]}/{folder}"])
        ),
        "sklearn.datasets",  # the digits
        "torch._dynamo",  # which torch imports to count operations, and for vmap
    ]
)
