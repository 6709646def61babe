"""Joins the arithmetic of `policy` with the memory of `store`: who may go now, who waits, who is told to come back."""
