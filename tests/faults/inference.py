"""Faults in inference."""

FAULTS = [
    (
        "speculation: residual the wrong way round",
        "inference/speculative.py",
        "rest = (p - q).clamp_min(0)",
        "rest = (q - p).clamp_min(0)",
        "tests/inference/test_speculative.py",
    ),
    (
        "speculation: redrawn from the target itself",
        "inference/speculative.py",
        "draw(residual(p[rows, accepted], padded[rows, accepted]), generator)",
        "draw(p[rows, accepted], generator)",
        "tests/inference/test_speculative.py",
    ),
    (
        "speculation: accepted after a refusal",
        "inference/speculative.py",
        ".long().cumprod(1).sum(1)",
        ".long().sum(1)",
        "tests/inference/test_speculative.py",
    ),
    (
        "thinned tokens: the most distinct go",
        "inference/tokens.py",
        ".argsort(1)[:, :count]",
        ".argsort(1, descending=True)[:, :count]",
        "tests/inference/test_tokens.py",
    ),
    (
        "thinned tokens: positions in the thinned sequence",
        "inference/tokens.py",
        "index.gather(1, chosen)",
        "chosen",
        "tests/inference/test_tokens.py",
    ),
    (
        "shared basis: singular values dropped",
        "inference/kv_cache/low_rank.py",
        "(u[..., :rank] * s[..., None, :rank])",
        "u[..., :rank]",
        "tests/inference/test_kv_cache.py",
    ),
    (
        "shared basis: the smallest directions",
        "inference/kv_cache/low_rank.py",
        "v[..., :rank, :]",
        "v[..., -rank:, :]",
        "tests/inference/test_kv_cache.py",
    ),
    (
        "averaged layers: the most similar kept",
        "inference/kv_cache/averaged.py",
        "largest=False",
        "largest=True",
        "tests/inference/test_kv_cache.py",
    ),
    (
        "averaged layers: lengths averaged too",
        "inference/kv_cache/averaged.py",
        "unit.mean(1)",
        "x.mean(1)",
        "tests/inference/test_kv_cache.py",
    ),
]
