// Docutils calls the bibliography a list but its entries no list items; screen readers then say nothing.
document.addEventListener("DOMContentLoaded", () => {
  for (const list of document.querySelectorAll(".citation-list[role=list]")) {
    list.removeAttribute("role");
  }
});

// A phone shows figures small: a tap opens one by itself, as large as it was drawn.
document.addEventListener("DOMContentLoaded", () => {
  if (!matchMedia("(max-width: 600px)").matches) return;
  for (const image of document.querySelectorAll("main figure img")) {
    const link = document.createElement("a");
    link.href = image.src;
    image.replaceWith(link);
    link.append(image);
  }
});

// Where an entry of the index points at a place without text, Sphinx's search fails to sum it up:
// its page is summed up instead.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined" || !Search.makeSearchSummary) return;
  const summary = Search.makeSearchSummary;
  Search.makeSearchSummary = (html, words, anchor) =>
    summary(html, words, anchor) ?? summary(html, words) ?? document.createTextNode("");
});

// One switch shows or hides all code of a page.
document.addEventListener("DOMContentLoaded", () => {
  const cells = [...document.querySelectorAll("main .cell details.hide")];
  const title = document.querySelector("main article h1"); // the first h1 is for print
  if (!cells.length || !title) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "code-switch";
  const tell = (open) => {
    button.textContent = open ? "Hide all code" : "Show all code";
    button.setAttribute("aria-pressed", String(open));
  };
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    for (const cell of cells) cell.open = open;
    tell(open);
  });
  tell(false);
  title.before(button);
});

// How long a page takes to read: at 220 words a minute, code and tables apart.
document.addEventListener("DOMContentLoaded", () => {
  const title = document.querySelector("main article h1");
  if (!title || !title.parentElement) return;
  const text = title.closest("article").cloneNode(true);
  for (const part of text.querySelectorAll("pre, table, details, script, style, svg")) part.remove();
  const minutes = Math.ceil(text.textContent.trim().split(/\s+/).length / 220);
  const line = document.createElement("p");
  line.className = "reading-time";
  line.textContent = `Reading time: about ${minutes} min`;
  title.after(line);
});
