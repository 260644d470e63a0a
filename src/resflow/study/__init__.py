"""What structures cost, which is best under budgets, and the study that compares them by question.

Cost: `size` is what follows from the shape, `speed` what this machine makes of it; `kinds` names the kinds of layers
that both tell apart, `peak` is what the machine could do, `memory` what it has left, `analysis` puts structures side
by side, `tables` and `picture` show them, `folder` saves them. Which files of the pipeline they go to is
`resflow.stages.analyze`.

Of the search, `space` is what varies, `budget` what is excluded, `trial` one training, `plan` which trainings there
are; `search` runs them on Ray; `front` and `results` say what was found, `apply` writes it into params.yaml.

Of the study, `experiments` is what is asked, `measurement` one run, `record` what is kept of it; `campaign` runs what
is missing; `statistics` tells differences from noise, `cells` compares, `answers` says it in words, `figures` draws
it, `report` makes the page.
"""
