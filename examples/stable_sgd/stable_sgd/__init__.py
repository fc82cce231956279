"""A method for clbench in a package of its own."""
