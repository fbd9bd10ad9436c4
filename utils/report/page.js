"use strict";
// Search, order and switches of the page. Everything it shows is in the page already; nothing is fetched.
(() => {
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("data").textContent);
  const list = get("list");
  const heads = data.heads.map((head) => {
    const article = get(head.id), entry = get(`index-${head.id}`);
    const texts = [...article.querySelectorAll(".text-of-head")];
    return {
      ...head, article, entry, input: article.querySelector("input"), texts: texts.map((text) => text.textContent),
      shown: [...texts, ...entry.querySelectorAll(".text-of-head")].map((element) => [element, element.textContent]),
    };
  });

  // A word is found at the beginning of words; in scripts that write no spaces, anywhere.
  const pattern = (word) => "(?<![\\p{Script=Latin}\\p{Script=Greek}\\p{Script=Cyrillic}\\p{N}])" +
    word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

  const highlight = (element, text, found) => {
    const parts = [];
    let end = 0;
    for (const hit of found ? text.matchAll(found) : []) {
      const mark = document.createElement("mark");
      mark.textContent = hit[0];
      parts.push(text.slice(end, hit.index), mark);
      end = hit.index + hit[0].length;
    }
    element.replaceChildren(...parts, text.slice(end));
  };

  const filter = () => {
    const words = get("words").value.split(/\s+/).filter(Boolean).sort((a, b) => b.length - a.length).map(pattern);
    const tests = words.map((word) => new RegExp(word, "iu"));
    const fits = (text) => tests.every((test) => test.test(text));
    const layer = get("layer").value;
    let count = 0;
    for (const head of heads) {
      const visible = (!words.length || head.texts.some(fits)) && (!layer || head.layer === Number(layer));
      head.article.hidden = head.entry.hidden = !visible;
      count += visible;
      for (const [element, text] of head.shown) {
        highlight(element, text, words.length && fits(text) ? new RegExp(words.join("|"), "giu") : null);
      }
    }
    for (const group of document.querySelectorAll(".index section")) {
      group.hidden = !group.querySelector("li:not([hidden])");
    }
    get("count").textContent = `${count} of ${heads.length} heads`;
    get("nothing").hidden = count > 0;
  };

  const sort = () => {
    const by = get("order").value;
    const sorted = [...heads].sort((a, b) => b[by] - a[by]);  // heads of one layer, and equal ones, keep their order
    list.append(...sorted.map((head) => head.article), get("nothing"));
  };

  const power = () => {
    const off = heads.filter((head) => head.input.checked);
    for (const head of heads) head.article.classList.toggle("off", head.input.checked);
    get("without").textContent = off.length === 0 ? "with all heads on" : off.length === 1 ? `without ${off[0].title}: ${off[0].without}` :
      `without ${off.length} heads: not computed here (effects do not add up). This does it:`;
    get("command").hidden = off.length < 2;
    get("command").textContent = data.command.replace("{heads}", off.map((head) => head.name).join(","));
    get("restore").hidden = off.length === 0;
  };

  get("words").addEventListener("input", filter);
  get("layer").addEventListener("change", filter);
  get("order").addEventListener("change", sort);
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  list.addEventListener("change", power);
  get("restore").addEventListener("click", () => {
    const off = heads.filter((head) => head.input.checked);
    for (const head of off) head.input.checked = false;
    power();
    off[0].input.focus({ preventScroll: true });  // the button, which had the focus, is gone
  });
  // Browsers may bring back what was typed before a reload.
  window.addEventListener("pageshow", () => { filter(); sort(); power(); });
})();
