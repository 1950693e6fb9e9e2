import { defineConfig } from 'vitest/config'

/** The mesh suite runs once on each of these: one version for three nodes, or one per node. */
const LAYOUTS = process.env['STERNA_TEST_VERSIONS']
  ? [process.env['STERNA_TEST_VERSIONS']]
  : ['18', 'system15', '15,16,17,18']

const NEVER = ['**/node_modules/**', '**/dist/**', '**/*.soak.test.ts']

export default defineConfig({
  test: {
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // Real servers and signals: each file is a process of its own.
    pool: 'forks',
    maxWorkers: 2,
    projects: [
      {
        extends: true,
        test: {
          name: 'sterna',
          include: ['src/**/*.test.ts', 'test/**/*.test.ts', 'scripts/**/*.test.ts', 'bench/**/*.test.ts'],
          exclude: [...NEVER, 'test/mesh/**'],
        },
      },
      ...LAYOUTS.map((versions) => ({
        extends: true as const,
        test: {
          name: `mesh ${versions}`,
          include: ['test/mesh/**/*.test.ts'],
          exclude: NEVER,
          env: { STERNA_TEST_VERSIONS: versions },
        },
      })),
    ],
  },
})
