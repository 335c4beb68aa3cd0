"""Approximate vector search with FAISS. All vectors are (n, width) and have length 1, so that an inner product is a
cosine similarity."""


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
