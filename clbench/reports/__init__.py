"""Tables and figures. Reads run folders only, and imports no torch. Begin with ``comparison``.

``loading``     run folders as one table; ``labels`` what a run is called; ``run_list`` the sub-command ``runs``
``checks``      what may be compared; ``counting`` what enters a mean; ``statistics`` tests and intervals
``comparison``  everything that a report shows, computed once
``tables``      what all tables are; the tables are in ``main_table``, ``measurement_tables``, ``plasticity_tables``,
                ``connectivity_tables``, and in ``protocols`` for studies
``figures``     which figures there are; numbers in ``figure_data`` and ``quantity_data``, looks in ``palette``, drawn by
                ``print_figures`` and ``interactive_figures`` (of ``interactive_traces``); ``curve_figure`` draws one run
``page``        the report as HTML; ``text_formats`` as Markdown, LaTeX and CSV
``command``     the sub-command ``report`` (``arguments``); ``end_of_run`` and ``after_sweep`` what is shown without being asked
"""
