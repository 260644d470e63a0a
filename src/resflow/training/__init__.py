"""Training: `loop` is one worker's in plain torch, `cluster` is Ray Train around it, `reader` Ray Data before it."""
