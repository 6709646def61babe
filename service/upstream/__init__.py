"""Talks to providers; the only room that knows httpx (and aiohttp under it). Foreign exceptions are mapped here, once."""
