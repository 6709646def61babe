"""`make bench`: what the gateway costs, measured side by side with a bare pass-through and the upstream itself.

Every process is one of these modules run with `-m`; the figures of one run are interleaved, so only compare within a run.
"""
