"""A Claude API, with Gemini and OpenAI beside it, that runs without a key: to try the gateway out, to test it, to
measure it.

An app of its own. Nothing here may import the rest of `service`, nor `observability`; nothing there may import this,
except the command line, which starts it.
"""
