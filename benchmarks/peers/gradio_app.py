"""The task in Gradio: a map of the wardrobe; from a photo to what looks like it and to what was bought with that. `python gradio_app.py FOLDER PORT`"""
import sys

import gradio as gr
import numpy as np
import pandas as pd
import plotly.express as px
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

folder, port = sys.argv[1:]
table = pd.read_parquet(f"{folder}/wardrobe.parquet")
X = np.stack(table["vector"])
X /= np.linalg.norm(X, axis=1, keepdims=True)
row = {asin: i for i, asin in enumerate(table["asin"])}
nearest = NearestNeighbors(n_neighbors=6, metric="cosine").fit(X)
table[["x", "y"]] = PCA(2, random_state=0).fit_transform(X)
figure = px.scatter(table, x="x", y="y", color="ground_truth", hover_data=["title"])


def pictures(rows, scores):
    return [(table["path"][i], f"{score:.2f} {table['title'][i]}") for i, score in zip(rows, scores)]


def answer(asin):
    "The five nearest, and what was bought with them, by likeness to the photo"
    i = row[asin]
    distance, near = nearest.kneighbors(X[[i]])
    bought = np.array(sorted({row[a] for j in near[0][1:] for a in table["also_buy"][j] if a in row} - {i}))
    scores = X[bought] @ X[i]
    order = np.argsort(-scores)[:8]
    return table["path"][i], pictures(near[0][1:], 1 - distance[0][1:]), pictures(bought[order], scores[order])


with gr.Blocks(title="wardrobe") as demo:
    gr.Plot(figure)
    asked = gr.Dropdown([(f"{t} · {a}", a) for t, a in zip(table["title"], table["asin"])], label="product")
    outputs = [gr.Image(label="asked about", height=240), gr.Gallery(label="looks like it", columns=5), gr.Gallery(label="goes with it", columns=8)]
    asked.change(answer, asked, outputs)
    demo.load(answer, asked, outputs)
demo.launch(server_name="127.0.0.1", server_port=int(port), allowed_paths=[folder])
