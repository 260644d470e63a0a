"""Which structure is best: a search under budgets, what is kept of its trainings, and its front.

`space` is what varies, `budget` what is excluded, `trial` one training, `plan` which trainings there are; `search` runs
them on Ray; `front` and `results` say what was found, `apply` writes it into params.yaml.
"""
