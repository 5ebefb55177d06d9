"""The page: what is where, and which function answers which event."""

# Gradio looks at the types of handlers' arguments, so they must not be strings.

import dataclasses
from typing import TYPE_CHECKING, Any

from capsdesc.demo.comparison import NAMES, Comparison, compare, find
from capsdesc.demo.photographs import Photograph, read_photograph
from capsdesc.describe.extractor import CAPSExtractor
from capsdesc.types import MatchMethod
from capsdesc.weights.context import load_context

if TYPE_CHECKING:
    import gradio

Photographs = tuple[Photograph | None, Photograph | None]

TITLE = "capsdesc"
INTRODUCTION = """\
# Where is this point in the other photograph?

Click a point in one photograph: a cross shows where it is in the other, a circle how sure that is.
"""
MAX_UPLOAD = "100mb"
ASK_FOR_BOTH = "Two photographs are needed: drop one into the empty place."
NOT_YET = "Nothing to show before the photographs are matched."
METHODS = {"nearest": "Nearest neighbours", "context": "In context"}
TABS = {
    "matches": "Matches",
    "pose": "Pose",
    "epipolar": "Epipolar lines",
    "homography": "Homography",
    "descriptors": "Descriptors",
}


def build_page(
    caps: CAPSExtractor, pair: Photographs, max_size: int, method: MatchMethod = "nearest"
) -> "gradio.Blocks":
    """The page as a Gradio app, not yet served.

    Args:
        caps: the extractor that answers.
        pair: the photographs that the page begins with.
        max_size: photographs with a longer edge are shrunk to so many pixels.
        method: how the page matches to begin with, as for :func:`capsdesc.match`.

    Raises:
        ImportError: Gradio is not installed.
        ValueError: the method does not take the extractor's descriptors.
    """
    check_gradio()
    import gradio as gr

    known = load_context().config.descriptor
    methods = [name for name in METHODS if name == "nearest" or caps.weights.fingerprint == known]
    if method not in methods:
        raise ValueError(
            f"the weights are {caps.weights.fingerprint}, and matches in context are for those of {known}, the bundled "
            "ones; take nearest neighbours"
        )

    def upload(path: str | None) -> tuple[Any, ...]:
        try:
            photograph = None if path is None else read_photograph(path, max_size)
        except (OSError, ValueError) as error:
            # Not an error, which would leave the page with what it showed before.
            gr.Warning(str(error), duration=None)
            photograph = None
        return photograph, *shown(photograph), *nothing()

    def shown(photograph: Photograph | None) -> tuple[Any, Any]:
        if photograph is None:
            return None, gr.Number(value=None, info="")
        return photograph.pixels, gr.Number(value=round(photograph.focal, 1), info=photograph.focal_source)

    def nothing() -> list[Any]:
        return ["", *[None, NOT_YET] * len(TABS)]

    def both(photographs: tuple[Photograph | None, ...]) -> tuple[Photograph, Photograph]:
        first, second = photographs
        if first is None or second is None:
            raise gr.Error(ASK_FOR_BOTH, print_exception=False)
        return first, second

    def click(source: int) -> Any:
        def handler(first: Photograph | None, second: Photograph | None, event: gr.SelectData) -> tuple[Any, ...]:
            marked, text = find(caps, both((first, second)), source, event.index)
            return *marked, text

        return handler

    def match_both(
        first: Photograph | None,
        second: Photograph | None,
        focal0: float | None,
        focal1: float | None,
        method: MatchMethod,
    ) -> list[Any]:
        comparison = compare(caps, both((first, second)), (focal0, focal1), method)
        return [part for view in _views(comparison) for part in (view.figure, view.text)]

    page = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(86400, 86400))
    with page:
        gr.Markdown(INTRODUCTION)
        photographs = [gr.State(photograph) for photograph in pair]
        with gr.Row():
            images = [
                gr.Image(
                    value=None if photograph is None else photograph.pixels,
                    label=name,
                    type="filepath",
                    image_mode=None,  # the file as it was uploaded, with its EXIF data
                    format="jpeg",
                    sources=["upload"],
                    buttons=["fullscreen"],
                    elem_id=f"photograph-{name}",
                )
                for name, photograph in zip(NAMES, pair, strict=True)
            ]
        answer = gr.Markdown(elem_id="answer")
        with gr.Row():
            focals = [
                gr.Number(
                    label=f"Focal length of {name} in pixels",
                    value=None if photograph is None else round(photograph.focal, 1),
                    info="" if photograph is None else photograph.focal_source,
                )
                for name, photograph in zip(NAMES, pair, strict=True)
            ]
            matcher = gr.Radio(
                [(METHODS[name], name) for name in methods], value=method, label="Matches", elem_id="matcher"
            )
        button = gr.Button("Match the photographs", variant="primary", elem_id="match")
        views: list[Any] = []
        with gr.Tabs():
            for key, title in TABS.items():
                with gr.Tab(title, elem_id=f"tab-{key}"):
                    text = gr.Markdown(NOT_YET, elem_id=f"text-{key}")
                    plot = gr.Plot(format="png", show_label=False, container=False, elem_id=f"plot-{key}")
                    views += [plot, text]

        for k in range(2):
            # Gradio's own would open the file, and show its own words of a broken one.
            upload_place: Any = images[k]
            upload_place.preprocess = lambda payload: payload and payload.path
            changed = [photographs[k], images[k], focals[k], answer, *views]
            images[k].upload(upload, images[k], changed, api_visibility="private")
            images[k].clear(lambda: upload(None), None, changed, api_visibility="private")
            images[k].select(
                click(k), photographs, [*images, answer], show_progress="minimal", api_visibility="private"
            )
        button.click(match_both, [*photographs, *focals, matcher], views, api_name="match")
    return page


def serve(page: "gradio.Blocks", port: int, share: bool = False) -> None:
    """Serve a page on this machine until the user interrupts.

    Args:
        page: of :func:`build_page`.
        port: to listen on, of 127.0.0.1.
        share: also reach it through a public link, by a tunnel of Gradio's.

    Raises:
        OSError: the port is taken.
    """
    check_gradio()
    import gradio as gr

    _, local, public = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=share,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        # Fonts that the browser has; nothing is fetched.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    print(f"open {public or local} in a browser; stop with Ctrl-C", flush=True)
    page.block_thread()


def check_gradio() -> None:
    """See that Gradio is there. Importing it takes seconds.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("the demo's page is made with Gradio: pip install 'capsdesc[demo]'") from error


def _views(comparison: Comparison) -> list[Any]:
    return [getattr(comparison, field.name) for field in dataclasses.fields(comparison)]
