"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;

  // `var(--name)` under a key that ends in "color" -> the page's present colour; texts are never changed
  const resolve = (value, key, style) => {
    if (Array.isArray(value)) return value.map((item) => resolve(item, key, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolve(item, name, style)]));
    const found = typeof value === "string" && key.endsWith("color") && /^var\((--[a-z]+)\)$/.exec(value);
    return found ? style.getPropertyValue(found[1]).trim() : value;
  };

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    for (const [name, figure] of Object.entries(figures)) {
      const { data, layout } = resolve(figure, "", style);
      const isMap = name === "map";
      layout.font.family = getComputedStyle(document.body).fontFamily;
      // a finger on a plot scrolls the page
      layout.dragmode = isMap && !touch ? "zoom" : false;
      if (!isMap) for (const axis of ["xaxis", "yaxis", "yaxis2"]) if (layout[axis]) layout[axis].fixedrange = true;
      Plotly.react(`figure-${name}`, data, layout, {
        responsive: true,
        displaylogo: false,
        displayModeBar: isMap && !touch,
        modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
      });
    }
  };

  // the whole text of a dot, and of the dots that belong to it
  const pick = (event) => {
    const chosen = event.points[0].customdata;
    if (!chosen) return;
    const all = figures.map.data.flatMap((trace) => trace.customdata || []);
    const others = all.filter((item) => item !== chosen && chosen[2] !== null && item[2] === chosen[2]);
    const same = (item) => item[0] === chosen[0] && item[1] === chosen[1];
    const lines = [chosen, ...others.filter((item) => !same(item)).slice(0, 3)].map(([kind, text]) => {
      const line = document.createElement("p"), title = document.createElement("b");
      title.textContent = `${kind}: `;
      line.dir = "auto";
      line.append(title, text);
      return line;
    });
    document.getElementById("picked").replaceChildren(...lines);
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  if (figures.map) {
    const map = document.getElementById("figure-map");
    map.on("plotly_hover", pick);
    map.on("plotly_click", pick);
  }
})();
