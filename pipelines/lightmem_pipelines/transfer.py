"""Import as a run: into a store that is there or is made, and kept in its ledger."""

from __future__ import annotations

from dataclasses import asdict

from lightmem_core import factory
from lightmem_core.config import Config
from lightmem_core.long_term.objects import filesystem
from lightmem_core.long_term.restore import import_rows, read_manifest
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_pipelines.files import options_for
from lightmem_pipelines.running import running


def import_into(config: Config, folder: str) -> Run:
    """Add an export to the store and return the finished run.

    Raise InputError if the folder holds no export of this release, or one of other vectors.
    """
    system, path = filesystem(folder, options_for(folder, config.memory.store))
    embedder = factory.embedder(config.memory)
    model = VectorModel.of(embedder)
    manifest = read_manifest(system, path, model)
    store = MemoryStore.create(config.memory.store, model)
    with running(store, "import", {"folder": folder}) as run:
        counts = import_rows(store, system, path, manifest, embedder)
        run.report = {"rows": {kind: asdict(count) for kind, count in counts.items()}}
    return run.finished
