"""Continual-learning methods, one file each, named after the method; the file's docstring gives equations and source.

Begin with ``finetune`` (nothing), ``l2`` (a penalty) and ``er`` (a memory); what a method may do is in
:mod:`clbench.learning.base`, what several share in :mod:`clbench.learning.parts`. A file that is put here is found by itself.
"""
