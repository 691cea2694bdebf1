(function () {
  var root = document.getElementById("$id");
  var data = JSON.parse(root.querySelector("script").textContent);
  var panel = root.querySelector(".d"), count = root.querySelector(".n");
  var buttons = Array.from(root.querySelectorAll("button"));
  var cells = Array.from(root.querySelectorAll(".c"));
  var pinned = null;
  function shown() {
    return buttons.map(function (b) { return b.getAttribute("aria-pressed") === "true"; });
  }
  function add(parent, tag, text) {
    var node = document.createElement(tag);
    node.textContent = text;
    parent.appendChild(node);
    return node;
  }
  function tell(cell) {
    var name = cell.dataset.c, list;
    panel.textContent = "";
    add(panel, "strong", name.indexOf("mlp") ? "Head " + name : "MLP " + name.slice(3));
    list = add(panel, "ul", "");
    data.cells[name].forEach(function (entry, i) {
      var text = data.tasks[i] + ": " + (entry[0] ? "in the circuit" : "not in the circuit");
      if (entry[1]) text += ", role: " + entry[1];
      if (entry[2] !== null && !entry[3]) text += ", ablating it changes the logit difference by " +
        (entry[2] > 0 ? "+" : "") + entry[2].toFixed(1).replace("-", "\u2212") + "%";
      var item = add(list, "li", text), link;
      if (entry[0] && data.links[i]) {
        item.appendChild(document.createTextNode(". "));
        link = add(item, "a", "Evidence");
        link.href = data.links[i];
        link.setAttribute("aria-label", "Evidence for " + data.tasks[i]);
      }
      if (entry[3]) {
        var more = add(item, "ul", "");
        entry[3].forEach(function (fact) { add(more, "li", fact); });
      }
    });
    if (data.explore && data.cells[name].every(function (entry) { return entry[0]; })) {
      var line = add(panel, "p", "Explore: "), off = add(line, "a", "switch it off"), look;
      off.href = data.explore + "#part=" + name;
      if (name.indexOf("mlp")) {
        line.appendChild(document.createTextNode(" \u00b7 "));
        look = add(line, "a", "where it looks");
        look.href = data.explore + "#head=" + name;
      }
    }
  }
  function frame() {
    var on = shown(), heads = 0, mlps = 0, some = on.some(Boolean);
    cells.forEach(function (cell) {
      var shared = some && data.cells[cell.dataset.c].every(function (entry, i) {
        return entry[0] || !on[i];
      });
      cell.classList.toggle("s", shared);
      if (shared && cell.dataset.c.indexOf("mlp")) heads += 1;
      else if (shared) mlps += 1;
    });
    on.forEach(function (yes, i) { root.classList.toggle("off" + i, !yes); });
    count.textContent = some ? "In every circuit shown: " + heads + " heads, " + mlps + " MLPs."
      : "No circuit is shown.";
  }
  function pin(cell) {
    if (pinned) pinned.classList.remove("p");
    pinned = cell;
    if (cell) { cell.classList.add("p"); tell(cell); }
  }
  function move(cell) {
    cells.forEach(function (other) { other.setAttribute("tabindex", other === cell ? 0 : -1); });
    cell.focus({preventScroll: false});
  }
  buttons.forEach(function (button) {
    button.addEventListener("click", function () {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      frame();
    });
  });
  cells.forEach(function (cell, i) {
    var columns = cells.length / $rows_of_cells;
    cell.addEventListener("pointerenter", function () { if (!pinned) tell(cell); });
    cell.addEventListener("focus", function () { tell(cell); });
    cell.addEventListener("click", function () { pin(pinned === cell ? null : cell); });
    cell.addEventListener("keydown", function (event) {
      var step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
      if (step && cells[i + step]) { move(cells[i + step]); event.preventDefault(); }
      else if (event.key === "Enter" || event.key === " ") { pin(cell); event.preventDefault(); }
      else if (event.key === "Escape") pin(null);
    });
  });
  frame();
})();
