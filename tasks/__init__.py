"""Prefect tasks: run one DVC stage, judge, register, publish. What they do is plain functions of `resflow`."""
