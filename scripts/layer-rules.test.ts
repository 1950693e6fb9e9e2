import { describe, expect, test } from 'vitest'

import { findViolations, importsOf } from './layer-rules.ts'

const violationsOf = (path: string, text: string): string[] =>
  findViolations([{ path, text }]).map((it) => `${it.path}:${it.line}: ${it.message}`)

describe('finding imports', () => {
  test('static, type-only, side-effect, re-exporting and dynamic imports, each with its line', () => {
    const text = [
      "import { a } from './a.ts'",
      "import type { B } from './b.ts'",
      'import {',
      '  c,',
      '  type D,',
      "} from '../c.ts'",
      "import './side-effect.ts'",
      "export * from './e.ts'",
      "export type { F } from './f.ts'",
      "const g = await import('./g.ts')",
    ].join('\n')
    expect(importsOf(text)).toEqual([
      { specifier: './a.ts', typeOnly: false, line: 1 },
      { specifier: './b.ts', typeOnly: true, line: 2 },
      { specifier: '../c.ts', typeOnly: false, line: 3 },
      { specifier: './side-effect.ts', typeOnly: false, line: 7 },
      { specifier: './e.ts', typeOnly: false, line: 8 },
      { specifier: './f.ts', typeOnly: true, line: 9 },
      { specifier: './g.ts', typeOnly: false, line: 10 },
    ])
  })

  test('not in comments, and not in what only looks like one', () => {
    const text = [
      "// import { a } from './a.ts'",
      " * a file with import('./b.ts')",
      "export const from = 'x'",
      'export function f(): string {',
      "  return 'import it from there'",
      '}',
    ].join('\n')
    expect(importsOf(text)).toEqual([])
  })
})

describe('layers', () => {
  test.each([
    ['src/cli/up.ts', '../local/cluster.ts'],
    ['src/cli/agent.ts', '../core/errors.ts'],
    ['src/local/supervisor.ts', '../agent/config.ts'],
    ['src/agent/agent.ts', '../mesh/report.ts'],
    ['src/mesh/apply.ts', './conflict/decide.ts'],
    ['src/mesh/apply.ts', '../postgres/connection.ts'],
    ['src/mesh/conflict/decide.ts', '../../core/pg-time.ts'],
    ['src/sim/run.ts', '../mesh/conflict/decide.ts'],
    ['src/postgres/connection.ts', '../pgwire/backend.ts'],
    ['src/core/lsn.ts', './errors.ts'],
    ['src/pgwire/scram.ts', 'node:crypto'],
    ['src/postgres/wire-socket.ts', 'node:net'],
  ])('%s may import %s', (path, specifier) => {
    expect(violationsOf(path, `import { x } from '${specifier}'\n`)).toEqual([])
  })

  test.each([
    ['src/core/lsn.ts', '../pgwire/backend.ts', 'src/core is below src/pgwire and must not import from it'],
    ['src/postgres/x.ts', '../mesh/report.ts', 'src/postgres is below src/mesh and must not import from it'],
    ['src/mesh/x.ts', '../agent/config.ts', 'src/mesh is below src/agent and must not import from it'],
    ['src/agent/x.ts', '../local/layout.ts', 'src/agent is below src/local and must not import from it'],
    ['src/pgwire/x.ts', '../mesh/conflict/y.ts', 'stand beside each other and must not import each other'],
    ['src/mesh/conflict/x.ts', '../report.ts', 'src/mesh/conflict is below src/mesh'],
    ['src/pgwire/x.ts', 'node:net', 'src/pgwire does no IO, so it must not import node:net'],
    [
      'src/core/x.ts',
      'node:timers/promises',
      'src/core does no IO, so it must not import node:timers/promises',
    ],
    ['src/mesh/conflict/x.ts', 'pino', 'src/mesh/conflict does no IO, so it must not import pino'],
    ['src/mesh/x.ts', '../../test/harness/mesh.ts', 'src must not import test'],
    ['src/mesh/x.ts', './y.test.ts', 'only tests import tests'],
  ])('%s must not import %s', (path, specifier, message) => {
    const found = violationsOf(path, `import { x } from '${specifier}'\n`)
    expect(found).toHaveLength(1)
    expect(found[0]).toContain(`${path}:1: `)
    expect(found[0]).toContain(message)
  })

  test('a type-only import goes by the direction too, since it is a dependency of the reader', () => {
    expect(violationsOf('src/core/x.ts', "import type { X } from '../mesh/report.ts'\n")).toHaveLength(1)
  })

  test('tests may import anything', () => {
    expect(violationsOf('src/core/x.test.ts', "import { x } from '../../test/harness/y.ts'\n")).toEqual([])
  })

  test('a folder without a layer is said', () => {
    expect(violationsOf('src/new-part/x.ts', '')[0]).toContain('the folder belongs to no layer')
  })

  test('a cycle is named once, with its way', () => {
    const file = (name: string, imports: string): { path: string; text: string } => ({
      path: `src/mesh/${name}.ts`,
      text: `import { x } from './${imports}.ts'\n`,
    })
    const found = findViolations([file('a', 'b'), file('b', 'c'), file('c', 'a'), file('d', 'a')])
    expect(found.map((it) => it.message)).toEqual([
      'files import each other: src/mesh/a.ts -> src/mesh/b.ts -> src/mesh/c.ts -> src/mesh/a.ts',
    ])
  })

  test('a cycle through a type-only import does not exist at run time', () => {
    const found = findViolations([
      { path: 'src/core/a.ts', text: "import { b } from './b.ts'\n" },
      { path: 'src/core/b.ts', text: "import type { A } from './a.ts'\n" },
    ])
    expect(found).toEqual([])
  })
})
