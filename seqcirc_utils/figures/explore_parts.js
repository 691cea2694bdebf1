(function () {
  var page = window.seqcircExplore, data = page.data, add = page.add;
  var root = document.getElementById("explore-parts"), sets = root.querySelector(".sets");
  var select = root.querySelector("select"), told = root.querySelector(".told");
  var undo = root.querySelector(".undo"), past = [], state = {prompt: data.prompts[0][0], part: 0};
  var groups = {}, radios;
  page.options(select, data.prompts);
  data.parts.forEach(function (part, i) {
    var name = part[1] || "Switch off", label, radio;
    if (!groups[name]) {
      groups[name] = add(sets, "fieldset");
      add(groups[name], "legend", name);
    }
    label = add(groups[name], "label");
    radio = add(label, "input");
    radio.type = "radio";
    radio.name = "explore-part";
    radio.value = i;
    add(label, "span", part[2]);
    radio.addEventListener("change", function () { choose({part: i}); });
  });
  radios = Array.from(sets.querySelectorAll("input"));
  function choose(change) {
    past.push(state);
    state = Object.assign({}, state, change);
    show(true);
  }
  function sentence(part, whole, now, row) {
    var gap = page.signed(now[0]);
    return part[3] + ", the model says " + page.token(now[1][0]) + " (" + page.percent(now[2][0]) +
      "). Logit difference of " + page.token(row[3]) + " and " + page.token(row[4]) + ": " + gap +
      (state.part ? ", whole model " + page.signed(whole[0]) : "") + ".";
  }
  function show(chosen) {
    var row = data.prompts.find(function (prompt) { return prompt[0] === state.prompt; });
    var all = data.ablated[state.prompt], whole = all[0], now = all[state.part], marks = {};
    marks[row[4]] = "(last member)";
    marks[row[3]] = "(answer)";
    select.value = state.prompt;
    radios[state.part].checked = true;
    root.querySelector(".prompt").textContent = row[2] + " \u2026";
    undo.disabled = !past.length;
    root.querySelector(".now").textContent = data.parts[state.part][3].toLowerCase()
      .replace(/mlp/g, "MLP");
    page.answers(root.querySelector("tbody"), [whole.slice(1), now.slice(1)], marks);
    told.textContent = sentence(data.parts[state.part], whole, now, row);
    if (chosen) page.write({prompt: state.prompt, part: data.parts[state.part][0]});
  }
  function restore() {
    var asked = page.read();
    var part = data.parts.findIndex(function (row) { return row[0] === asked.get("part"); });
    var prompt = asked.has("prompt") ? asked.get("prompt") : state.prompt;
    if (data.ablated[prompt] && part >= 0) {
      state = {prompt: prompt, part: part};
      root.scrollIntoView();
    }
    show(false);
  }
  select.addEventListener("change", function () { choose({prompt: select.value}); });
  undo.addEventListener("click", function () {
    state = past.pop();
    show(true);
    if (undo.disabled) radios[state.part].focus(); // or the focus would be lost
  });
  root.querySelector(".reset").addEventListener("click", function () { choose({part: 0}); });
  page.onChange(restore);
  restore();
})();
