"""`OwnFiles`: the files of the spool whose jobs this process works at."""

import threading

from serve_app.spool.folder import SpoolFolder
from serve_app.spool.spool_file import SpoolFile
from serve_app.spool.spooled_job import SpooledJob


class OwnFiles:
    """The files that this process has taken or written, by their jobs, each with its lock.

    Any thread may call any method. Where several write the same job, the file that is in place at
    the end counts.
    """

    def __init__(self, folder: SpoolFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # of the files
        self._files: dict[str, SpoolFile] = {}

    @property
    def ids(self) -> frozenset[str]:
        """The jobs whose files these are."""
        with self._lock:
            return frozenset(self._files)

    def add(self, id: str, file: SpoolFile) -> None:
        """Keep a file with its lock; release it if another one is in its place by now."""
        with self._lock:
            obsolete: SpoolFile | None = file
            if file.is_in_place:
                obsolete = self._files.get(id)
                self._files[id] = file
        if obsolete is not None:
            obsolete.release()

    def write(self, job: SpooledJob, *, makes_room: bool) -> tuple[str, ...]:
        """Write a job, unless it is no further than its file; return the ids that made room.

        Raises what the folder's `write` raises.
        """
        with self._lock:
            file = self._files.get(job.id)
            if file is not None and file.is_in_place and file.progress == job.progress:
                return ()
        file, dropped = self._folder.write(job, makes_room=makes_room)
        self.add(job.id, file)
        return dropped

    def delete(self, id: str) -> None:
        """Delete a job's file, as the job has ended."""
        with self._lock:
            file = self._files.pop(id, None)
        if file is not None:
            file.delete()

    def release(self, id: str, file: SpoolFile | None = None) -> None:
        """Leave a job's file to whoever comes next; with `file`, only if it is still that one."""
        with self._lock:
            current = self._files.get(id)
            if current is None or file not in (None, current):
                return
            del self._files[id]
        current.release()
