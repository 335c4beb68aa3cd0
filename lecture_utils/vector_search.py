"""Vector search at scale with FAISS indexes and a Qdrant database. All vectors are (n, width) and have length 1, so
that an inner product is a cosine similarity."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lecture_utils.chunking import Chunk

COLLECTION = "lecture"


def clustered_vectors(around, count: int, seed: int = 0, noise: float = 0.06):
    """Return ``count`` unit vectors as a float32 array. Each is a randomly drawn row of ``around`` (n, width) plus
    noise, so that they form clusters as the vectors of real texts do."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    vectors = around[torch.randint(len(around), (count,), generator=generator)]
    for block in vectors.split(10_000):  # in place, because a million vectors take 1.5 GB
        block += noise * torch.randn(block.shape, generator=generator)
        torch.nn.functional.normalize(block, dim=1, out=block)
    return vectors.numpy()


def vector_index(kind: str, vectors):
    """Return a FAISS index of unit vectors (n, width) for inner products: ``flat`` (exact), ``IVF`` (4 √n clusters, or
    fewer if there are few vectors) or ``HNSW`` (16 links per vector)."""
    import faiss

    count, width = vectors.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
    elif kind == "IVF":
        clusters = max(1, min(int(4 * count**0.5), count // 39))  # k-means asks for at least 39 vectors per cluster
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[: 40 * clusters])
    elif kind == "HNSW":
        index = faiss.IndexHNSWFlat(width, 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 60
    else:
        raise ValueError(f"There is no index {kind!r}. Choose one of: flat, IVF, HNSW.")
    index.add(vectors)
    return index


def open_database(where: Path | str = ":memory:"):
    """Return a Qdrant client, which is used in the same way in all three cases: in memory, on disk in the folder
    ``where`` (for one process at a time), or of the server at the address ``where`` (http…)."""
    from qdrant_client import QdrantClient

    where = str(where)
    if where.startswith(("http://", "https://")):
        return QdrantClient(url=where)
    return QdrantClient(":memory:") if where == ":memory:" else QdrantClient(path=where)


def point_id(chunk_id: str) -> str:
    """Return the id of a chunk in the database, which is always the same for the same chunk."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, chunk_id))


def upsert_chunks(client, chunks: Sequence[Chunk], vectors) -> None:
    """Store chunks with their vectors (chunks, width) in the database, and replace those that it already contains."""
    from qdrant_client import models as q

    if not client.collection_exists(COLLECTION):
        config = q.VectorParams(size=vectors.shape[1], distance=q.Distance.COSINE)
        client.create_collection(COLLECTION, vectors_config=config)
    points = [
        q.PointStruct(id=point_id(chunk.id), vector=vector.tolist(), payload=asdict(chunk))
        for chunk, vector in zip(chunks, vectors, strict=True)
    ]
    client.upsert(COLLECTION, points)


def query_chunks(client, vector, k: int = 5, notebook: str | None = None) -> list[tuple[Chunk, float]]:
    """Return the ``k`` nearest chunks with their cosine similarities, if wanted only from one ``notebook``."""
    from qdrant_client import models as q

    only = notebook and q.Filter(must=[q.FieldCondition(key="notebook", match=q.MatchValue(value=notebook))])
    found = client.query_points(COLLECTION, query=vector.tolist(), limit=k, query_filter=only, with_payload=True)
    return [(Chunk(**point.payload), point.score) for point in found.points]
