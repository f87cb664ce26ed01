"""MoCE (arXiv 2402.05382) from beginning to end: one masked autoencoder, and of it a dense one for each task.

    python examples/moce_mae.py [--steps 400] [--seeds 1]

Images of two worlds, digits and textures, are reconstructed from half of their patches.  (1) A dense autoencoder
learns on all.  (2) Its features make clusters.  (3) It goes on with experts that the cluster of an image chooses,
beside two that take as many steps: dense, and experts that each token chooses.  (4) For each world the path of its
clusters is cut out as a plain ViTMAE, and classes are read off the features of each encoder by logistic regression.
Takes less than a minute on a CPU core of its own; needs scikit-learn.
"""

import argparse
import math

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import libmoe
from libmoe.methods.moce import set_centroids
from libmoe.models import BackboneConfig, build_backbone, extract_group, image_features, to_plain
from libmoe.routers.clustering import balanced_clusters, nearest_cluster, vote

CLUSTERS, EXPERTS, PROBED = 8, 4, 300
"""``PROBED``: images of a world whose classes the probe is told; the rest are asked."""
LAST_BLOCKS = "vit.layers.[12].mlp"
WORLDS = ("digits", "textures")
RATE = 4e-3
SHAPE = {
    "image_size": 8, "patch_size": 2, "num_channels": 1, "mask_ratio": 0.5, "norm_pix_loss": False,
    "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64, "initializer_range": 0.15,
}  # fmt: skip


def textures(count, seed=0):
    """Stripes of 8 x 8 pixels in -1 .. 1, ``[I, 1, 8, 8]``, and their direction, one of ten, ``[I]``."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 10, (count,), generator=draw)
    phase, length, noise = (torch.rand(count, *more, generator=draw) for more in ((1, 1), (1, 1), (8, 8)))
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    angle = (label * math.pi / 10).view(-1, 1, 1)
    wave = (column * angle.cos() + row * angle.sin()) * 2 * math.pi / (5 + 4 * length) + 2 * math.pi * phase
    return (0.8 * wave.sin() + 0.4 * noise - 0.2).unsqueeze(1), label


def worlds():
    """By world, images and classes; as many of each."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    digits = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)[order] / 8 - 1
    return {"digits": (digits, torch.tensor(data.target)[order]), "textures": textures(len(digits))}


def autoencoder(seed=0):
    """A masked autoencoder with three blocks of width 48, untrained."""
    config = BackboneConfig("vit_mae", 48, 3, intermediate_size=96, num_attention_heads=4, extra=SHAPE)
    return build_backbone(config, seed=seed)


def pretrain(model, pixels, steps, seed=0, cluster=None, note=""):
    """Reconstruct masked patches of random batches, which mix clusters."""
    torch.manual_seed(seed)  # masks, and the noise of gates
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in tqdm(range(steps), desc=note, leave=False, disable=not note):
        rows = torch.randint(len(pixels), (64,), generator=draw)
        with libmoe.options(side={} if cluster is None else {"cluster": cluster[rows]}):
            model(pixels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def continued(dense, method, options):
    """A copy of a trained autoencoder with experts in its last two blocks, each a copy of the FFN there."""
    model = autoencoder()
    model.load_state_dict(dense.state_dict())
    return libmoe.moeify(model, method, options=options, where=LAST_BLOCKS, init="copy", seed=0)


def stages(pixels, steps, seed=0, note=True, **options):
    """The dense model of stage 1, its clusters, and the model of stage 3."""
    dense = pretrain(autoencoder(seed), pixels, steps, seed, note="stage 1" if note else "")
    clusters = balanced_clusters(image_features(dense, pixels), CLUSTERS, seed=seed)
    given = {"num_experts": EXPERTS, "clusters": CLUSTERS, "renormalise": True, **options}
    model = continued(dense, "moce", given)
    set_centroids(model, clusters.centroid_CF)
    pretrain(model, pixels, steps, seed + 1, clusters.cluster_I, "stage 3" if note else "")
    return dense, clusters, model


@torch.no_grad()
def error(model, pixels):
    """Mean squared error of masked patches, the same masks for every model."""
    torch.manual_seed(0)
    return float(model.eval()(pixels).loss)


def probe(model, pixels, label):
    """Share of classes that logistic regression reads off the features."""
    feature = image_features(model, pixels).numpy()
    reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        feature[:PROBED], label[:PROBED]
    )
    return float(reader.score(feature[PROBED:], label[PROBED:]))


def one(steps, seed):
    """Rows ``(world, model, error, accuracy)``, and lines on clusters and paths."""
    data = worlds()
    pixels = torch.cat([data[world][0] for world in WORLDS])
    dense, clusters, moce = stages(pixels, steps, seed)
    by_token = continued(dense, "smoe", {"num_experts": EXPERTS, "top_k": 1, "renormalise": False})
    found = {
        "dense, going on": pretrain(continued(dense, "dense", {}), pixels, steps, seed + 1, note="dense"),
        "experts by token": pretrain(by_token, pixels, steps, seed + 1, note="experts by token"),
    }
    feature = {world: image_features(dense, data[world][0]) for world in WORLDS}
    chosen = {world: vote(feature[world], clusters.centroid_CF) for world in WORLDS}
    rows, lines = [], []
    for world, other in (WORLDS, WORLDS[::-1]):
        spread = torch.bincount(nearest_cluster(feature[world], clusters.centroid_CF), minlength=CLUSTERS)
        lines.append(f"{world}: cluster {chosen[world]} chosen; images by cluster {spread.tolist()}")
        paths = {
            "its own path": to_plain(extract_group(moce, chosen[world]).model),
            "the other's path": to_plain(extract_group(moce, chosen[other]).model),
        }
        for name, model in (("stage 1", dense), *found.items(), *paths.items()):
            rows.append((world, name, error(model, data[world][0]), probe(model, *data[world])))
    return rows, lines


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="of each stage")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    runs = [one(asked.steps, seed) for seed in range(asked.seeds)]
    print("\n".join(runs[0][1]))
    print(f"{'world':10} {'encoder':18} {'error':>7} {'probe':>7}   (means of {asked.seeds} seeds)")
    for cell in zip(*(rows for rows, _ in runs)):
        wrong, right = (sum(row[i] for row in cell) / len(cell) for i in (2, 3))
        print(f"{cell[0][0]:10} {cell[0][1]:18} {wrong:7.4f} {right:7.3f}")


if __name__ == "__main__":
    main()
