"""The built book on paper: all pages in one, printed by Chromium."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.publishing import building

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# All pictures, also those far below that a browser would wait with; the ones that fail are named.
_PICTURES = """Promise.all([...document.images].map(image => {
  image.loading = "eager";
  return image.decode().then(() => "", () => image.src);
})).then(sources => sources.filter(Boolean))"""
# Links to files beside the pages lead nowhere from a PDF.
_UNLINK = """document.querySelectorAll("a[href]").forEach(link => {
  const beside = link.protocol === "file:" && link.pathname !== location.pathname;
  if (beside) link.removeAttribute("href");
})"""
_NUMBER = (
    '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"></span>'
    "</div>"
)


def write(target: Path) -> Path:
    """Print the published pages into one PDF with an outline; return the file.

    Raises:
        UserError: without a built book or Chromium, for pages that cannot be put together or
            printed, and for a picture that cannot be shown.
    """
    from playwright.sync_api import Error, sync_playwright

    if not (store.ROOT / "_build" / "html" / "index.html").is_file():
        raise UserError("there is no book yet: run `make book` first.")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(
            "no Chromium here to print with: install it (Debian: apt install chromium), or print "
            "single pages from your own browser."
        )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        command = building.jupyter_book(Path(folder), "--builder", "singlehtml")
        if subprocess.run(command, cwd=store.ROOT, stdout=subprocess.DEVNULL).returncode:
            raise UserError("the pages could not be put together: see the lines above.")
        print("Printing ...", file=sys.stderr)
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(color_scheme="light")
        page.set_default_timeout(300_000)  # milliseconds; it is one very long page
        page.goto((Path(folder) / "_build" / "singlehtml" / "intro.html").as_uri())
        if missing := page.evaluate(_PICTURES):
            raise UserError(f"these pictures cannot be shown: {', '.join(missing)}.")
        page.evaluate(_UNLINK)
        with store.writing(target) as temporary:
            try:
                page.pdf(
                    path=temporary,
                    format="A4",
                    scale=0.75,
                    margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
                    print_background=True,
                    display_header_footer=True,
                    header_template="<span></span>",
                    footer_template=_NUMBER,
                    outline=True,
                    tagged=True,
                )
            except Error as error:
                raise UserError(f"Chromium did not print: {error}") from None
        chromium.close()
    return target
