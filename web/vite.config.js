import { defineConfig } from 'vite';

export default defineConfig({
  base: './', // the page may live in any folder of any host
  worker: { format: 'es' },
  // Vite's attribute would keep the style sheet from a page that is opened as a file, which says what is wrong with that.
  plugins: [{ name: 'same-origin', enforce: 'post', transformIndexHtml: (html) => html.replaceAll(' crossorigin', '') }],
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 1000,
  },
});
