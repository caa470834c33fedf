"""Who may compute while speed is measured: nobody else that shares the store.

Builds and screens hold the lock together, a measurement holds it alone. The kernel drops it with its process.
"""

from contextlib import AbstractContextManager

from tasks.store.store import Store

_KEY = "quiet"


def at_work(store: Store) -> AbstractContextManager[None]:
    """While this process builds or screens; waits for a measurement to end."""
    return store.lock(_KEY, shared=True)


def quiet(store: Store) -> AbstractContextManager[None]:
    """While this process measures; waits for builds, screens and other measurements to end. Not reentrant."""
    return store.lock(_KEY)
