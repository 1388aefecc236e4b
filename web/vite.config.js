import { defineConfig } from 'vite';

export default defineConfig({
  base: './', // the page may live in any folder of any host
  worker: { format: 'es' },
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 1000,
  },
});
