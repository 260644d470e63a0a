"""How good a trained model is, whether it is good enough, and what it says of single images.

`metrics` counts, `inference` runs the network, `mistakes` draws, `gate` judges, `corruptions` and `robustness` make it
hard for the network, `pictures` and `predict` serve images from outside the data set. Which files the figures go to is
`resflow.stages.evaluate` and `resflow.stages.robustness`.
"""
