"""Where a service keeps its keys and feedback. Imports nothing, because every start of the command line needs it."""

DEFAULT_STORE = "runs/serving.sqlite"


def store_url(store: str) -> str:
    """A store as users name it, a file or a database URL, as a URL."""
    return store if "://" in store else f"sqlite:///{store}"
