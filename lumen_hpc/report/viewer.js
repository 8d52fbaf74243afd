
// The images of a case, larger: zoom, level and window, for both at once. `view` carries [[name, source], …].
(() => {
  const dialog = document.getElementById("viewer"), panes = dialog.querySelector(".panes");
  const look = (name) => dialog.querySelector(`[name=${name}]`);
  const SIZE = 1024;
  let images = [], x = 0, y = 0; // from the middle of the pane to that of the image, at zoom 1

  const windowed = ({ grey, off }) => {
    const wide = Number(look("window").value), low = Number(look("level").value) - wide / 2;
    const table = new Uint8ClampedArray(256).map((_, value) => (value - low) / wide * 255);
    const shown = new ImageData(grey.width, grey.height);
    for (let place = 0; place < shown.data.length; place += 4) {
      for (let channel = 0; channel < 3; channel++) shown.data[place + channel] = table[grey.data[place + channel]];
      shown.data[place + 3] = 255;
    }
    off.getContext("2d").putImageData(shown, 0, 0);
  };
  const place = ({ canvas, off }) => {
    const context = canvas.getContext("2d"), zoom = Number(look("zoom").value);
    const fit = SIZE / Math.max(off.width, off.height) * zoom, [w, h] = [off.width * fit, off.height * fit];
    context.clearRect(0, 0, SIZE, SIZE);
    context.drawImage(off, (SIZE - w) / 2 + x * zoom, (SIZE - h) / 2 + y * zoom, w, h);
  };
  const draw = () => { images.forEach(windowed); images.forEach(place); };
  const within = (value) => Math.max(-SIZE / 2, Math.min(SIZE / 2, value)); // an image never leaves its pane
  const move = (dx, dy) => {
    const zoom = Number(look("zoom").value);
    [x, y] = [within(x + dx / zoom), within(y + dy / zoom)];
    images.forEach(place);
  };
  const zoom = (step) => { look("zoom").value = Number(look("zoom").value) + step; images.forEach(place); };
  const reset = () => { look("zoom").value = 1; look("level").value = 128; look("window").value = 256; x = y = 0; draw(); };

  const key = (event) => {
    const moves = { ArrowLeft: [-40, 0], ArrowRight: [40, 0], ArrowUp: [0, -40], ArrowDown: [0, 40] };
    if (moves[event.key]) move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(0.25);
    else if (event.key === "-") zoom(-0.25);
    else if (event.key === "0") reset();
    else return;
    event.preventDefault();
  };

  const open = async (name, source) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = document.createElement("canvas"), off = document.createElement("canvas");
    canvas.width = canvas.height = SIZE;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${name}, ${image.naturalWidth} × ${image.naturalHeight} px`);
    canvas.addEventListener("keydown", key);
    canvas.addEventListener("pointermove", (event) => {
      const scale = SIZE / canvas.clientWidth;
      if (event.buttons) move(event.movementX * scale, event.movementY * scale);
    });
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 0.25 : -0.25); }, { passive: false });
    [off.width, off.height] = [image.naturalWidth, image.naturalHeight];
    const context = off.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    caption.textContent = name;
    figure.append(canvas, caption);
    return { canvas, off, figure, grey: context.getImageData(0, 0, off.width, off.height) };
  };

  document.addEventListener("view", async (event) => {
    images = await Promise.all(event.detail.map(([name, source]) => open(name, source)));
    panes.replaceChildren(...images.map((each) => each.figure));
    dialog.showModal();
    reset();
  });
  for (const name of ["level", "window"]) look(name).addEventListener("input", draw);
  look("zoom").addEventListener("input", () => images.forEach(place));
  look("reset").addEventListener("click", reset);
  look("close").addEventListener("click", () => dialog.close());
})();
