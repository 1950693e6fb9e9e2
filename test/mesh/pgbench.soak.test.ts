import { afterAll, beforeAll, describe, test } from 'vitest'

import { systemProgram, testLayout } from '../harness/layout.ts'
import { startMesh, type TestMesh } from '../harness/mesh.ts'
import { expectNoLag, initPgbench, runPgbench } from '../harness/pgbench.ts'

const SECONDS = Number(process.env['STERNA_TEST_PGBENCH_SECONDS'] ?? 60)

const layout = await testLayout()
const program = await systemProgram('pgbench')

describe.skipIf(layout.missing !== null || program === undefined)(`pgbench for long, ${layout.name}`, () => {
  let mesh: TestMesh

  beforeAll(async () => {
    mesh = await startMesh({ count: layout.versions.length, version: layout.versions })
  })
  afterAll(() => mesh?.stop())

  test(`TPC-B on n1 and n2 at once for ${SECONDS} s: nodes identical, every transaction in the history once`, async () => {
    await initPgbench(program!, mesh, 10)
    await runPgbench(program!, mesh, SECONDS)
    await expectNoLag(mesh)
  })
})
