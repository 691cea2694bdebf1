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
