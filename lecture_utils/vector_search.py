"""Vector search at scale: FAISS indexes and a Qdrant database.

Vectors are (n, width), of length 1, so that an inner product is a cosine.
"""

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lecture_utils.chunking import Chunk


def clustered_vectors(around, count: int, seed: int = 0, noise: float = 0.06):
    """Return ``count`` vectors of length 1 as a float32 array: each is a row of ``around`` (n, width), drawn at
    random and shaken, so that they lie in clumps, as real texts do."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    vectors = around[torch.randint(len(around), (count,), generator=generator)]
    for block in vectors.split(10_000):  # in place: a million vectors are 1.5 GB
        block += noise * torch.randn(block.shape, generator=generator)
        torch.nn.functional.normalize(block, dim=1, out=block)
    return vectors.numpy()


def vector_index(kind: str, vectors):
    """Return a FAISS index of unit vectors (n, width) for inner products: ``flat`` (exact), ``IVF`` (4 √n
    clusters, fewer for few vectors) or ``HNSW`` (16 links a vector). Raises ValueError for another kind."""
    import faiss

    count, width = vectors.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
    elif kind == "IVF":
        clusters = max(1, min(int(4 * count**0.5), count // 39))  # k-means wants 39 vectors a cluster
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[: 40 * clusters])
    elif kind == "HNSW":
        index = faiss.IndexHNSWFlat(width, 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 60
    else:
        raise ValueError(f"There is no index {kind!r}. Choose one of: flat, IVF, HNSW.")
    index.add(vectors)
    return index


COLLECTION = "lecture"


def open_database(where: Path | str = ":memory:"):
    """Return a Qdrant client: in memory, on disk in the folder ``where`` (one process at a time), or of the server at
    ``where`` if it is an address (http…). The calls are the same."""
    from qdrant_client import QdrantClient

    where = str(where)
    if where.startswith(("http://", "https://")):
        return QdrantClient(url=where)
    return QdrantClient(":memory:") if where == ":memory:" else QdrantClient(path=where)


def point_id(chunk_id: str) -> str:
    """Return the id under which the database keeps a chunk: the same chunk has always the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, chunk_id))


def upsert_chunks(client, chunks: Sequence[Chunk], vectors) -> None:
    """Put chunks with their vectors (chunks, width) into the database; those it has already are replaced."""
    from qdrant_client import models as q

    if not client.collection_exists(COLLECTION):
        width = q.VectorParams(size=vectors.shape[1], distance=q.Distance.COSINE)
        client.create_collection(COLLECTION, vectors_config=width)
    client.upsert(
        COLLECTION,
        [
            q.PointStruct(id=point_id(piece.id), vector=vector.tolist(), payload=asdict(piece))
            for piece, vector in zip(chunks, vectors, strict=True)
        ],
    )


def query_chunks(client, vector, k: int = 5, notebook: str | None = None) -> list[tuple[Chunk, float]]:
    """Return the ``k`` nearest chunks and their cosines; with ``notebook``, only of that one."""
    from qdrant_client import models as q

    only = notebook and q.Filter(must=[q.FieldCondition(key="notebook", match=q.MatchValue(value=notebook))])
    found = client.query_points(COLLECTION, query=vector.tolist(), limit=k, query_filter=only, with_payload=True)
    return [(Chunk(**point.payload), point.score) for point in found.points]
