"""What unit tests share: properties are tried without a clock, by which a busy machine would fail them."""

from hypothesis import settings

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")
