// Markdown as it streams: what is complete is rendered once, only the last block again.
//
// Models are not trusted. HTML in a text is shown as text, links cannot run scripts, and pictures of other hosts are links.

import { MarkdownIt, hljs, temml, tex } from "./libraries.js";
import { copy, element } from "./dom.js";
import { markScript } from "./format.js";

// Longer texts are shown plainly: rendering them takes the browser too long.
const MAX_MARKDOWN = 200_000;
const MAX_HIGHLIGHTED = 50_000;
const MAX_FORMULA = 5_000;

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true, maxNesting: 40 });
const { escapeHtml } = markdown.utils;

markdown.use(tex, { delimiters: "all", mathFence: true, render: formula });

/** A formula as MathML, which browsers draw without fonts or style sheets of a library. */
function formula(source, isBlock) {
  const plain = `<code class="formula">${escapeHtml(source)}</code>`;
  if (source.length > MAX_FORMULA) return plain;
  try {
    const math = temml.renderToString(source, { displayMode: isBlock, throwOnError: true, maxExpand: 200, trust: false });
    // The content security policy forbids style attributes, and what they do here is cosmetic.
    const clean = math.replaceAll(/ style="[^"]*"/g, "");
    return isBlock ? `<div class="scroll-x" tabindex="0">${clean}</div>` : clean;
  } catch {
    return plain;
  }
}

const { rules } = markdown.renderer;
const renderToken = (tokens, at, options, _, self) => self.renderToken(tokens, at, options);

// Each block has its own direction, so that Urdu and English can follow each other.
for (const block of ["paragraph_open", "heading_open", "blockquote_open", "bullet_list_open", "ordered_list_open", "td_open", "th_open"]) {
  rules[block] = (tokens, at, options, env, self) => {
    tokens[at].attrSet("dir", "auto");
    const style = tokens[at].attrGet("style");
    if (style) {
      tokens[at].attrs = tokens[at].attrs.filter(([name]) => name !== "style");
      tokens[at].attrSet("data-align", style.replace("text-align:", ""));
    }
    return renderToken(tokens, at, options, env, self);
  };
}
rules.table_open = () => '<div class="scroll-x" tabindex="0"><table>';
rules.table_close = () => "</table></div>";
rules.link_open = (tokens, at, options, env, self) => {
  tokens[at].attrSet("target", "_blank");
  tokens[at].attrSet("rel", "noopener noreferrer");
  return renderToken(tokens, at, options, env, self);
};
rules.image = (tokens, at) => {
  const { attrs, content } = tokens[at];
  const source = escapeHtml(new Map(attrs).get("src"));
  return `<a href="${source}" target="_blank" rel="noopener noreferrer">${escapeHtml(content) || source}</a>`;
};
rules.fence = (tokens, at) => codeBlock(tokens[at].content, tokens[at].info.trim().split(/\s+/)[0]);
rules.code_block = (tokens, at) => codeBlock(tokens[at].content, "");

function codeBlock(source, language) {
  const isKnown = language && hljs.getLanguage(language) && source.length <= MAX_HIGHLIGHTED;
  const code = isKnown ? hljs.highlight(source, { language, ignoreIllegals: true }).value : escapeHtml(source);
  const head = `<div class="code-head"><span>${escapeHtml(language) || "text"}</span><button type="button" class="copy-code">Copy</button></div>`;
  return `<div class="code" dir="ltr">${head}<pre tabindex="0"><code>${code}</code></pre></div>`;
}

document.addEventListener("click", ({ target }) => {
  if (target instanceof Element && target.classList.contains("copy-code")) copy(target.closest(".code").querySelector("code").textContent, target);
});

/** Shows a text that grows. */
export class MarkdownView {
  #node;
  #tail = element("div", { class: "tail" });
  /** How much of the text is rendered for good, in characters. */
  #settled = 0;
  #text = "";
  #rendered = "";
  #timer = 0;
  /** How long the last rendering took, in milliseconds. */
  #cost = 0;

  constructor(node) {
    this.#node = node;
    node.replaceChildren(this.#tail);
  }

  /** Shows `text`: at once if it is complete, else so rarely that rendering takes at most a quarter of the time. */
  update(text, isComplete) {
    if (!text.startsWith(this.#text)) {
      this.#settled = 0;
      this.#node.replaceChildren(this.#tail);
    }
    this.#text = text;
    if (isComplete) {
      clearTimeout(this.#timer);
      this.#timer = 0;
      this.#render();
    } else if (!this.#timer) {
      this.#render();
      this.#timer = setTimeout(() => {
        this.#timer = 0;
        if (this.#rendered !== this.#text) this.#render();
      }, 4 * this.#cost);
    }
  }

  #render() {
    const begun = performance.now();
    this.#rendered = this.#text;
    if (this.#text.length > MAX_MARKDOWN) {
      this.#node.classList.add("plain");
      this.#node.textContent = this.#text;
      return;
    }
    const source = this.#text.slice(this.#settled);
    const env = {};
    const tokens = markdown.parse(source, env);
    const blocks = topLevel(tokens);
    const last = blocks.at(-1);
    if (blocks.length > 1) {
      const ready = element("div");
      ready.innerHTML = markdown.renderer.render(tokens.slice(0, last.at), markdown.options, env);
      markBlocks(ready);
      this.#tail.before(...ready.childNodes);
      this.#settled += offsetOfLine(source, last.line);
    }
    this.#tail.innerHTML = last ? markdown.renderer.render(tokens.slice(last.at), markdown.options, env) : "";
    markBlocks(this.#tail);
    this.#cost = performance.now() - begun;
  }
}

/** Urdu needs another line height than the English beside it. */
function markBlocks(node) {
  for (const block of node.querySelectorAll("p, li, h1, h2, h3, h4, h5, h6, td, th")) markScript(block, block.textContent);
}

/** Where each top-level block begins: among the tokens, and in which line. */
function topLevel(tokens) {
  return tokens.map((token, at) => ({ token, at })).filter(({ token }) => token.level === 0 && token.nesting >= 0 && token.map).map(({ token, at }) => ({ at, line: token.map[0] }));
}

function offsetOfLine(text, line) {
  let at = 0;
  for (let n = 0; n < line; n += 1) at = text.indexOf("\n", at) + 1;
  return at;
}
