import { afterAll, beforeAll, describe, test } from 'vitest'

import { surviveCrashes } from '../harness/crashes.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type TestMesh } from '../harness/mesh.ts'
import { TPCB_SCHEMA } from '../harness/tpcb.ts'

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`kill -9, ${layout.name}`, () => {
  let mesh: TestMesh

  beforeAll(async () => {
    mesh = await startMesh({ count: layout.versions.length, version: layout.versions, schema: TPCB_SCHEMA })
  })
  afterAll(() => mesh?.stop())

  test('agents and servers are killed ten times under load: nothing is lost, nothing doubled', async () => {
    const seed = Number(process.env['STERNA_TEST_SEED'] ?? Date.now() % 1_000_000)
    await surviveCrashes(mesh, { kills: 10, seed, transactionsBetween: 50 })
  }, 300_000)
})
