"""What is emitted and what is wrong. Imports nothing of `service`; knows no request, only values handed to it.

Every name that leaves the process (metric, span, attribute, log event) stands in `catalog`, nowhere else as a literal.
"""
