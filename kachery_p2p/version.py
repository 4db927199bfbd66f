"""The version of this package, and nothing else: reading it must cost nothing.

The build reads it from here, so that it is written down once.
"""

__version__ = "1.0.0a1"
