// What the page's elements share: the numbers, the address, and how answers are shown.
window.seqcircExplore = (function () {
  var data = JSON.parse(document.getElementById("explore-data").textContent);
  function add(parent, tag, text, className) {
    var node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    parent.appendChild(node);
    return node;
  }
  // A token as text, with its spaces and line breaks made visible.
  function token(place) {
    return data.tokens[place].replace(/ /g, "\u2423").replace(/\n/g, "\u23ce") || "(empty)";
  }
  // Shares are known to four places, or (``whole``) to the percent.
  function percent(share, whole) {
    if (whole) return share < 0.01 ? "< 1%" : Math.round(100 * share) + "%";
    return share < 0.001 ? "< 0.1%" : (100 * share).toFixed(1) + "%";
  }
  function signed(value) { return value.toFixed(2).replace("-", "\u2212"); }
  // The address after its "#" holds what was chosen, so that a link leads back to it.
  function read() { return new URLSearchParams(location.hash.slice(1)); }
  function write(values) {
    var state = read();
    Object.keys(values).forEach(function (key) { state.set(key, values[key]); });
    history.replaceState(null, "", "#" + state);
  }
  function onChange(restore) { window.addEventListener("hashchange", restore); }
  function options(select, rows) {
    var groups = {};
    rows.forEach(function (row) {
      if (!groups[row[1]]) {
        groups[row[1]] = add(select, "optgroup");
        groups[row[1]].label = row[1];
      }
      add(groups[row[1]], "option", row[2]).value = row[0];
    });
  }
  // Five rows: rank, then a token and its share for each of the columns; ``marks`` names tokens.
  function answers(body, columns, marks, whole) {
    body.textContent = "";
    columns[0][0].forEach(function (_, rank) {
      var row = add(body, "tr");
      add(row, "th", rank + 1).scope = "row";
      columns.forEach(function (column) {
        var cell = add(row, "td"), share = column[1][rank], mark = marks[column[0][rank]];
        add(cell, "code", token(column[0][rank]));
        if (mark) add(cell, "small", " " + mark);
        cell = add(row, "td", percent(share, whole), "share");
        cell.style.setProperty("--share", 100 * share + "%");
      });
    });
  }
  return {data: data, add: add, token: token, percent: percent, signed: signed, read: read,
    write: write, onChange: onChange, options: options, answers: answers};
})();
