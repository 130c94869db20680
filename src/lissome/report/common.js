"use strict";
/* What both charts of a page use. */
const page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  // Plotly reads a little HTML in its labels; a name must stay a name.
  const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function short(value) {
    const size = Math.abs(value);
    return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(2);
  }
  function quantity(value, unit) {
    if (unit === "count" || unit === "bytes") {
      const steps = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
      for (const [factor, prefix] of steps) {
        if (Math.abs(value) >= factor) return short(value / factor) + " " + prefix + (unit === "bytes" ? "B" : "");
      }
      return short(value) + (unit === "bytes" ? " B" : "");
    }
    if (unit === "s" && value < 1) return value < 1e-3 ? short(value * 1e6) + " µs" : short(value * 1e3) + " ms";
    return String(Number(value.toPrecision(4))) + (unit ? " " + unit : "");
  }
  const percent = (ratio) => (ratio * 100).toFixed(1) + " %";
  const label = (name) => (data.labels[name] || name);
  const unit = (name) => (data.units[name] || "");

  function fill(select, names, value) {
    for (const name of names) {
      const option = document.createElement("option");
      option.value = name;
      option.textContent = label(name);
      select.append(option);
    }
    select.value = value;
  }

  function element(tag, text, name) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  }

  function copyable() {
    $("copy").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText($("extract").textContent);
        $("copy").textContent = "Copied";
      } catch {
        getSelection().selectAllChildren($("extract")); // no clipboard for a page opened from a file: select it instead
      }
    });
  }

  /* How all charts look. */
  const looks = () => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 62, r: 12, t: 8, b: 46 },
    font: { family: "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", size: 12.5, color: color("ink") },
    hovermode: "closest", legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") }, align: "left" },
  });

  return { data, $, color, safe, quantity, percent, label, unit, fill, element, copyable, looks };
})();
