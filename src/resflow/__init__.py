"""resflow trains residual networks for image classification as a reproducible, distributed batch workflow.

Importing it does no work; `resflow.nets.create` builds networks, the `resflow` command does the rest.
"""
