import js from "@eslint/js";
import globals from "globals";

export default [
  js.configs.recommended,
  {
    files: ["bgl/visualization/page/*.mjs"],
    languageOptions: { globals: { ...globals.browser, Plotly: "readonly" } },
    rules: { eqeqeq: "error", "prefer-const": "error", "no-var": "error", "no-shadow": "error" },
  },
  {
    files: ["tests/visualization/javascript/*.js"],
    languageOptions: { globals: globals.node },
  },
];
