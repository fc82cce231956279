"""Samples: where they come from, and where they are held. Begin with ``store``, which all of training reads from.

``store``        decoded samples on the device, the host or memory-mapped
``images``       what a source gives: samples, labels and a content hash; ``text`` the same of texts
``location``     where data sets lie, and whether they are the ones they should be
``augment``      random transformations of a batch
``decode``       image files to arrays, once; ``image_file`` one of them, ``image_folders`` which of them
``same_images``  images that occur twice

A source is a registered function: see ``digits``, then ``torchvision_sources`` and ``folder_sources``; of texts ``text_sources``
(intents), ``sentence_sources`` (a label and a sentence a line), ``instruction_sources`` (tasks in words, with answers) and
``answer_folders`` (of a user's own), ``small_requests`` (made here).
"""
