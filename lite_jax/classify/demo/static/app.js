"use strict";

const $ = (id) => document.getElementById(id);
const asked = []; // photographs that are classified anew after each change: {file, url}
let latest = 0; // so that an answer that was overtaken is not shown
let ready = false; // whether there are two classes to tell apart

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function request(method, path, files, fields = {}) {
  const options = { method, headers: { "X-Lite-Jax": "1" } };
  if (files) {
    options.body = new FormData();
    for (const [name, value] of Object.entries(fields)) options.body.append(name, value);
    for (const file of files) options.body.append("files", file);
  }
  const response = await fetch(path, options);
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(found.error || `the server answered ${response.status}`);
  return found;
}

async function attempt(action) {
  $("problems").textContent = "";
  document.body.setAttribute("aria-busy", "true");
  try {
    return await action();
  } catch (error) {
    $("problems").textContent = error.message;
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

function takeDrops(target, use) {
  const over = (event, inside) => {
    event.preventDefault();
    target.classList.toggle("over", inside);
  };
  target.addEventListener("dragover", (event) => over(event, true));
  target.addEventListener("dragleave", (event) => over(event, false));
  target.addEventListener("drop", (event) => {
    over(event, false);
    use([...event.dataTransfer.files]);
  });
}

function chooser(text, use) {
  const input = element("input", { type: "file", accept: "image/*", multiple: true });
  input.addEventListener("change", () => use([...input.files]));
  return element("label", { className: "button" }, text, input);
}

// ------------------------------------------------------------------------- examples

function add(name, files) {
  if (!files.length) return;
  return attempt(async () => {
    $("status").textContent = "adapting …";
    const fields = { class_name: name };
    const found = await request("POST", "/api/photographs", files, fields);
    show(found);
    if ($("class-name").value.trim() === name) $("class-name").value = "";
    $("problems").textContent = found.problems.join("; ");
    await answerAll();
  });
}

function addNamed(files) {
  const name = $("class-name").value.trim();
  if (name) return add(name, files);
  $("problems").textContent = "give the class a name first";
  $("class-name").focus();
}

function change(path) {
  return attempt(async () => {
    show(await request("DELETE", path));
    await answerAll();
  });
}

function show(state) {
  $("about").textContent =
    `${state.learner}: adapts to your classes in one pass, at ${state.image_size} pixels a side.`;
  $("classes").replaceChildren(...state.classes.map(showClass));
  ready = state.seconds !== null;
  $("clear").hidden = !state.classes.length;
  const count = state.classes.reduce((sum, own) => sum + own.photographs.length, 0);
  $("status").textContent =
    ready
      ? `Adapted to ${count} photographs of ${state.classes.length} classes in ` +
        `${state.seconds.toFixed(2)} s. ${state.held_out}`
      : "Name a class and give it a few photographs; then another.";
}

function showClass(own) {
  const photos = own.photographs.map((photo) => {
    const remove = element("button", { type: "button", textContent: "×" });
    remove.setAttribute("aria-label", `remove ${photo.name} from ${own.name}`);
    remove.addEventListener("click", () => change(`/api/photographs/${photo.number}`));
    const picture = element("img", {
      src: `/api/photographs/${photo.number}.png`,
      alt: `${own.name}: ${photo.name}`,
      title: photo.name,
    });
    return element("figure", {}, picture, remove);
  });
  const use = (files) => add(own.name, files);
  const title = element("h3", {}, own.name, chooser("add more", use));
  const card = element("div", { className: "class" }, title);
  card.dataset.name = own.name;
  card.append(element("div", { className: "photos" }, ...photos));
  takeDrops(card, use);
  return card;
}

// ------------------------------------------------------------------------ questions

async function ask(files) {
  for (const file of files) asked.unshift({ file, url: URL.createObjectURL(file) });
  for (const { url } of asked.splice(24)) URL.revokeObjectURL(url);
  await attempt(answerAll);
}

async function answerAll() {
  const turn = ++latest;
  const cards = [];
  if (!ready) {
    const text = asked.length ? "It needs two classes of examples first." : "";
    $("answers").replaceChildren(text);
    return;
  }
  for (const { file, url } of asked) {
    let card;
    try {
      card = showAnswer(await request("POST", "/api/predict", [file]), file, url);
    } catch (error) {
      const text = element("p", { textContent: error.message });
      card = element("div", { className: "answer" }, element("img", { src: url, alt: file.name }), text);
    }
    if (turn !== latest) return;
    cards.push(card);
  }
  $("answers").replaceChildren(...cards);
}

function showAnswer(found, file, url) {
  const percent = (share) => `${(100 * share).toFixed(share > 0.995 || share < 0.005 ? 1 : 0)} %`;
  const shares = found.classes.slice(0, 4).map(({ name, probability }) => {
    const bar = element("meter", { value: probability });
    bar.setAttribute("aria-hidden", "true");
    const texts = [name, percent(probability)];
    return element("li", {}, bar, ...texts.map((text) => element("span", { textContent: text })));
  });
  const like = found.nearest.map((number) =>
    element("img", { src: `/api/photographs/${number}.png`, alt: "an example like it" }),
  );
  return element(
    "div",
    { className: "answer" },
    element("img", { src: url, alt: file.name, title: file.name }),
    element(
      "div",
      {},
      element("strong", { textContent: found.classes[0].name }),
      element("ul", { className: "shares" }, ...shares),
      element("div", { className: "like" }, "most like", ...like),
    ),
  );
}

// ---------------------------------------------------------------------------- start

$("new-class").addEventListener("submit", (event) => {
  event.preventDefault();
  $("class-files").click();
});
$("class-files").addEventListener("change", async () => {
  const files = [...$("class-files").files];
  $("class-files").value = "";
  await addNamed(files);
});
takeDrops($("new-class"), addNamed);
$("ask-files").addEventListener("change", async () => {
  const files = [...$("ask-files").files];
  $("ask-files").value = "";
  await ask(files);
});
takeDrops($("ask"), ask);
for (const name of ["dragover", "drop"]) { // elsewhere, a browser would leave the page
  document.addEventListener(name, (event) => event.preventDefault());
}
$("clear").addEventListener("click", () => change("/api/photographs"));
attempt(async () => show(await request("GET", "/api/state")));
