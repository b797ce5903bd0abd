"""Bytes from origins: aiohttp on a thread of its own, and the bridge to it.

Nothing here knows what the bytes are for. `open_bridge` starts the thread; `Http` asks.
"""
