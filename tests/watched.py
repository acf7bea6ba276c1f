"""A page in a browser that notes what it should not do"""


def watched(browser, ours, width=1280, scheme="light", **more):
    "An empty page; `seen` notes dialogs, errors, and every address asked for that is not `ours(address)`"
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more).new_page()
    page.seen = []
    page.on("dialog", lambda d: (page.seen.append(f"dialog {d.message}"), d.dismiss()))
    page.on("pageerror", lambda e: page.seen.append(str(e)))
    page.on("console", lambda m: page.seen.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if ours(r.url) else page.seen.append(r.url))
    return page
