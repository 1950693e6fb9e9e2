import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['src/**/*.test.ts', 'test/**/*.test.ts', 'scripts/**/*.test.ts', 'bench/**/*.test.ts'],
    exclude: ['**/node_modules/**', '**/dist/**', '**/*.soak.test.ts'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // Real servers and signals: each file is a process of its own.
    pool: 'forks',
    maxWorkers: 2,
  },
})
