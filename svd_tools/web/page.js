// A drop area: files by drop, paste or choice; the crop by dragging or arrow keys. Runs once, as the body of a function
// of Gradio's (element, trigger, props, upload); what is in `element` is replaced whenever the server says so.
const STEP = 0.05;
const problem = (text) => {
  element.querySelector(".problem")?.remove();
  element.insertAdjacentHTML("beforeend", '<p class="problem" role="alert"></p>');
  element.querySelector(".problem").textContent = text;
};

async function send(file) {
  if (!file || element.dataset.busy) return;
  if (file.size > props.max_bytes) {
    problem(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; at most ${props.max_bytes / 1e6} MB can be uploaded`);
    return;
  }
  element.dataset.busy = "true";
  try {
    const { path } = await upload(file);
    trigger("upload", { path, name: file.name });
  } catch (error) {
    problem(`${file.name} could not be uploaded: ${error.message || error}`);
  } finally {
    delete element.dataset.busy;
  }
}

const choose = () => element.querySelector(".file").click();
element.addEventListener("change", (event) => {
  if (event.target.matches(".file")) send(event.target.files[0]);
});
element.addEventListener("click", (event) => {
  const example = event.target.closest(".example");
  if (example) trigger("select", { name: example.dataset.name });
  else if (event.target.closest(".choose") || event.target.closest(".drop.empty")) choose();
});
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
  event.preventDefault();
  send(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (element.offsetParent !== null && event.clipboardData.files.length) send(event.clipboardData.files[0]);
});

// The crop: object-position is the crop's offset, in percent.
const position = (image) => image.style.objectPosition.split(" ").map((part) => parseFloat(part) / 100);
const place = (image, across, down) => {
  const [x, y] = [across, down].map((value) => Math.round(1000 * Math.min(1, Math.max(0, value))) / 10);
  image.style.objectPosition = `${x}% ${y}%`;
};
const tell = (image) => {
  const [across, down] = position(image);
  trigger("release", { across, down });
};
let dragged = null;
element.addEventListener("pointerdown", (event) => {
  const image = event.target.closest(".crop");
  if (!image) return;
  const scale = Math.max(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  dragged = {
    image,
    from: [event.clientX, event.clientY],
    start: position(image),
    over: [image.naturalWidth * scale - image.clientWidth, image.naturalHeight * scale - image.clientHeight],
  };
  image.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", (event) => {
  if (!dragged) return;
  const moved = [event.clientX - dragged.from[0], event.clientY - dragged.from[1]];
  const to = dragged.start.map((value, axis) => (dragged.over[axis] < 1 ? value : value - moved[axis] / dragged.over[axis]));
  place(dragged.image, ...to);
});
element.addEventListener("pointerup", () => {
  if (dragged) tell(dragged.image);
  dragged = null;
});
element.addEventListener("keydown", (event) => {
  const image = element.querySelector(".crop");
  const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
  if (!event.target.matches(".drop")) return;
  if (image && moves[event.key]) {
    event.preventDefault();
    const [across, down] = position(image);
    place(image, across + moves[event.key][0], down + moves[event.key][1]);
    tell(image);
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    choose();
  }
});
