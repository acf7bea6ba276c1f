"""The Streamlit pages of fitmatch: bring a photo, see what goes with it. `fitmatch app --streamlit` serves them."""
import os

import pandas as pd
import streamlit as st

st.set_page_config(page_title="fitmatch", page_icon="🧥", layout="wide")
st.title("What goes with this?")
with st.spinner("The libraries are being read: some seconds, once after the start …"):  # here, so that there is a page that says so
    from fitmatch.cards import (accept_photo, ask, best_matcher, cards_html, cards_style, choose, csv_link, find_products, measure_thresholds, notice, open_shop, outfit_html,
                                outfit_parts, own_threshold, photo_vector, product_name, reproducing_code, strip_html, suggest_outfit, threshold_html, threshold_words, why_chosen)
    from fitmatch.catalogue import FitmatchError, select
    from fitmatch.evaluate import evaluate_matching, matching_task
    from fitmatch.compare import panel_tables
    from fitmatch.explore import catalogue_map, cluster, map_html, reduce, sample_rows
    from fitmatch.images import data_uri, thumbnail
    from fitmatch.mappage import picture_sheets
    from fitmatch.pipeline import n_clusters
    from fitmatch.prepare import read_notes

WORKSPACE = os.environ.get("FITMATCH_WORKSPACE")


@st.cache_resource(show_spinner="The products are being opened …")
def the_shop():
    shop = open_shop(WORKSPACE)
    return shop, measure_thresholds(shop)


@st.cache_resource(show_spinner="The map is being drawn …")
def the_map(_shop):
    rows = sample_rows(len(_shop.catalogue), 3000)
    some, X = select(_shop.catalogue, rows), _shop.X[rows]
    colours = {"label": "ground_truth"} if some.products["ground_truth"].notna().any() else {}
    near, matches = panel_tables(_shop.catalogue, _shop.X, next(reversed(_shop.matchers.values()), None), rows)
    figure = catalogue_map(reduce(X, min(3, *X.shape)), some, color={**colours, "cluster": cluster(X, n_clusters(some))}, dims=min(3, X.shape[1]), height=520, neighbours=near, matches=matches)
    return map_html(figure, picture_sheets(some), plotlyjs=True, full=True)


@st.cache_data(show_spinner="Matching is being measured …")
def the_scores(_shop):
    return evaluate_matching(matching_task(_shop.catalogue, _shop.X, "test")).rename_axis("scorer").reset_index()


def asked_product(shop, key):
    "Asin of the product that was picked"
    words = st.text_input("find a product", key=f"words-{key}", placeholder="words of a title, or an asin")
    products = shop.catalogue.products
    rows = find_products(shop, words) or find_products(shop)
    names = {products["asin"].iat[i]: product_name(products["asin"].iat[i], products["title"].iat[i]) for i in rows}
    return st.selectbox("product", list(names), format_func=names.get, key=f"product-{key}")


def matches_page(shop, curves):
    "A product or a photo, and what goes with it"
    controls, answer = st.columns([1, 3], gap="large")
    with controls:
        file = st.file_uploader("bring a photo", accept_multiple_files=False)
        st.caption("Nothing leaves this machine: your photo is opened in memory and forgotten.")
        product = asked_product(shop, "matches")
        matcher = st.radio("matched by", list(shop.matchers), index=list(shop.matchers).index(best_matcher(shop))) if len(shop.matchers) > 1 else best_matcher(shop)
        k = st.slider("looks through k nearest", 1, min(20, len(shop.catalogue)), min(5, len(shop.catalogue))) if shop.matchers else None
        threshold = st.slider("threshold", 0., 1., own_threshold(shop.matchers[matcher]), .01, key=f"threshold-{matcher}") if shop.matchers else 0.
        labels = [label for label in shop.catalogue.labels if label in set(shop.catalogue.products["ground_truth"])]
        category = st.selectbox("show", [None, *labels], format_func=lambda label: label or "all categories")
        diversity = st.slider("diversity", 0., 1., 0., .05)
    with answer:
        vector, query, name = None, shop.pictures.product(product, 240), None
        if file is not None:
            try:
                picture = accept_photo(file.getvalue(), file.name)
                vector, name = photo_vector(shop, file.getvalue()), file.name
                query = {"asin": name, "title": name, "label": "your photo", "picture": data_uri(thumbnail(picture, size=240))}
            except FitmatchError as e: st.html(notice(e))
        matches = ask(shop, product, photo=vector, matcher=matcher, k=k)
        choice = dict(threshold=threshold, category=category, diversity=diversity, n=12)
        selection = choose(shop, matches, **choice)
        st.html(threshold_html(shop, curves.get(matcher, ""), threshold))
        st.html(cards_style() + cards_html(shop, query, matches, selection, "Your photo" if name else "You asked about", why_chosen(shop, selection, vector, matcher, k)))
        st.html(csv_link(selection))
        with st.expander("show me the code"): st.code(reproducing_code(shop, product, name, matcher, k, **choice), language="python")


