"""Ray around the loop: `trainer` fits a `job.Job` by Ray Train, here or on a cluster; `worker` is what each one runs.

`session` starts Ray or joins a cluster, whose `address` is checked before; `post` is what driver and workers tell each
other; `reader` reads by Ray Data what is streamed. Nothing is imported here: a task of Ray Data needs no torch.
"""
