"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const views = JSON.parse(document.getElementById("views").textContent);
  const table = document.getElementById("tickets");
  const body = table.tBodies[0];
  [...body.rows].forEach((row, index) => { row.dataset.index = index; });

  // ---- the metric ----
  const drawn = (name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const whiskers = (place, metric, i) =>
    (metric.whiskers[i] ? `M${place.x[i]} ${metric.whiskers[i][0]}V${metric.whiskers[i][1]}` : "")
    + (place.spans[i] !== null ? `M${place.x[i]} ${metric.y[i]}H${place.spans[i]}` : "");
  const draw = (figure, place, metric, front) => {
    figure.querySelector(".metric").textContent = metric.name;
    figure.querySelector("figcaption").textContent = front.caption;
    const chart = figure.querySelector("svg.chart");
    chart.setAttribute("aria-label", `${figure.querySelector("h3").textContent}: ${front.caption}`);
    chart.querySelector(".rungs").replaceChildren(...metric.ticks.flatMap(
      ([y, text]) => [drawn("path", {d: `M54 ${y}H448`}), drawn("text", {x: 48, y: y + 4}, text)]));
    chart.querySelector(".front").setAttribute("d", front.line);
    chart.querySelector(".points").replaceChildren(...place.x.flatMap((x, i) => {
      if (x === null || metric.y[i] === null) return [];
      const group = drawn("g", {class: front.front[i] ? `c${views.marks[i]}` : "dominated"});
      group.append(drawn("path", {d: whiskers(place, metric, i)}), drawn("use", {href: `#m${views.marks[i]}`, x, y: metric.y[i]}));
      return [group];
    }));
    chart.querySelector(".labels").replaceChildren(...front.labels.map(
      ([i, x, y, side]) => drawn("text", {x, y, class: side === 1 ? "label" : "label end"}, views.names[i])));
  };
  const show = (number) => {
    const metric = views.metrics[number];
    for (const figure of document.querySelectorAll("[data-chart]")) {
      const key = figure.dataset.chart;
      draw(figure, views.places[key], metric, metric.fronts[key]);
    }
    for (const button of table.tHead.querySelectorAll("[data-cell]")) {
      const column = button.closest("th").cellIndex;
      for (const row of body.rows) {
        const cell = row.cells[column];
        cell.textContent = metric.cells[button.dataset.cell][row.dataset.index];
        cell.classList.toggle("none", cell.textContent === "not measured");
      }
    }
  };
  const choice = document.getElementById("metric");
  if (choice) {
    choice.addEventListener("change", () => show(Number(choice.value)));
    if (choice.value !== "0") show(Number(choice.value));  // what a browser remembers of the page
  }

  // ---- the order of the table ----
  const key = (row, column) => {
    const text = row.cells[column].textContent;
    const number = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(number) ? (/^(not measured|-|dense)?$/.test(text) ? null : text) : number;
  };
  const compared = (one, other) => typeof one === "number" && typeof other === "number" ? one - other
    : String(one).localeCompare(String(other), "en", {numeric: true});
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [key(row, head.cellIndex), Number(row.dataset.index), row]);
    rows.sort((a, b) => (a[0] === null) - (b[0] === null) || (a[0] === null ? 0 : (down ? -1 : 1) * compared(a[0], b[0])) || a[1] - b[1]);
    body.append(...rows.map((each) => each[2]));
  });

  // ---- copying ----
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  };
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.from);
      const said = button.parentElement.querySelector("output");
      if (await copied(source.textContent)) {
        said.textContent = "copied";
        return;
      }
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      said.textContent = document.execCommand("copy") ? "copied" : "selected: copy it with Ctrl+C";
    });
  }
  window.addEventListener("beforeprint", () => document.querySelectorAll("#runs details").forEach((each) => { each.open = true; }));
})();
