"""Training: `loop` is one worker's in plain torch, `cluster` is Ray around it, `job` what it is given to train."""
