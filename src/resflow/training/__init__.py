"""Training: `loop` is one worker's training in plain torch, `cluster` puts Ray Train around it."""
