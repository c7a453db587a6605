"""Lossless compression with probabilistic circuits: a density that sums over any part of the pixels drives an entropy coder.

    bits = -sum_i log2 P(x_i | x_1 ... x_i-1),    each a quotient of two sums over the circuit

A tree of hidden states spans the pixels (a hidden Chow-Liu tree), fitted by expectation maximization. The coder needs every pixel's
conditional; summing the whole circuit again for each pixel costs D circuits, reusing what did not change a few (see `CircuitCodec`).
Source: Liu, Mandt and Van den Broeck, "Lossless Compression with Probabilistic Circuits", ICLR 2022. The authors' coder is rANS in the log
domain with 28 bits; ours has 24 bits and float64 probabilities, so that a decoder elsewhere reads the same numbers.
The authors' code is Julia and was not run beside this.

Miniature: MNIST, 8,000 images to learn from, 500 test images coded into one stream; what counts is its length, header and all, and
that it decodes to the same pixels. Baseline: the shortest of PNG, WebP (lossless) and bz2, each as one file per image or all images in one picture.
Control: the same codec with one state, so independent pixels. `few`: half the states. The models' own bytes are not in the
streams, as in the paper; no learned codec of the paper's comparison is run. The stream is 0.8 % shorter than the model's own likelihood
says: the coder gives every value at least one of its 2^24 shares, so that values the model finds all but impossible cost less there.
"""

from __future__ import annotations

import torch

from limbeck.beds.vq import Pixels, usual_codecs
from limbeck.codecs import CircuitCodec, HiddenTree
from limbeck.codecs.circuit_codec import depths
from limbeck.experiments import Arm, Comparison, Miniature, Paper

BED = Pixels("mnist")


def circuit(run, states: int, epochs: int, pseudocount: float):
    """Fit, encode, decode, compare; bits of the stream, of the model's likelihood, and the products counted."""
    train, images = (BED.images(split).flatten(1) for split in ("train", run.split))
    model = HiddenTree.grown(
        train, states, epochs=epochs, pseudocount=pseudocount, generator=run.generator("expectation maximization")
    )
    codec = CircuitCodec(model)
    data = codec.encode(images)
    products = codec.products
    run.record(parameters=model.transitions.numel() + model.emissions.numel(), bytes=len(data))
    with torch.no_grad():
        nats = sum(float(model.log_likelihood(part).double().sum()) for part in images.split(100))
    ideal, width = -nats / torch.log(torch.tensor(2.0)).item(), images.shape[1]
    return {
        "bits_per_pixel": 8 * len(data) / images.numel(),
        "likelihood_bits_per_pixel": ideal / images.numel(),
        "overhead": 8 * len(data) / ideal - 1,
        "exact": float(torch.equal(codec.decode(data), images)),
        "products": float(products),
        "products_root_path": float(depths(model.parents).sum()),
        "products_naive": float(width * (width - 1)),
    }


def usual(run):
    images = BED.images(run.split)
    found = usual_codecs(images)
    run.record(bytes=min(found.values()))
    bits = {f"bits_per_pixel_{name}": 8 * size / images.numel() for name, size in found.items()}
    return {"bits_per_pixel": min(bits.values()), **bits}


paper = Paper(
    id=246,
    title="Lossless Compression with Probabilistic Circuits",
    claim="Hidden Chow-Liu trees code MNIST in fewer bits than general codecs, exactly and with few evaluations of the circuit.",
    composition="HiddenTree (Chow-Liu tree, expectation maximization) + CircuitCodec (depth-first conditionals, rANS)",
    method=Arm(circuit, {"states": 16, "epochs": 2, "pseudocount": 1.0}, about="hidden tree of 16 states"),
    baseline=Arm(usual, about="the shortest of PNG, WebP and bz2"),
    control=Arm(circuit, {"states": 1, "epochs": 2, "pseudocount": 1.0}, about="independent pixels"),
    others={"few": Arm(circuit, {"states": 8, "epochs": 2, "pseudocount": 1.0}, about="hidden tree of 8 states")},
    comparisons=(
        Comparison(text="fewer bits than PNG, WebP and bz2"),
        Comparison(against="control", text="fewer bits than independent pixels"),
        Comparison(against="few", decisive=False, text="more states, fewer bits"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=3,
        equal=(),
        why_unequal="general codecs are not trained; what is compared is the length of the streams",
    ),
    metric="bits_per_pixel",
    better="lower",
    left_out="circuits as priors of flows, colour images, and timing against neural codecs",
)
