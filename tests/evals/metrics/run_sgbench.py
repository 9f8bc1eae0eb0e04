"""Measure cases with sgbench; runs in an environment of its own, without this project.

Reads a json file of cases and prints json: per case R@K and mR@K, put together over its images as
sgbench's own command does.
"""

import json
import sys

import numpy as np
from sgbench import match, metrics, pred


def measure(case) -> dict:
    parts = {f"{name}@{k}": [] for name in ("R", "mR") for k in case["ks"]}
    for image in case["images"]:
        found = image["predicted"]
        columns = zip(found["labels"], found["boxes"], strict=True)
        rows = [{"category": label, "bbox": box} for label, box in columns]
        entry = {"id": "0", "triplets": found["triplets"], "annotation": rows}
        parsed = pred.parse_pred({"images": [entry]})["0"]
        truth = image["truth"]
        regions = [np.array(image["truth"]["boxes"]), parsed.bboxes]
        if "masks" in truth:
            regions = [np.array(truth["masks"], bool), np.array(found["masks"], bool)]
        mapping = match.match_instances(
            regions[0], np.array(truth["labels"]), regions[1], parsed.categories
        )
        ranked = match.remap_triplets(mapping, parsed.triplets)
        true = np.unique(np.array(truth["triplets"]), axis=0)
        for k in case["ks"]:
            args = {"gt_triplets": true, "matched_triplets": ranked}
            args["num_predicates"] = case["num_predicates"]
            parts[f"R@{k}"].append(metrics.recall(k, False, **args))
            parts[f"mR@{k}"].append(metrics.recall(k, True, **args))
    out = {}
    for name, values in parts.items():
        table = np.array(values)
        used = table if table.ndim == 1 else table[:, ~np.isnan(table).all(0)]
        out[name] = float(np.nanmean(used, axis=0).mean())
    return out


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(json.dumps([measure(case) for case in json.load(file)]))
