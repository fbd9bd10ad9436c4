// Runs once for each view, a part of the page that is made anew with each answer. What is clicked is asked of the server;
// the place of the keyboard is kept.
let last = null;
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-set]");
  if (!button) return;
  last = button.dataset.toggle ? `[data-toggle="${button.dataset.toggle}"]` : `[data-set="${button.dataset.set}"][data-value="${CSS.escape(button.dataset.value)}"]`;
  trigger("pick", { ...button.dataset });
});
watch("value", () => {
  const again = last && element.querySelector(last);
  if (again && (!document.activeElement || document.activeElement === document.body)) again.focus({ preventScroll: true });
});
const send = async (file) => {
  const wrong = element.querySelector(".wrong");
  const answer = await fetch("picture", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream", "X-Name": encodeURIComponent(file.name || "pasted") } });
  const found = await answer.json();
  if (wrong) { wrong.hidden = !found.error; wrong.textContent = found.error || ""; }
  if (found.query) trigger("pick", { set: "image", value: found.query });
};
if (element.querySelector(".drop")) {
  element.addEventListener("change", (event) => { if (event.target.files && event.target.files[0]) send(event.target.files[0]); });
  for (const kind of ["dragover", "dragleave", "drop"]) element.addEventListener(kind, (event) => {
    event.preventDefault();
    element.querySelector(".drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => { const file = [...event.clipboardData.files][0]; if (file) send(file); });
}
