"""What structures cost, and which is best.

Cost: `size` is what follows from the shape, `speed` what this machine makes of it; `kinds` names the kinds of layers
that both tell apart, `peak` is what the machine could do, `analysis` puts structures side by side, `tables` and
`picture` show them, `folder` saves them. Which files of the pipeline they go to is `resflow.stages.analyze`.

A search under budgets, what is kept of its trainings, and its front: `space` is what varies, `budget` what is excluded,
`trial` one training, `plan` which trainings there are; `search` runs them on Ray; `front` and `results` say what was
found, `apply` writes it into params.yaml.
"""
