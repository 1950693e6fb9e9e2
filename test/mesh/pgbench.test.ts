import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { runCommand } from '../harness/command.ts'
import { systemProgram, testLayout } from '../harness/layout.ts'
import { startMesh, type TestMesh } from '../harness/mesh.ts'
import { expectNoLag, initPgbench, runPgbench } from '../harness/pgbench.ts'

const SCALE = Number(process.env['STERNA_TEST_PGBENCH_SCALE'] ?? 10)
const SECONDS = Number(process.env['STERNA_TEST_PGBENCH_SECONDS'] ?? 10)
const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))

const layout = await testLayout()
const program = await systemProgram('pgbench')

describe.skipIf(layout.missing !== null || program === undefined)(`pgbench, ${layout.name}`, () => {
  let mesh: TestMesh

  beforeAll(async () => {
    mesh = await startMesh({ count: layout.versions.length, version: layout.versions })
  })
  afterAll(() => mesh?.stop())

  test(`pgbench -i -s ${SCALE} on n1: tables, rows and keys arrive on all nodes`, async () => {
    await initPgbench(program!, mesh, SCALE)
  }, 400_000)

  test(`TPC-B on n1 and n2 at once for ${SECONDS} s: nodes identical, every transaction in the history once`, async () => {
    await runPgbench(program!, mesh, SECONDS)
  }, 400_000)

  test('afterwards there is no lag, and sterna status says that all is well', async () => {
    await expectNoLag(mesh)
    const { code, stdout } = await runCommand([MAIN, 'status', '--json', '--dsn', mesh.nodes[0]!.dsn])
    const { alarms } = JSON.parse(stdout) as { alarms: unknown[] }
    expect(alarms).toEqual([])
    expect(code).toBe(0)
  })
})
