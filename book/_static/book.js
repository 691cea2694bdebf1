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
