(function () {
  var page = window.seqcircExplore, seen = page.data.attention, add = page.add;
  var root = document.getElementById("explore-attention"), two = root.querySelector(".two");
  var heads = root.querySelector("#explore-head"), reads = root.querySelector("#explore-read");
  var pointer = "", at = -1, rows = []; // the chosen token's place, and the tokens of both prompts
  seen.heads.forEach(function (head) { add(heads, "option", head[0] + ": " + head[1]).value = head[0]; });
  seen.reads.forEach(function (read) { add(reads, "option", read[1]).value = read[0]; });
  function label(place) { return page.token(place); }
  // Percent of the token at ``query`` on each token up to it: rows of a triangle, one after another.
  function weights(run, query) {
    var start = query * (query + 1) / 2;
    return seen.weights[reads.value][run][heads.selectedIndex].slice(start, start + query + 1);
  }
  function draw() {
    two.textContent = "";
    rows = seen.reads[reads.selectedIndex][2].map(function (tokens, run) {
      var box = add(two, "div", undefined, "tokens"), line;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", run ? "Corrupted prompt" : "Prompt");
      add(box, "strong", run ? "Corrupted" : "Prompt");
      line = add(box, "p");
      return tokens.map(function (token, i) {
        var button = add(line, "button", label(token));
        button.type = "button";
        ["focus", "click"].forEach(function (event) {
          button.addEventListener(event, function () { look(i, true); });
        });
        button.addEventListener("pointermove", function (event) {
          var now = event.screenX + " " + event.screenY; // a page that scrolls below it is no move
          if (now !== pointer && i !== at) look(i, false);
          pointer = now;
        });
        button.addEventListener("keydown", function (event) {
          var step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
          if (step && rows[run][i + step]) { rows[run][i + step].focus(); event.preventDefault(); }
        });
        return button;
      });
    });
    if (at < 0 || at >= rows[0].length) at = rows[0].length - 1;
  }
  function most(run) {
    var shares = weights(run, at), tokens = seen.reads[reads.selectedIndex][2][run];
    var order = shares.map(function (_, i) { return i; });
    order.sort(function (a, b) { return shares[b] - shares[a] || b - a; });
    order = order.slice(0, Math.min(5, at + 1));
    return [order.map(function (i) { return tokens[i]; }),
      order.map(function (i) { return shares[i] / 100; }), order];
  }
  function look(place, chosen) {
    var found;
    at = place;
    rows.forEach(function (row, run) {
      var shares = weights(run, at);
      row.forEach(function (button, i) {
        button.style.setProperty("--look", (shares[i] || 0) / 100);
        button.style.setProperty("--shade", Math.sqrt((shares[i] || 0) / 100));
        button.setAttribute("aria-pressed", String(i === at));
        button.setAttribute("tabindex", i === at ? 0 : -1);
      });
    });
    found = [most(0), most(1)];
    page.answers(root.querySelector("tbody"), found, {}, true);
    root.querySelector(".told").textContent = "Head " + heads.value + ", token " + (at + 1) + " of " +
      rows[0].length + ": " + found.map(function (top, run) {
        var tokens = seen.reads[reads.selectedIndex][2][run];
        return (run ? "corrupted: " : "") + label(tokens[at]) + " looks at " + label(top[0][0]) +
          " (token " + (top[2][0] + 1) + ", " + page.percent(top[1][0], true) + ")";
      }).join("; ") + ".";
    if (chosen) page.write({head: heads.value, read: reads.value, token: at + 1});
  }
  function again() { draw(); look(at, true); }
  function restore() {
    var asked = page.read(), wanted = asked.get("head"), read = 0, token;
    var head = seen.heads.findIndex(function (row) { return row[0] === wanted; });
    if (asked.has("read")) {
      read = seen.reads.findIndex(function (row) { return row[0] === asked.get("read"); });
    }
    // Without a token the last one, which all heads of a circuit serve.
    if (read >= 0) {
      token = asked.has("token") ? Number(asked.get("token")) - 1 : seen.reads[read][2][0].length - 1;
    }
    if (head >= 0 && read >= 0 && seen.reads[read][2][0][token] !== undefined) {
      heads.selectedIndex = head;
      reads.selectedIndex = read;
      at = token;
      if (!asked.has("part") && !asked.has("layer")) root.scrollIntoView();
    }
    draw();
    look(at, false);
    if (wanted && head < 0) {
      root.querySelector(".told").textContent = "Head " + wanted + " is not among those shown here.";
      if (!asked.has("part") && !asked.has("layer")) root.scrollIntoView();
    }
  }
  heads.addEventListener("change", again);
  reads.addEventListener("change", again);
  page.onChange(restore);
  restore();
})();
