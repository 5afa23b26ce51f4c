"""A background thread that runs an iterator ahead of its consumer, or only while it waits; bounded, and always ends.

The thread knows the channel and the source but not the `Prefetcher`, so that dropping the last reference to the
consumer's side stops the thread; the interpreter's exit does the same.
"""

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Generator
from typing import Any


def batches_ahead(*, on_cpu: bool, local: bool) -> int:
    """How far to work ahead where nobody says. On a CPU loading takes the cores that the step needs: side by side both are slower than one
    after the other (docs/loading.md), unless loading means waiting for a network."""
    return 0 if on_cpu and local else 2


class Channel:
    """At most `depth` items between one producer and one consumer, and one more while the consumer waits; either side may close it."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[Any] = deque()
        self._error: BaseException | None = None
        self._closed = self._awaited = False
        self._changed = threading.Condition()  # its lock is reentrant: a finalizer may close while `put` holds it

    def wait_for_room(self) -> bool:
        """Block until an item may be put; False when the channel has been closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth + self._awaited)
            return not self._closed

    def put(self, item: Any) -> None:
        """Hand over one item; call `wait_for_room` first."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout_s: float | None = None) -> Any:
        """The next item. Raises the producer's error, with its traceback, StopIteration after the last item, or TimeoutError."""
        with self._changed:
            self._awaited = True
            self._changed.notify_all()
            came = self._changed.wait_for(lambda: self._closed or self._items, timeout_s)
            self._awaited = False
            if not came:
                raise TimeoutError
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            raise self._error or StopIteration

    def close(self, error: BaseException | None = None, *, drop: bool = False) -> None:
        """End the stream: after what is queued (or at once, with `drop`) the consumer gets `error` or the end."""
        with self._changed:
            self._closed, self._error = True, self._error or error
            if drop:
                self._items.clear()
            self._changed.notify_all()


class Prefetcher:
    """Iterates `source` in a thread, at most `depth` finished items ahead (0: only while `next` waits); `source` is closed in that thread."""

    def __init__(self, source: Generator[Any, None, None], *, depth: int) -> None:
        self._channel = Channel(depth)
        # Daemon: the finalizer below ends it at exit; a plain thread would be waited for before that runs.
        thread = threading.Thread(target=_pump, args=(source, self._channel), name="dsengine-prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, _stop, self._channel, thread)
        # The finalizer's own turn at exit may come after DALI's, which hangs on a pipeline that a thread is running.
        # Exit functions run last registered first, so this one comes before that of any library imported until now.
        atexit.register(self._finalizer)
        thread.start()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> Any:
        return self._channel.get()

    def next(self, timeout_s: float | None) -> Any:
        """The next item; TimeoutError where it takes longer than that."""
        return self._channel.get(timeout_s)

    def abandon(self) -> None:
        """Stop, but do not wait for a thread that hangs: it ends when it wakes, or with the process."""
        self._channel.close(drop=True)
        self._finalizer.detach()
        atexit.unregister(self._finalizer)

    def close(self) -> None:
        """Stop and join the thread; items not yet taken are dropped."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def _pump(source: Generator[Any, None, None], channel: Channel) -> None:
    error = None
    try:
        while channel.wait_for_room():
            try:
                item = next(source)
            except StopIteration:
                break
            channel.put(item)
            del item  # the queue owns it now: a batch must not outlive its consumer while this thread waits
    except BaseException as caught:  # whatever it is belongs to the consumer
        error = caught
    finally:
        try:
            source.close()
        finally:
            channel.close(error)


def _stop(channel: Channel, thread: threading.Thread) -> None:
    channel.close(drop=True)
    if thread is not threading.current_thread():  # the garbage collector may run this in the thread itself
        thread.join()
