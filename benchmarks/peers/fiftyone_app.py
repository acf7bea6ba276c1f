"""The task in FiftyOne: pictures as a grid and a map, and the neighbours of a product. `python fiftyone_app.py FOLDER PORT`; wants MongoDB (FIFTYONE_DATABASE_URI)"""
import sys

import fiftyone as fo
import fiftyone.brain as fob
import numpy as np
import pandas as pd

folder, port = sys.argv[1:]
table = pd.read_parquet(f"{folder}/wardrobe.parquet")
dataset = fo.Dataset("wardrobe", overwrite=True)
dataset.add_samples([fo.Sample(filepath=r.path, asin=r.asin, title=str(r.title or ""), label=fo.Classification(label=r.ground_truth), also_buy=list(r.also_buy)) for r in table.itertuples()])
X = np.stack(table["vector"])
fob.compute_visualization(dataset, embeddings=X, method="pca", brain_key="map")
fob.compute_similarity(dataset, embeddings=X, brain_key="near", backend="sklearn")
session = fo.launch_app(dataset, address="127.0.0.1", port=int(port), remote=True)
session.wait(-1)
