"""Does the work. Rooms import one way: app -> web -> pipeline -> {upstream | account} -> {record, errors} -> observability.

Siblings never import each other; `simulator` imports nothing of the rest and nothing imports it but `cli`.
"""

__version__ = "0.1.0"