def strip_words(text):
    "A sentence as HTML: Streamlit's own would take it for Markdown"
    return cards_style() + strip_html([], text)


def outfit_page(shop, curves):
    "A look, piece by piece"
    product = asked_product(shop, "outfit")
    row = shop.row[product]
    parts = outfit_parts(shop, product)
    state = st.session_state
    if state.get("look-of") != product: state.update({"look-of": product, "look": {}, "roll": 0})
    kept = st.multiselect("keep", parts)
    if st.button("reroll the rest"): state["roll"] += 1
    locked = {part: asin for part, asin in state["look"].items() if part in kept}
    state["look"] = suggest_outfit(shop, shop.X[[row]], parts, locked, state["roll"])
    st.html(cards_style() + outfit_html(shop, product, state["look"], kept))


def map_page(shop, curves):
    "Every product where its picture puts it"
    if hasattr(st, "iframe"): st.iframe(the_map(shop), height=800)
    else: st.components.v1.html(the_map(shop), height=800, scrolling=True)


def figures(table):
    "A table of figures with two digits"
    st.dataframe(table, hide_index=True, column_config={name: st.column_config.NumberColumn(format="%.2f") for name in table.select_dtypes("number")})


def encoder_rows(notes):
    "The run's scoreboard as people read it"
    table = pd.DataFrame(notes["scoreboard"])
    names = [f"{name} (quoted, on another catalogue)" if quoted else name for name, quoted in zip(table["encoder"], table["quoted"])]
    return table.assign(encoder=names).drop(columns="quoted").rename(columns={"mlp": "MLP accuracy", "kmeans": "kMeans accuracy"})


def scorer_rows(found):
    "How well each way to score tells bought-together pairs from others, as the run measured it"
    rows = {"learned": found.get("learned"), "also-buy rule": found, **found["baselines"]}
    return pd.DataFrame([(name, f["auc"], *f["interval"]) for name, f in rows.items() if f], columns=["scorer", "AUC", "95 % from", "to"])


def scoreboard_page(shop, curves):
    "How good it is, measured"
    notes = read_notes(WORKSPACE) if WORKSPACE else {}
    if notes.get("scoreboard"):
        st.html(strip_words("How much of the labels is in the pictures' vectors: found with training (MLP) and without (kMeans)"))
        figures(encoder_rows(notes))
    if not shop.matchers: return st.html(threshold_html(shop, "", 0))
    st.html(strip_words("Bought together or not, of the same category: how often does the true one score higher (AUC)? Chance is 0.5"))
    try: figures(scorer_rows(notes["matching"]) if "auc" in notes.get("matching", {}) else the_scores(shop))
    except FitmatchError as e: st.html(notice(e))
    for name, curve in curves.items():
        st.html(strip_words(f"{name}: what a threshold buys"))
        if isinstance(curve, str): st.html(strip_words(threshold_words(curve, .5)))
        else: st.line_chart(curve[curve["suggested"] >= 10], x="threshold", y=["precision", "recall"], color=["#2f86c4", "#d0691c"], height=280)


PAGES = {"Matches": matches_page, "Outfit": outfit_page, "Map": map_page, "Scoreboard": scoreboard_page}


def main():
    page = st.radio("page", list(PAGES), horizontal=True, label_visibility="collapsed")
    try: PAGES[page](*the_shop())
    except FitmatchError as e: st.html(notice(e))


main()
