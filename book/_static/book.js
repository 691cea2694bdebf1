// Docutils calls the bibliography a list but its entries no list items; screen readers then say nothing.
document.addEventListener("DOMContentLoaded", () => {
  for (const list of document.querySelectorAll(".citation-list[role=list]")) {
    list.removeAttribute("role");
  }
});

// A phone shows figures narrow or small: a tap opens the wide one by itself, as large as it was drawn.
document.addEventListener("DOMContentLoaded", () => {
  if (!matchMedia("(max-width: 600px)").matches) return;
  for (const image of document.querySelectorAll("main figure img")) {
    const link = document.createElement("a");
    link.href = image.src;
    const shown = image.closest("picture") ?? image;
    shown.replaceWith(link);
    link.append(shown);
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

// What a link leads to, where it is: a term's definition, a chapter's finding with its first figure. On
// hover and on focus, gone with Escape. The build puts it into the link; a figure is the page's own file.
document.addEventListener("DOMContentLoaded", () => {
  const links = document.querySelectorAll("a[data-definition]");
  if (!links.length) return;
  const tip = document.createElement("div");
  Object.assign(tip, { id: "definition", className: "definition", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  let at = null;
  const hide = () => {
    tip.hidden = true;
    at?.removeAttribute("aria-describedby");
  };
  const show = (link) => {
    hide();
    at = link;
    tip.textContent = link.dataset.definition;
    if (link.dataset.figure) {
      const figure = new Image(); // of a set height, so that the tip has its size before it comes
      Object.assign(figure, { src: link.dataset.figure, alt: "" });
      tip.append(figure);
    }
    tip.hidden = false;
    link.setAttribute("aria-describedby", tip.id);
    const place = link.getBoundingClientRect();
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${scrollX + Math.max(8, Math.min(place.left, right))}px`;
    const above = place.bottom + tip.offsetHeight > innerHeight && place.top > tip.offsetHeight;
    tip.style.top = `${scrollY + (above ? place.top - tip.offsetHeight : place.bottom)}px`;
  };
  for (const link of links) {
    for (const event of ["mouseenter", "focus"]) link.addEventListener(event, () => show(link));
    link.addEventListener("blur", hide);
    link.addEventListener("mouseleave", (e) => e.relatedTarget === tip || hide());
  }
  tip.addEventListener("mouseleave", hide);
  document.addEventListener("keydown", (e) => e.key === "Escape" && hide());
});

// The table of claims by what came out: one choice above it, kept in the address.
document.addEventListener("DOMContentLoaded", () => {
  const verdict = (row) => row.cells[2]?.textContent.trim().split("\n")[0].trim();
  for (const table of document.querySelectorAll("main table")) {
    const [head, ...rows] = table.rows;
    if (!head || verdict(head) !== "carries over?") continue;
    const choice = document.createElement("select");
    choice.add(new Option("all", ""));
    for (const value of new Set(rows.map(verdict))) choice.add(new Option(value, value));
    const told = document.createElement("output");
    const label = document.createElement("label");
    label.className = "claims-filter";
    label.append("Carries over: ", choice, " ", told);
    const filter = () => {
      for (const row of rows) row.hidden = choice.value !== "" && verdict(row) !== choice.value;
      told.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
    };
    choice.addEventListener("change", () => {
      filter();
      history.replaceState(null, "", choice.value ? `#verdict=${encodeURIComponent(choice.value)}` : location.pathname);
    });
    const asked = decodeURIComponent(location.hash).match(/^#verdict=(.*)/);
    if (asked) choice.value = asked[1];
    if (choice.selectedIndex < 0) choice.value = "";
    table.before(label);
    filter();
  }
});
