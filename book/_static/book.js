// Docutils calls the bibliography a list but its entries no list items; screen readers then say nothing.
document.addEventListener("DOMContentLoaded", () => {
  for (const list of document.querySelectorAll(".citation-list[role=list]")) {
    list.removeAttribute("role");
  }
});
