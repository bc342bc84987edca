"""Training of populations: many small runs that differ in numbers, as one program.

  cohort      what a cohort is: members, model, optimizer, steps (plain data, no jax)
  batch_order the batch of step s as a pure function of (seed, s)
  state       TrainState and its initialization
  tasks       from example numbers to inputs, targets and losses
  population  the compiled program of a cohort: init, K steps, evaluation
  planning    batching, chunk and steps per call: decided once, then kept
  loop        train a cohort: calls, metrics, checkpoints, preemption
  checkpoint  asynchronous, verified checkpoints; metrics  the metrics file

Importing this package loads nothing heavy; import the modules.
"""
