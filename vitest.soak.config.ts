import { defineConfig } from 'vitest/config'

/** The long variants: `npm run test:soak`. STERNA_TEST_VERSIONS says on which servers, 18 when it is not set. */
export default defineConfig({
  test: {
    include: ['{src,test}/**/*.soak.test.ts'],
    exclude: ['**/node_modules/**', '**/dist/**'],
    testTimeout: 1_800_000,
    hookTimeout: 300_000,
    pool: 'forks',
    maxWorkers: 1,
  },
})
