(function () {
  var page = window.seqcircExplore, data = page.data, swaps = data.swaps, add = page.add;
  var root = document.getElementById("explore-swap"), told = root.querySelector(".told");
  var selects = Array.from(root.querySelectorAll("select")), slider = root.querySelector("input");
  var names = ["the interchanged answer", "the target's own answer", "the source's answer"];
  selects.forEach(function (select, i) {
    page.options(select, data.prompts);
    select.value = swaps.first[i];
    select.addEventListener("change", function () { show(true); });
  });
  slider.value = swaps.start;
  slider.addEventListener("input", function () { show(true); });
  function row(name) {
    return data.prompts.find(function (prompt) { return prompt[0] === name; });
  }
  function outcome(first, three) {
    var at = three.indexOf(first);
    if (at < 0) return "none of the three answers";
    if (three[0] === three[1] && at === 0) return "the answer of both, since both are at one place";
    return names[at];
  }
  function fill(three, shares) {
    var body = root.querySelector(".three tbody");
    body.textContent = "";
    names.forEach(function (name, i) {
      var line = add(body, "tr"), cell;
      add(line, "th", name).scope = "row";
      add(add(line, "td"), "code", page.token(three[i]));
      cell = add(line, "td", page.percent(shares[i]), "share");
      cell.style.setProperty("--share", 100 * shares[i] + "%");
    });
  }
  function show(chosen) {
    var ends = selects.map(function (select) { return row(select.value); });
    var layer = swaps.layers[slider.value], pair = swaps.pairs[ends[0][0] + " " + ends[1][0]];
    root.querySelector("output").textContent = layer;
    slider.setAttribute("aria-valuetext", "before block " + layer);
    root.querySelectorAll(".prompt").forEach(function (p, i) {
      p.textContent = ends[i][2] + " \u2026";
    });
    root.querySelector(".found").hidden = !pair;
    if (pair) {
      var now = pair[1][slider.value], marks = {}, three = [pair[0], ends[1][3], ends[0][3]];
      [2, 1, 0].forEach(function (i) {
        marks[three[i]] = ["(swapped)", "(target's own)", "(source's)"][i];
      });
      fill(three, now[2]);
      page.answers(root.querySelector(".five tbody"),
        [data.ablated[ends[1][0]][0].slice(1), now], marks);
      told.textContent = "Swapped before block " + layer + ", the model says " +
        page.token(now[0][0]) + " (" + page.percent(now[1][0]) + "): " +
        outcome(now[0][0], three) + ".";
    } else {
      told.textContent = "The target's task has no member of one token at the source's place.";
    }
    if (chosen) page.write({source: ends[0][0], target: ends[1][0], layer: layer});
  }
  function restore() {
    var asked = page.read(), layer = swaps.layers.map(String).indexOf(asked.get("layer"));
    if (row(asked.get("source")) && row(asked.get("target")) && layer >= 0) {
      selects[0].value = asked.get("source");
      selects[1].value = asked.get("target");
      slider.value = layer;
      if (!asked.has("part")) root.scrollIntoView();
    }
    show(false);
  }
  page.onChange(restore);
  restore();
})();
