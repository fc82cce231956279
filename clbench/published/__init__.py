"""Published tables: the figures of a paper beside those of clbench's runs. Begin with ``tables``.

``tables``      files in ``conf/table/``: every cell's figure, its source, and the overrides that make it
``results``     the runs of a cell, read from their folders
``comparison``  two means and their spreads, and what is said of them
``page``        all of it as Markdown and CSV
``committed``   the CSV files in ``reports/published/``, for the description of a strategy
"""
