"""The small files of a workdir as a run writes them, at their least."""

DONE = {"steps": 10, "steps_timed": 10, "seconds": 60.0}
LINEAGE = {
    "id": "t-12345678",
    "kin": "f00d",
    "words": "t (x, 3 steps)",
    "seed": 0,
    "parents": [],
    "config": {
        "dataset": "x",
        "init": "random",
        "trainable": "all",
        "steps": 3,
        "augment": {},
        "input": {"center_crop": 0.875},
        "image_size": 16,
        "model": {"arch": "resnet10", "width": 4, "stem": "small", "stem_stride": 2},
    },
    "dataset": None,
    "pixel_mean": [0.0, 0.0, 0.0],
    "pixel_std": [1.0, 1.0, 1.0],
    "versions": {"jax": "9.9"},
}
EVALUATION = {"val": 0.5, "test": 0.6, "selected_by": "", "selections": [], "labelled": []}
