import { defineConfig } from 'vitest/config'

/**
 * The mesh suite runs on these: one version for three nodes, or one per node. The mixed layout has every version, so most of it
 * runs there; with STERNA_TEST_VERSIONS all of it runs on one layout.
 */
const LAYOUTS: readonly { readonly versions: string; readonly include: string; readonly exclude: string }[] =
  process.env['STERNA_TEST_VERSIONS']
    ? [{ versions: process.env['STERNA_TEST_VERSIONS'], include: '*', exclude: '' }]
    : [
        {
          versions: '18',
          include: '*',
          exclude:
            '{crashes,definitions,review,unprivileged,foreign-keys,repair-mode,clock-back,exceptions,hot-keys}',
        },
        {
          versions: 'system15',
          include: '{writes,data-types,changes,tombstones}',
          exclude: '',
        },
        {
          versions: '15,16,17,18',
          include: '*',
          exclude: '{pgbench,conflict-records,toast,subscriptions,traces,links,deltas}',
        },
      ]

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
      ...LAYOUTS.map(({ versions, include, exclude }) => ({
        extends: true as const,
        test: {
          name: `mesh ${versions}`,
          include: [`test/mesh/${include}.test.ts`],
          exclude: [...NEVER, `test/mesh/${exclude}.test.ts`],
          env: { STERNA_TEST_VERSIONS: versions },
        },
      })),
    ],
  },
})
