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
      ...head, article, entry, input: article.querySelector("input"), details: article.querySelector("details"),
      texts: texts.map((text) => text.textContent), shown: texts.map((element) => [element, element.textContent]),
      section: entry.parentElement, list: entry.querySelector("a > span"), number: Number(head.name.split(".")[1]),
    };
  });

  // A word is found at the beginning of words; in scripts that write no spaces, anywhere.
  const pattern = (word) => "(?<![\\p{Script=Latin}\\p{Script=Greek}\\p{Script=Cyrillic}\\p{N}])" +
    word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&").replace(/colou?r/g, "colou?r");  // either spelling finds both

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

  // "5.4", "layer 5" and "head 4" are numbers of heads; all else are words of a text, or of the classes of its images.
  const asked = () => {
    let given = get("words").value.toLowerCase();
    const numbers = [];
    const take = (form, test) => {
      given = given.replace(form, (_, ...found) => { numbers.push((head) => test(head, found)); return " "; });
    };
    take(/(?<![\d.])(\d+)\.(\d+)(?![\d.])/g, (head, [layer, number]) => head.name === `${layer}.${number}`);
    take(/\blayer (\d+)\b/g, (head, [layer]) => head.layer === Number(layer));
    take(/\bhead (\d+)\b/g, (head, [number]) => head.number === Number(number));
    const words = given.split(/\s+/).filter(Boolean).sort((a, b) => b.length - a.length).map(pattern);
    return { numbers, words, tests: words.map((word) => new RegExp(word, "iu")) };
  };

  const filter = () => {
    const { numbers, words, tests } = asked();
    const fits = (text) => tests.every((test) => test.test(text));
    const layer = get("layer").value, marked = words.length ? new RegExp(words.join("|"), "giu") : null;
    let count = 0;
    for (const head of heads) {
      const matching = words.length ? head.texts.filter(fits) : head.texts;
      const visible = numbers.every((test) => test(head)) && (!layer || head.layer === Number(layer)) &&
        (!words.length || matching.length > 0 || head.labels.some(fits));
      head.article.hidden = head.entry.hidden = !visible;
      count += visible;
      for (const [element, text] of head.shown) highlight(element, text, marked && fits(text) ? marked : null);
      const shown = (matching.length ? matching : head.texts).slice(0, 2).map((text) => {  // those that were found
        const element = document.createElement("span");
        element.className = "text-of-head";
        highlight(element, text, marked && fits(text) ? marked : null);
        return element;
      });
      head.list.replaceChildren(...shown.flatMap((element, i) => (i ? ["; ", element] : [element])));
      if (!shown.length) head.list.textContent = "no texts";
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
    const flat = get("by-order");
    flat.querySelector("h3").textContent = `By ${get("order").selectedOptions[0].textContent}`;
    for (const head of sorted) (by === "layer" ? head.section : flat.querySelector("ul")).append(head.entry);
    filter();
  };

  const fold = (open) => {
    for (const head of heads) head.details.open = open;
    get("fold").textContent = open ? "Fold all" : "Unfold all";
    get("fold").setAttribute("aria-expanded", open);
  };

  const unfoldTarget = () => {
    const head = heads.find((each) => each.id === location.hash.slice(1));
    if (head) { head.details.open = true; head.article.scrollIntoView(); }
  };

  const power = () => {
    const off = heads.filter((head) => head.input.checked);
    for (const head of heads) head.article.classList.toggle("off", head.input.checked);
    get("power").hidden = off.length === 0;
    get("without").textContent = off.length === 0 ? "" : off.length === 1 ? `without ${off[0].title}: ${off[0].without}` :
      `${off.length} heads off`;
    get("several").hidden = off.length < 2;
    get("command").textContent = data.command.replace("{heads}", off.map((head) => head.name).join(","));
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
  get("fold").addEventListener("click", () => fold(!heads[0].details.open));
  window.addEventListener("hashchange", unfoldTarget);
  window.addEventListener("beforeprint", () => fold(true));
  fold(false);
  // Browsers may bring back what was typed before a reload.
  window.addEventListener("pageshow", () => { sort(); power(); unfoldTarget(); });
})();
