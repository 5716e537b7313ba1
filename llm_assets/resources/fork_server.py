"""Preloaded by the fork server and imported by nothing else: the server ends without tearing its modules down.

It only ever holds modules for its children, so there is nothing to flush; a teardown would report DuckDB's objects as
leaks on the terminal after the last line of a run. Steps are unaffected: a forked child runs no exit handlers of its
parent.
"""

import atexit
import os

atexit.register(os._exit, 0)
