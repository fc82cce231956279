"""What a method is, and how it is carried through training. Nothing here knows a method by name.

``base``         the class that every method derives from, with all hooks; read this first
``stage``        the parts of a task's training
``learner``      a network with the strategies that train it together, as one module whose state is the checkpoint
``traits``       what decides with which others a strategy goes together
``composition``  which strategies go together, with which network, stream and options
``stack``        many learners of one structure as one, for fleets
``compilation``  ``trainer.compile``
``microbatch``   ``trainer.microbatch``
``parts``        what several methods share
"""
