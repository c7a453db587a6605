"""Images as code numbers: an autoencoder's codebook, clustered to any size, is a codec for very few bits; lost numbers are guessed.

    image -> grid of nearest codes -> log2 K bits per number -> decoder;     codebook of K codes = k-means of the 256 codes, then tuned
    with encoder and decoder fixed;     lost numbers = the most probable of a masked transformer given those that arrived

Source: Mao et al., "Extreme Image Compression using Fine-tuned VQGANs", DCC 2024. Their stream codes every number alike, as here; their
code clusters to K = 1024 and more (8 in a comment), and has no masked transformer.
The authors' scripts need their trained networks and were not run beside this.

Miniature: MNIST, 28 x 28, an autoencoder with a grid of 7 x 7. 500 test images in one stream at K = 64, 32 and 16: 37 to 25 bytes per
image, header and checksum counted. `distance` is that of a classifier's features, mean of the three rates. Baseline: JPEG with
at least the same bytes, all images in one picture, at full or half resolution, whichever is better. `lost_distance`: at K = 32, when 20 % of the numbers are
lost. Control: the same codec with a lost number replaced by its nearest neighbour; `random`: by any code; `clustered`: codebooks
not tuned. The autoencoder, the classifier and the prior are trained once per seed or once for all, and shared by the arms.
Deviations: squared error alone, no perceptual or adversarial loss; the prior is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.beds.vq import Pixels, feature_distance, jpeg
from limbeck.codecs.index_codec import Autoencode, IndexCodec, with_fewer_codes
from limbeck.codecs.index_prior import IndexPrior, PredictLost, fill_nearest, fill_random
from limbeck.experiments import Arm, Comparison, Miniature, Paper
from limbeck.tasks import CustomTask
from limbeck.training import TrainingConfig

BED = Pixels("mnist")
SIZES, FRAGILE, LOST = (64, 32, 16), 32, 0.2
TUNING, RESTORING = 60, 200  # steps


def codec_of(run, codes: int, tuned: bool):
    """The autoencoder with fewer codes, from the store where another arm of this seed made it."""
    whole, steps = BED.autoencoder(run), TUNING if tuned else 0
    key = {"bed": BED.digest(), "what": "fewer codes", "codes": codes, "steps": steps, "seed": run.seed, "version": 1}
    generator = run.generator(f"{codes} codes")
    config = TrainingConfig(steps=max(steps, 1), batch_size=64, learning_rate=5e-4)

    def tune(model) -> None:
        if tuned:
            parts = ("before", "quantizer", "after")
            run.train(Autoencode(model, parts), BED.task(), config, counted=False)

    return run.trained(key, lambda: with_fewer_codes(whole, codes, generator), tune)


def prior_of(run, model) -> IndexPrior:
    """A masked transformer over the code numbers of the train images."""
    images = BED.images("train")
    grid = model.indices(images[:1].float() / 255).shape[1:]
    key = {"bed": BED.digest(), "what": "prior", "codes": FRAGILE, "steps": RESTORING, "seed": run.seed, "version": 1}

    def train(prior) -> None:
        indices = torch.cat([model.indices(part.float() / 255) for part in images.split(500)])
        rows = {"indices": indices, "labels": torch.zeros(len(indices), dtype=torch.int64)}
        task = CustomTask({"train": rows, "test": rows}, inputs=("indices",), version=BED.digest())
        config = TrainingConfig(steps=RESTORING, batch_size=64, learning_rate=2e-3, warmup=0.1)
        run.train(PredictLost(prior), task, config, counted=False)

    return run.trained(key, lambda: IndexPrior(FRAGILE, *grid), train)


def restored(run, model, indices: Tensor, fill: str) -> Tensor:
    lost = torch.rand(indices.shape, generator=run.generator("lost")) < LOST
    if fill == "prior":
        return prior_of(run, model).fill(indices, lost, rounds=2)
    if fill == "nearest":
        return fill_nearest(indices, lost)
    return fill_random(indices, lost, model.quantizer.size, run.generator("guess"))


def coded(run, fill: str, tuned: bool = True):
    """Encode, decode from the bytes, and measure; then lose some numbers of one stream and fill the gaps."""
    images, classifier, found, distances = BED.images(run.split).float() / 255, BED.classifier(run), {}, []
    for codes in SIZES:
        codec = IndexCodec(codec_of(run, codes, tuned))
        data = codec.encode(images)
        distances.append(feature_distance(classifier, images, codec.decode(data)))
        found[f"distance_{codes}"], found[f"bytes_{codes}"] = distances[-1], len(data) / len(images)
    codec = IndexCodec(codec_of(run, FRAGILE, tuned))
    indices = codec.unpack(codec.pack(codec.model.indices(images)))
    again = codec.model.decode(restored(run, codec.model, indices, fill))
    lost = feature_distance(classifier, images, again)
    return {"distance": sum(distances) / len(distances), "lost_distance": lost, **found}


def jpeg_coded(run):
    """JPEG with the bytes that the codes take without entropy coding, or the fewest it can."""
    images, classifier, found, distances = BED.images(run.split), BED.classifier(run), {}, []
    grid = images.shape[2] * images.shape[3] // 16
    for codes in SIZES:
        back, size = jpeg(images, 20 + len(images) * grid * (codes - 1).bit_length() / 8)
        distances.append(feature_distance(classifier, images.float() / 255, back.float() / 255))
        found[f"distance_{codes}"], found[f"bytes_{codes}"] = distances[-1], size / len(images)
    return {"distance": sum(distances) / len(distances), **found}


paper = Paper(
    id=56,
    title="Extreme Image Compression using Fine-tuned VQGANs",
    claim="At very few bits a clustered codebook looks nearer to the image than a usual codec, and a fifth of its indices can be lost.",
    composition="vq_autoencoder + with_fewer_codes + Autoencode + IndexCodec + IndexPrior",
    method=Arm(coded, {"fill": "prior"}, about="codes, lost ones restored by the masked prior"),
    baseline=Arm(jpeg_coded, about="JPEG with at least the same bytes"),
    control=Arm(coded, {"fill": "nearest"}, about="codes, lost ones from the nearest neighbour"),
    others={
        "random": Arm(coded, {"fill": "random"}, about="codes, lost ones at random"),
        "clustered": Arm(coded, {"fill": "prior", "tuned": False}, about="clustered codes without tuning"),
    },
    comparisons=(
        Comparison(text="nearer to the image than JPEG"),
        Comparison("lost_distance", against="control", text="the prior restores better than the nearest neighbour"),
        Comparison("lost_distance", against="random", text="and better than chance"),
        Comparison(against="clustered", decisive=False, text="tuning the clustered codebook helps"),
    ),
    miniature=Miniature(
        beds=(BED,),
        seeds=3,
        equal=(),
        why_unequal="JPEG is not trained; it gets at least the bytes that the codes take",
    ),
    metric="distance",
    better="lower",
    left_out="perceptual and adversarial losses, large photographs, people's judgement, and the prior as an entropy coder",
)
