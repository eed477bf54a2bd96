// The question before an order, and the help.

import { h } from "./dom.js";
import { shortcutsOn, SHORTCUTS, turnShortcuts } from "./keys.js";

function open(dialog) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.showModal();
  return dialog;
}

/** Asks, gives the order, and hands what became of it to `onAnswer`; `onFailure` gets an error's words. */
export function confirmOrder(order, onAnswer, onFailure) {
  const go = h("button", { type: "submit", class: order.typed ? "primary danger" : "primary", disabled: Boolean(order.typed) }, order.button);
  const cancel = h("button", { type: "button", autofocus: !order.typed && !order.mayReason }, "Cancel");
  const typed = h("input", { id: "typed", autocomplete: "off", autocapitalize: "off", spellcheck: "false", autofocus: true });
  const question = order.typed
    ? h("p", { class: "field" }, h("label", { for: "typed" }, "Type ", h("strong", {}, order.typed), " to confirm"), typed)
    : null;
  const reason = h("input", { id: "reason", maxlength: 200, autocomplete: "off", autofocus: !order.typed });
  const why = order.mayReason ? h("p", { class: "field" }, h("label", { for: "reason" }, "Reason, which every institution can read (may be empty)"), reason) : null;
  const progress = h("p", { class: "progress", role: "status" });
  const form = h("form", {}, h("h2", { id: "dialog-title" }, order.title), h("p", { id: "dialog-text" }, order.text), question, why, progress, h("div", { class: "orders" }, cancel, go));
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" }, form);
  typed.addEventListener("input", () => (go.disabled = typed.value.trim() !== order.typed));
  cancel.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (go.disabled) return;
    go.disabled = true;
    progress.textContent = "Sent. Waiting for the answer…";
    try {
      onAnswer(await order.give(reason.value.trim()));
    } catch (error) {
      onFailure(error.message);
    }
    dialog.close();
  });
  return open(dialog);
}

export function showHelp() {
  if (document.querySelector("dialog")) return;
  const line = ([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)];
  const box = h("input", { type: "checkbox", id: "shortcuts", checked: shortcutsOn() });
  box.addEventListener("change", () => turnShortcuts(box.checked));
  const close = h("button", { type: "button", class: "primary", autofocus: true }, "Close");
  const dialog = h(
    "dialog",
    { "aria-labelledby": "help-title" },
    h("h2", { id: "help-title" }, "Keys"),
    h("dl", { class: "keys" }, SHORTCUTS.map(line)),
    h("p", { class: "field check" }, box, h("label", { for: "shortcuts" }, "Use these keys")),
    h("p", { class: "muted" }, "Everything can be reached with Tab and Enter as well. Every sign has its word beside it."),
    h("div", { class: "orders" }, close),
  );
  close.addEventListener("click", () => dialog.close());
  open(dialog);
}
