"""A Claude API that runs without a key: for trying the gateway out, for its tests and for its benchmarks.

An app of its own. Nothing here may import the rest of `service`, nor `observability`; nothing there may import this,
except the command line, which starts it.
"""
