// What the page draws by itself: predictions to click, and maps over their photograph. Names and labels are anybody's
// words, so they become text and never HTML.
window.jaxcam = (() => {
  const make = (tag, options = {}, ...children) => {
    const { data, ...rest } = options;
    const node = Object.assign(document.createElement(tag), rest);
    Object.assign(node.dataset, data);
    node.append(...children.filter((each) => each != null));
    return node;
  };
  const percent = (value) => (value < 0.0995 ? `${(100 * value).toFixed(1)} %` : `${(100 * value).toFixed(0)} %`);
  const bytes = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const ARROWS = { high: "↑", low: "↓", "near zero": "→ 0", describes: "" };

  // --- Photographs and predictions -----------------------------------------------------------------------------------

  function sight(element, props, trigger, watch) {
    const root = element.firstElementChild ?? element.appendChild(make("div"));
    root.className = "sight";
    const draw = () => {
      const { photographs = [], chosen, classes = [], problems = [], model } = props.value ?? {};
      const strip = photographs.map(({ name, picture }, index) =>
        make("button", { title: name, ariaPressed: index === chosen, onclick: () => trigger("input", { index }) },
          make("img", { src: picture, alt: name })));
      const bars = classes.map(({ index, label, probability, explained }) => {
        const name = make("span", { className: "name", textContent: label });
        const value = make("span", { className: "number", textContent: percent(probability) });
        const bar = make("i");
        bar.style.width = `${100 * probability}%`;
        const pick = make("button",
          { className: "pick", ariaPressed: explained, title: `Explain ${label}`,
            onclick: () => trigger("select", { index, beside: false }) }, name, value, bar);
        const beside = make("button", {
          className: "beside", textContent: explained ? "−" : "+",
          title: explained ? `Without ${label}` : `Explain ${label} beside the other`,
          onclick: () => trigger("select", { index, beside: true }) });
        return make("li", {}, pick, beside);
      });
      root.replaceChildren(
        ...problems.map((text) => make("p", { className: "problem", role: "alert", textContent: text })),
        ...(strip.length > 1 ? [make("div", { className: "strip" }, ...strip)] : []),
        ...(bars.length ? [make("h2", { textContent: `What ${model} sees` }), make("ol", {}, ...bars)] : []));
    };
    watch("value", draw);
    draw();
  }

  // --- Maps ----------------------------------------------------------------------------------------------------------

  function viewer(element, props, trigger, watch) {
    const root = element.firstElementChild ?? element.appendChild(make("div"));
    root.className = "viewer";
    const tables = Object.fromEntries(Object.entries(props.colours).map(([name, text]) => [name, bytes(text)]));
    const names = Object.keys(tables).filter((name) => name !== props.signs);
    let stages = [], hovered = null;  // what is drawn now, and the place that is looked at

    const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0.8, ariaLabel: "Opacity",
      oninput: () => root.style.setProperty("--opacity", opacity.value) });
    const colours = make("select", { ariaLabel: "Colours", onchange: () => stages.forEach(paint) },
      ...names.map((name) => make("option", { textContent: name })));
    const clear = make("button", { textContent: "Remove the box", onclick: () => trigger("select", { box: null }) });
    const doing = make("p", { className: "doing", role: "status" });
    const scale = make("canvas", { width: 256, height: 1 });
    const scales = make("span", { className: "scale" }, "cold", scale, "hot");
    const tools = make("div", { className: "tools" },
      make("label", {}, "Heat ", opacity), make("label", {}, "Colours ", colours), scales, clear);
    const grid = make("div", { className: "grid" });
    const table = make("div", { className: "table" });
    root.style.setProperty("--opacity", opacity.value);
    root.replaceChildren(make("div", { className: "bar" }, tools, doing), grid, table);

    // Colours by the table, and the colder the more transparent, so that the photograph shows.
    function paint({ canvas, values, shape, signed }) {
      if (!values) return;
      const [height, width] = shape, context = canvas.getContext("2d");
      const picture = context.createImageData(width, height), lut = tables[signed ? props.signs : colours.value];
      values.forEach((value, at) => {
        picture.data.set(lut.subarray(3 * value, 3 * value + 3), 4 * at);
        picture.data[4 * at + 3] = 255 * Math.min(1, signed ? 1.5 * Math.abs(value / 127.5 - 1) : 1.5 * value / 255);
      });
      context.putImageData(picture, 0, 0);
      const line = scale.getContext("2d"), colors = line.createImageData(256, 1), table = tables[colours.value];
      for (let at = 0; at < 256; at++) colors.data.set([...table.subarray(3 * at, 3 * at + 3), 255], 4 * at);
      line.putImageData(colors, 0, 0);
    }

    const place = (event, stage) => {
      const { left, top, width, height } = stage.getBoundingClientRect();
      const inside = (value) => Math.min(Math.max(value, 0), 1);
      return [inside((event.clientX - left) / width), inside((event.clientY - top) / height)];
    };

    // The same place in all maps, with the value that each has there.
    function hover(at) {
      hovered = at;
      for (const { stage, dot, tag, values, shape, signed } of stages) {
        stage.classList.toggle("hovered", at != null && values != null);
        if (at == null || !values) continue;
        [dot.style.left, dot.style.top] = at.map((each) => `${100 * each}%`);
        const [row, column] = shape.map((size, axis) => Math.min(Math.floor(at[1 - axis] * size), size - 1));
        const value = values[row * shape[1] + column];
        tag.textContent = signed ? (value / 127.5 - 1).toFixed(2) : (value / 255).toFixed(2);
      }
    }

    function mark(box) {
      for (const { frame } of stages) {
        frame.hidden = box == null;
        if (box == null) continue;
        const [left, top, right, bottom] = box.map((each) => `${100 * each}%`);
        const width = `calc(${right} - ${left})`, height = `calc(${bottom} - ${top})`;
        Object.assign(frame.style, { left, top, width, height });
        frame.classList.toggle("point", box[0] === box[2] && box[1] === box[3]);
      }
    }

    function touch(stage) {
      let from = null;
      const boxed = (to) => [Math.min, Math.max].flatMap((end) => [end(from[0], to[0]), end(from[1], to[1])]);
      stage.onpointerdown = (event) => {
        if (event.button !== 0) return;
        from = place(event, stage);
        stage.setPointerCapture(event.pointerId);
      };
      stage.onpointermove = (event) => {
        const to = place(event, stage);
        hover(to);
        if (from) mark(boxed(to));
      };
      stage.onpointerup = (event) => {
        if (!from) return;
        const to = place(event, stage), moved = Math.hypot(to[0] - from[0], to[1] - from[1]) * stage.clientWidth;
        const box = moved < 4 ? [...from, ...from] : boxed(to);
        from = null;
        mark(box);
        trigger("select", { box });
      };
      stage.onpointercancel = () => { from = null; };
      stage.onpointerleave = () => hover(null);
    }

    const figure = (photo, { method, title, about, options, signed, stages: each }) => {
      const drawn = each.map((given) => {
        const { label, ready, said, shape = [1, 1], values, seconds, share, smoothed } = given;
        const canvas = make("canvas", { width: shape[1], height: shape[0] });
        const [frame, dot, tag] = ["box", "dot", "tag"].map((className) => make("div", { className }));
        const stage = make("div", { className: "stage", data: { method, label } },
          make("img", { src: photo.picture, alt: photo.name, draggable: false }), canvas, frame, dot, tag);
        stage.classList.toggle("waiting", !ready);
        stage.classList.toggle("bare", !values);
        const one = { stage, canvas, frame, dot, tag, shape, signed, values: values && bytes(values) };
        stages.push(one);
        paint(one);
        touch(stage);
        const notes = [
          each.length > 1 && make("b", { textContent: label }),
          seconds != null && make("span", { className: "quiet", textContent: `${seconds.toFixed(2)} s` }),
          smoothed && make("span", { className: "quiet", textContent: "smoothed" }),
          signed && values && make("span", { className: "quiet" }, make("em", { className: "for", textContent: "for" }),
            " / ", make("em", { className: "against", textContent: "against" })),
          said && make("span", { className: "said", textContent: said }),
          share && make("span", { className: "share" }, make("b", { textContent: percent(share.energy) }),
            ` of the heat in ${percent(share.area)} of the picture; hottest point `,
            make("b", { textContent: share.points >= 0.5 ? "inside" : "outside" })),
        ].filter(Boolean);
        return make("div", { className: "one" }, stage, make("div", { className: "notes" }, ...notes));
      });
      const name = make("h3", { title: about }, title,
        options ? make("span", { className: "quiet", textContent: options }) : null);
      return make("figure", {}, name, make("div", { className: "pair" }, ...drawn));
    };

    function measured({ maps, metrics }) {
      if (!metrics.length) return [];
      const rows = maps.flatMap(({ title, stages: each }) => each.map(({ label, metrics: values = [] }) =>
        ({ label, name: each.length > 1 ? `${title}, ${label}` : title, values })));
      const best = (at, of) => {  // of the maps of one class
        const numbers = rows.filter((row) => row.label === of).map((row) => row.values[at]).filter(Number.isFinite);
        return numbers.length > 1 ? Math[metrics[at].better === "low" ? "min" : "max"](...numbers) : null;
      };
      const cell = (value, at, label) => make("td", {
        className: value != null && value === best(at, label) ? "best" : "",
        textContent: typeof value === "number" ? value.toFixed(3) : value == null ? "…" : "–",
        title: typeof value === "string" ? value : "" });
      return [make("table", {},
        make("thead", {}, make("tr", {}, make("th", { textContent: "Faithfulness" }),
          ...metrics.map(({ name, better }) => make("th", { textContent: `${name} ${ARROWS[better]}` })))),
        make("tbody", {}, ...rows.map(({ name, label, values }) => make("tr", {}, make("th", { textContent: name }),
          ...metrics.map((_, at) => cell(values[at], at, label))))))];
    }

    const draw = () => {
      const { photo, maps = [], box, doing: now } = props.value ?? {};
      stages = [];
      root.classList.toggle("empty", !photo);
      root.classList.toggle("two", maps.some(({ stages: each }) => each.length > 1));
      doing.textContent = now ? `${now[2]}: compiling and running, ${now[0] + 1} of ${now[1]}` : "";
      doing.style.setProperty("--done", now ? (now[0] + 0.5) / now[1] : 0);
      doing.classList.toggle("busy", Boolean(now));
      clear.hidden = !box;
      grid.replaceChildren(...(photo ? maps.map((each) => figure(photo, each)) : [
        make("p", { className: "hint", textContent: "Drop a photograph, or begin with the cat." })]));
      table.replaceChildren(...(photo ? measured(props.value) : []));
      mark(box);
      hover(hovered);
    };
    watch("value", draw);
    draw();
  }

  function save({ name, content }) {
    const link = make("a", { href: URL.createObjectURL(new Blob([bytes(content)])), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  return { sight, viewer, save };
})();
