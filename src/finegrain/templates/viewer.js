/* Crops in HU: windowed, enlarged, compared and read out here. Every tile of a place shows the same square in the same way. */
(function () {
  "use strict";
  var LARGEST_ZOOM = 16;

  function decoded(text) {
    var bytes = atob(text), hu = new Float32Array(bytes.length / 2);
    for (var k = 0; k < hu.length; k++) {
      var value = bytes.charCodeAt(2 * k) | (bytes.charCodeAt(2 * k + 1) << 8);
      hu[k] = value > 32767 ? value - 65536 : value;
    }
    return hu;
  }

  /* Catmull-Rom: for each output pixel four source pixels and their weights. */
  function taps(count, first, step, length) {
    var index = new Int32Array(4 * count), weight = new Float32Array(4 * count);
    for (var k = 0; k < count; k++) {
      var at = first + (k + 0.5) * step - 0.5, base = Math.floor(at), t = at - base;
      weight[4 * k] = ((-0.5 * t + 1) * t - 0.5) * t;
      weight[4 * k + 1] = (1.5 * t - 2.5) * t * t + 1;
      weight[4 * k + 2] = ((-1.5 * t + 2) * t + 0.5) * t;
      weight[4 * k + 3] = (0.5 * t - 0.5) * t * t;
      for (var j = 0; j < 4; j++) index[4 * k + j] = Math.min(length - 1, Math.max(0, base - 1 + j));
    }
    return { index: index, weight: weight };
  }

  function paint(canvas, hu, size, view, shown) {
    var pen = canvas.getContext("2d", { willReadFrequently: true }); /* pixels are made here: a canvas on the GPU would be slower */
    var width = canvas.width, height = canvas.height, picture = pen.createImageData(width, height);
    var spanX = size.columns / view.zoom, spanY = size.rows / view.zoom;
    var across = taps(width, view.x - spanX / 2, spanX / width, size.columns);
    var down = taps(height, view.y - spanY / 2, spanY / height, size.rows);
    var row = new Float32Array(size.columns), black = shown.centre - shown.width / 2, scale = 255 / shown.width, pixel = 0;
    for (var y = 0; y < height; y++) {
      for (var c = 0; c < size.columns; c++) {
        row[c] = 0;
        for (var j = 4 * y; j < 4 * y + 4; j++) row[c] += down.weight[j] * hu[down.index[j] * size.columns + c];
      }
      for (var x = 0; x < width; x++) {
        var k = 4 * x, w = across.weight, i = across.index;
        var value = w[k] * row[i[k]] + w[k + 1] * row[i[k + 1]] + w[k + 2] * row[i[k + 2]] + w[k + 3] * row[i[k + 3]];
        var gray = Math.min(255, Math.max(0, Math.round((value - black) * scale)));
        picture.data[pixel] = picture.data[pixel + 1] = picture.data[pixel + 2] = gray;
        picture.data[pixel + 3] = 255;
        pixel += 4;
      }
    }
    pen.putImageData(picture, 0, 0);
  }

  function signed(value) {
    var text = String(Math.round(Math.abs(value)));
    return value < 0 && text !== "0" ? "−" + text : text;
  }

  function place(node) {
    var size = { rows: +node.dataset.rows, columns: +node.dataset.columns };
    var tiles = Array.prototype.map.call(node.querySelectorAll(".film[data-hu]"), function (film) {
      var canvas = document.createElement("canvas"), cross = document.createElement("i"), read = document.createElement("output");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", film.querySelector("img").alt);
      cross.className = "cross";
      cross.hidden = true;
      read.className = "read";
      film.append(canvas, cross, read);
      return { film: film, canvas: canvas, cross: cross, read: read, hu: decoded(film.dataset.hu) };
    });
    tiles.forEach(function (tile) {
      tile.difference = tile.hu.map(function (value, k) { return value - tiles[0].hu[k]; });
    });
    return {
      node: node, size: size, tiles: tiles,
      view: { x: size.columns / 2, y: size.rows / 2, zoom: 1 },
      windows: {
        image: { centre: +node.dataset.centre, width: +node.dataset.width },
        difference: { centre: 0, width: +node.dataset.error }
      }
    };
  }

  function viewer(root) {
    var nodes = root.querySelectorAll(".place"), tabs = root.querySelectorAll(".tabs button"), places = [], now = 0, mode = "image";
    var inputs = { centre: root.querySelector("[name=centre]"), width: root.querySelector("[name=width]") };
    var pointers = new Map(), waiting = false, stage = root.querySelector(".stage");

    function current() { return places[now] || (places[now] = place(nodes[now])); }

    function later() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(function () { waiting = false; draw(); });
    }

    function draw() {
      var here = current(), shown = here.windows[mode], half = here.size.columns / here.view.zoom / 2, halfY = here.size.rows / here.view.zoom / 2;
      here.view.x = Math.min(here.size.columns - half, Math.max(half, here.view.x));
      here.view.y = Math.min(here.size.rows - halfY, Math.max(halfY, here.view.y));
      here.tiles.forEach(function (tile) {
        var wide = Math.max(1, Math.round(tile.film.clientWidth * Math.min(2, window.devicePixelRatio || 1)));
        var high = Math.max(1, Math.round(wide * here.size.rows / here.size.columns));
        if (tile.canvas.width !== wide || tile.canvas.height !== high) { tile.canvas.width = wide; tile.canvas.height = high; }
        var hu = mode === "image" || tile === here.tiles[0] ? tile.hu : tile.difference;
        paint(tile.canvas, hu, here.size, here.view, hu === tile.hu ? here.windows.image : shown);
        tile.film.style.setProperty("--zoom", here.view.zoom);
        var bar = tile.film.querySelector(".bar");
        if (bar) bar.hidden = here.view.zoom * bar.dataset.percent > 90;
      });
      root.dataset.zoom = here.view.zoom.toFixed(3);
      stage.style.touchAction = here.view.zoom > 1 ? "none" : "pan-y";
      if (document.activeElement !== inputs.centre) inputs.centre.value = Math.round(shown.centre);
      if (document.activeElement !== inputs.width) inputs.width.value = Math.round(shown.width);
      root.querySelectorAll("[data-window]").forEach(function (button) {
        button.setAttribute("aria-pressed", mode === "image" && +button.dataset.centre === shown.centre && +button.dataset.width === shown.width);
      });
      root.querySelector("[data-difference]").setAttribute("aria-pressed", mode === "difference");
    }

    function zoom(factor, x, y) {
      var view = current().view, old = view.zoom;
      view.zoom = Math.min(LARGEST_ZOOM, Math.max(1, old * factor));
      if (x !== undefined) { view.x = x + (view.x - x) * old / view.zoom; view.y = y + (view.y - y) * old / view.zoom; }
      later();
    }

    function setWindow(centre, width) {
      current().windows[mode] = { centre: centre, width: Math.max(1, width) };
      later();
    }

    /* 1 to 99 % of what is seen of the reference; three standard deviations of the differences. */
    function automatic() {
      var here = current(), view = here.view, seen = [], spanX = here.size.columns / view.zoom / 2, spanY = here.size.rows / view.zoom / 2;
      here.tiles.forEach(function (tile, k) {
        if ((mode === "image") !== (k === 0)) return;
        var hu = mode === "image" ? tile.hu : tile.difference;
        for (var y = Math.max(0, Math.floor(view.y - spanY)); y < Math.min(here.size.rows, view.y + spanY); y++)
          for (var x = Math.max(0, Math.floor(view.x - spanX)); x < Math.min(here.size.columns, view.x + spanX); x++)
            seen.push(hu[y * here.size.columns + x]);
      });
      if (mode === "difference") {
        var sum = seen.reduce(function (total, value) { return total + value * value; }, 0);
        return setWindow(0, Math.max(10, Math.round(6 * Math.sqrt(sum / Math.max(1, seen.length)))));
      }
      seen.sort(function (a, b) { return a - b; });
      var low = seen[Math.floor(0.01 * (seen.length - 1))], high = seen[Math.ceil(0.99 * (seen.length - 1))];
      setWindow(Math.round((low + high) / 2), Math.max(10, Math.round(high - low)));
    }

    function toggle() { mode = mode === "image" ? "difference" : "image"; later(); }

    function reset() {
      var here = current();
      here.view = { x: here.size.columns / 2, y: here.size.rows / 2, zoom: 1 };
      here.windows = { image: { centre: +here.node.dataset.centre, width: +here.node.dataset.width }, difference: { centre: 0, width: +here.node.dataset.error } };
      later();
    }

    function show(index) {
      now = index;
      nodes.forEach(function (node, k) { node.classList.toggle("on", k === index); });
      tabs.forEach(function (tab, k) { tab.setAttribute("aria-pressed", k === index); });
      draw();
    }

    function at(event) {
      var box = event.target.getBoundingClientRect(), here = current();
      return {
        x: here.view.x + ((event.clientX - box.left) / box.width - 0.5) * here.size.columns / here.view.zoom,
        y: here.view.y + ((event.clientY - box.top) / box.height - 0.5) * here.size.rows / here.view.zoom
      };
    }

    function read(x, y) {
      var here = current(), column = Math.floor(x), row = Math.floor(y);
      var inside = column >= 0 && row >= 0 && column < here.size.columns && row < here.size.rows;
      here.tiles.forEach(function (tile) {
        tile.cross.hidden = !inside;
        tile.read.textContent = "";
        if (!inside) return;
        tile.cross.style.left = 100 * ((x - here.view.x) * here.view.zoom / here.size.columns + 0.5) + "%";
        tile.cross.style.top = 100 * ((y - here.view.y) * here.view.zoom / here.size.rows + 0.5) + "%";
        var apart = mode === "difference" && tile !== here.tiles[0], value = (apart ? tile.difference : tile.hu)[row * here.size.columns + column];
        tile.read.textContent = (apart && value > 0 ? "+" : "") + signed(value) + " HU";
      });
    }

    function silent() {
      current().tiles.forEach(function (tile) { tile.cross.hidden = true; tile.read.textContent = ""; });
    }

    tabs.forEach(function (tab, k) { tab.addEventListener("click", function () { show(k); }); });
    root.querySelectorAll("[data-window]").forEach(function (button) {
      button.addEventListener("click", function () { mode = "image"; setWindow(+button.dataset.centre, +button.dataset.width); });
    });
    root.querySelector("[data-auto]").addEventListener("click", automatic);
    root.querySelector("[data-difference]").addEventListener("click", toggle);
    root.querySelector("[data-reset]").addEventListener("click", reset);
    root.querySelectorAll("[data-zoom-by]").forEach(function (button) {
      button.addEventListener("click", function () { zoom(+button.dataset.zoomBy); });
    });
    inputs.centre.addEventListener("input", function () {
      if (inputs.centre.value !== "") setWindow(+inputs.centre.value, current().windows[mode].width);
    });
    inputs.width.addEventListener("input", function () {
      if (+inputs.width.value > 0) setWindow(current().windows[mode].centre, +inputs.width.value);
    });

    stage.addEventListener("pointerdown", function (event) {
      if (event.target.tagName !== "CANVAS") return;
      stage.focus({ preventScroll: true });
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (current().view.zoom > 1) event.target.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", function (event) {
      if (event.target.tagName !== "CANVAS") return silent();
      var before = pointers.get(event.pointerId), here = current();
      if (before && pointers.size === 1 && here.view.zoom > 1) {
        var box = event.target.getBoundingClientRect();
        here.view.x -= (event.clientX - before.x) / box.width * here.size.columns / here.view.zoom;
        here.view.y -= (event.clientY - before.y) / box.height * here.size.rows / here.view.zoom;
        later();
      } else if (before && pointers.size === 2) {
        var other = Array.from(pointers.keys()).find(function (id) { return id !== event.pointerId; }), fixed = pointers.get(other);
        var ratio = Math.hypot(event.clientX - fixed.x, event.clientY - fixed.y) / Math.max(1, Math.hypot(before.x - fixed.x, before.y - fixed.y));
        zoom(ratio);
      }
      if (before) pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      var point = at(event);
      read(point.x, point.y);
    });
    ["pointerup", "pointercancel", "pointerleave"].forEach(function (name) {
      stage.addEventListener(name, function (event) { pointers.delete(event.pointerId); if (name === "pointerleave") silent(); });
    });
    stage.addEventListener("dblclick", function (event) {
      if (event.target.tagName === "CANVAS") { var point = at(event); zoom(2, point.x, point.y); }
    });
    stage.addEventListener("wheel", function (event) {
      if (event.target.tagName !== "CANVAS" || document.activeElement !== stage) return; /* the page scrolls until the viewer is clicked */
      event.preventDefault();
      var point = at(event);
      zoom(Math.exp(-event.deltaY / 300), point.x, point.y);
    }, { passive: false });
    stage.addEventListener("keydown", function (event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      var here = current(), step = here.size.columns / here.view.zoom / 8, buttons = root.querySelectorAll("[data-window]");
      var moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (moves[event.key] && here.view.zoom > 1) { here.view.x += moves[event.key][0]; here.view.y += moves[event.key][1]; later(); }
      else if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-") zoom(1 / 1.5);
      else if (event.key === "0") reset();
      else if (event.key === "a") automatic();
      else if (event.key === "d") toggle();
      else if (/^[1-9]$/.test(event.key) && buttons[event.key - 1]) buttons[event.key - 1].click();
      else return;
      event.preventDefault();
      draw();
      read(here.view.x, here.view.y);
    });
    stage.addEventListener("blur", silent);
    new ResizeObserver(later).observe(stage);
    show(0);
  }

  document.querySelectorAll(".viewer").forEach(viewer);
})();
