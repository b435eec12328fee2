"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const chosen = {};
  const drawn = new Set();
  const config = { displayModeBar: false, responsive: true };
  let printing = false;

  // Colours in a figure are names of CSS variables.
  function coloured(value, style) {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map((v) => coloured(v, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k.endsWith("text") || k === "meta" ? v : coloured(v, style)]));
    }
    return value;
  }

  const passes = (tags) => Object.entries(chosen).every(([name, value]) => !value || !tags[name] || tags[name] === value);

  function draw(plot) {
    const style = getComputedStyle(document.documentElement);
    const { data, layout } = figures[plot.id];
    const shown = data.map((trace) => ({ ...trace, visible: passes(trace.meta || {}) }));
    const alone = plot.closest(".panels, .heats").children.length === 1;
    const size = printing ? { width: alone ? 640 : 330 } : {};
    const themed = coloured(layout, style);
    if (themed.xaxis.title) themed.xaxis.title = { ...layout.xaxis.title };
    if (themed.yaxis.title) themed.yaxis.title = { ...layout.yaxis.title };
    Plotly.react(plot, coloured(shown, style), { ...themed, ...size, autosize: !printing }, config);
    drawn.add(plot);
  }

  const plots = [...document.querySelectorAll(".plot")];
  const visible = (element) => element.checkVisibility();
  const waiting = () => plots.filter((plot) => !drawn.has(plot) && visible(plot));

  // What is near is drawn first, the rest while nothing else happens; of very many plots most wait to come near.
  const AHEAD = 400;
  const near = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting && !drawn.has(e.target)).forEach((e) => draw(e.target)),
    { rootMargin: "400px" },
  );
  plots.forEach((plot) => near.observe(plot));
  function fill(deadline) {
    const queue = waiting().slice(0, Math.max(0, AHEAD - drawn.size));
    while (queue.length && deadline.timeRemaining() > 10) draw(queue.shift());
    document.documentElement.dataset.waiting = String(queue.length);
    if (queue.length) requestIdleCallback(fill);
  }
  requestIdleCallback(fill);
  document.addEventListener("toggle", (event) => {
    if (event.target.matches(".values") && event.target.open) values(event.target);
    requestIdleCallback(fill);
  }, true);

  function redraw() {
    drawn.forEach((plot) => (visible(plot) ? draw(plot) : drawn.delete(plot)));
    requestIdleCallback(fill);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Paper is white and narrower than the screen.
  addEventListener("beforeprint", () => {
    printing = true;
    document.documentElement.dataset.printing = "";
    document.querySelectorAll(".how").forEach((details) => (details.open = true));
    plots.filter(visible).forEach(draw);
  });
  addEventListener("afterprint", () => {
    printing = false;
    delete document.documentElement.dataset.printing;
    document.querySelectorAll(".how").forEach((details) => (details.open = false));
    redraw();
  });

  // The values of a plot as a table, made when it is opened.
  function values(details) {
    if (details.querySelector("table")) return;
    const box = Object.assign(document.createElement("div"), { className: "table", tabIndex: 0 });
    box.setAttribute("role", "region");
    const group = details.closest(".group").querySelector("h3").textContent;
    const caption = details.closest("figure").querySelector("figcaption").textContent;
    const section = details.closest("section").querySelector("h2").textContent;
    box.setAttribute("aria-label", `Values: ${section}, ${group}, ${caption}`);
    const table = box.appendChild(document.createElement("table"));
    const row = (parent, kind, cells) => {
      const line = parent.appendChild(document.createElement("tr"));
      cells.forEach((cell) => (line.appendChild(document.createElement(kind)).textContent = cell));
    };
    row(table.createTHead(), "th", ["point", `value [${details.dataset.bars}], n`]);
    const body = table.createTBody();
    const plain = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;
    for (const trace of figures[details.dataset.of].data) {
      const texts = [...new Set((trace.hovertext || trace.text || []).flat().filter(Boolean))];
      for (const text of texts) row(body, "td", text.split("<br>").map(plain));
    }
    details.append(box);
  }

  // Filters: rows, sentences, groups and traces without a property pass every filter of it.
  function filter() {
    document.querySelectorAll(".tagged").forEach((element) => {
      element.toggleAttribute("data-out", !passes(element.dataset));
      element.hidden = element.hasAttribute("data-out") || element.hasAttribute("data-unfound");
    });
    document.querySelectorAll(".searched").forEach(count);
    redraw();
  }
  document.querySelectorAll("[data-filter]").forEach((select) => {
    select.addEventListener("change", () => {
      chosen[select.dataset.filter] = select.value;
      filter();
    });
  });
  document.querySelectorAll("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));

  function count(box) {
    const rows = [...box.querySelectorAll("tbody tr")];
    const shown = rows.filter((row) => !row.hidden).length;
    box.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
  }
  document.querySelectorAll(".searched").forEach((box) => {
    const text = box.querySelector("[data-search]");
    const status = box.querySelector("[data-of-status]");
    const search = () => {
      const wanted = text.value.toLowerCase();
      box.querySelectorAll("tbody tr").forEach((row) => {
        const found = row.textContent.toLowerCase().includes(wanted);
        const same = !status.value || row.cells[box.dataset.status].textContent === status.value;
        row.toggleAttribute("data-unfound", !(found && same));
        row.hidden = row.hasAttribute("data-out") || row.hasAttribute("data-unfound");
      });
      count(box);
    };
    text.addEventListener("input", search);
    status.addEventListener("change", search);
  });

  // Sorting: numbers by value, words by the alphabet, empty cells last.
  document.querySelectorAll("th button").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const up = head.getAttribute("aria-sort") !== "ascending";
      const body = head.closest("table").tBodies[0];
      const key = (row) => row.cells[head.cellIndex].textContent;
      const number = (row) => parseFloat(key(row).replaceAll(",", ""));
      const numeric = head.classList.contains("number");
      const order = (a, b) => {
        if (!key(a) || !key(b)) return (key(a) ? 0 : 1) - (key(b) ? 0 : 1);
        const by = numeric ? number(a) - number(b) : key(a).localeCompare(key(b), undefined, { numeric: true });
        return up ? by : -by;
      };
      body.append(...[...body.rows].sort(order));
      head.parentElement.querySelectorAll("[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  });
})();
